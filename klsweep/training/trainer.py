"""Everything that a run computes, led from one process: its own share and, by its orders, that of the other ranks."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.model.parallel import ALONE, Ranks, moved
from klsweep.model.policy import Policy, Scores
from klsweep.model.reward_model import load_reward_model
from klsweep.model.tokens import Tokens
from klsweep.model.weights import trained_weights
from klsweep.objective.objective import Objective, build_objective
from klsweep.record.folder import Attempt, RunFolder
from klsweep.rollout.engine import Generation, Rollout
from klsweep.training import checkpoint
from klsweep.training.ahead import SamplingProcess
from klsweep.training.collect import Collector, Draws
from klsweep.training.evaluate import ItemRow, evaluate
from klsweep.training.metrics import Metrics
from klsweep.training.share import Share


class Trainer:
    """What a run computes with. Which computation comes when, what is recorded and when to stop, `train` decides.

    `reward_model` is the folder of what `reward=reward_model` names. A context manager as long as it trains. The other
    ranks are in `follow` and do what they are told, so they agree with the leader by construction.
    """

    def __init__(
        self, spec: RunSpec, objective: Objective, ranks: Ranks = ALONE, reward_model: Path | None = None
    ) -> None:
        self._spec, self._ranks, self._reward_model = spec, ranks, reward_model
        ranks.order(spec)
        self._share = Share(spec, objective, ranks)
        judge = None if reward_model is None else load_reward_model(reward_model, spec.model)
        self._collector = Collector(spec, self._share.policy, self, judge)
        self._ahead: SamplingProcess | None = None

    def _all(self, method: str, *arguments: Any) -> Any:
        """Have every rank call a method of its share; what the leader's returned."""
        self._ranks.order((method, arguments))
        return getattr(self._share, method)(*arguments)

    @property
    def device(self) -> Any:
        """Where batches live."""
        return self._share.policy.network.device

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self._share.policy

    @property
    def repeats_itself(self) -> bool:
        """See `Sampler.repeats_itself`."""
        return self._share.sampler.repeats_itself

    def generate(
        self, prompts: Sequence[Sequence[int]], samples: int, uniforms: np.ndarray, temperature: float, top_p: float
    ) -> Generation:
        """See `Responder.generate`."""
        return self._all("generate", prompts, samples, uniforms, temperature, top_p)

    def __enter__(self) -> "Trainer":
        """With `sampling.overlap`: start the process that `begin` asks."""
        if self._spec.sampling.overlap:
            self._ahead = SamplingProcess(self._spec, self._reward_model, lambda: trained_weights(self.policy))
        return self

    def __exit__(self, *_: Any) -> None:
        if self._ahead is not None:
            self._ahead.close()

    @property
    def samples_ahead(self) -> bool:
        """True if another process samples, and `begin` returns before a batch is there."""
        return self._ahead is not None

    def begin(self, index: int, version: int) -> Callable[[], Rollout]:
        """Have the batch of update `index` sampled from today's weights, of which `version` says how many updates they
        have seen: here and now, or in another process while the caller goes on. Returns what waits for it.
        """
        if self._ahead is None:
            rollout = self._collector.collect(index, version)
            return lambda: rollout
        fetch = self._ahead.begin(index, version)
        return lambda: fetch().to(self.device)

    def probe(self, update: int) -> Rollout:
        """See `Collector.probe`."""
        return self._collector.probe(update)

    def answers(self, prompts: list[int], samples: int, draws: Draws) -> Rollout:
        """Graded responses of the policy as it is to some of the task's training prompts."""
        return self._collector.answers(0, 0, prompts, samples, draws)

    def score_batch(self, tokens: Tokens) -> Scores:
        """The same as `score`, of a batch that `update` comes next for, see `Share.score_batch`."""
        self._all("rest")
        return self._all("score_batch", tokens)

    def score(self, tokens: Tokens) -> Scores:
        """What the policy and the reference say of a batch's tokens, while the sampler rests."""
        self._all("rest")
        return self._all("score", tokens, self._spec.rollout.temperature, self._spec.train.micro_batch_size)

    def update(
        self, generation: Generation, scores: Scores, advantages: Tensor, beta: float, tau: float | None, lr: float
    ) -> Metrics:
        """See `Learner.update`."""
        return self._all("update", generation, scores, advantages, beta, tau, lr)

    def evaluate(self, only: Sequence[str] | None = None) -> dict[str, list[ItemRow]]:
        """See `evaluate`; of `only` these suites, if given."""
        settings = self._spec.eval
        if only is not None:
            settings = dataclasses.replace(settings, suites={name: settings.suites[name] for name in only})
        return evaluate(
            self,
            self._share.policy,
            settings,
            lambda tokens: self._all("score", tokens, settings.temperature, settings.batch_size),
        )

    def load(self, attempt: Attempt) -> checkpoint.State:
        """See `load_checkpoint`; the sampler then samples from its weights."""
        return checkpoint.load_checkpoint(
            attempt, lambda folder, with_optimiser: self._all("load", folder, with_optimiser), self.device
        )

    def load_weights(self, run: RunFolder, update: int) -> None:
        """The weights that another run has kept, see `checkpoint.kept`, for the policy and the sampler alone."""
        self._all("load", checkpoint.kept(run, update), False)

    def load_model(self, folder: Path) -> None:
        """The same from a folder in HF format, see `load_model_folder`."""
        self._all("load_model", folder)

    def save(self, attempt: Attempt, state: checkpoint.State) -> None:
        """See `save_checkpoint`."""
        checkpoint.save_checkpoint(attempt, state, lambda folder: self._all("save", folder))

    def write_model(self, folder: Path) -> None:
        """See `checkpoint.write_model`."""
        checkpoint.write_model(folder, self.policy, self._all("weights"))

    def save_milestone(self, attempt: Attempt, update: int) -> None:
        """See `checkpoint.save_milestone`."""
        checkpoint.save_milestone(attempt, update, self._write_trained)

    def _write_trained(self, folder: Path) -> None:
        """The trained weights alone: of a policy with an adapter, that."""
        if hasattr(self.policy.network, "peft_config"):
            checkpoint.write_adapter(folder, self.policy)
        else:
            self.write_model(folder)


def follow(ranks: Ranks) -> None:
    """A rank that does not lead: hold a share of what the leader begins, do what it orders, until it dismisses all."""
    share: Share | None = None
    while (order := ranks.order()) is not None:
        if isinstance(order, RunSpec):
            share = None  # its memory first
            share = Share(order, build_objective(*order.objective_parts), ranks)
            continue
        assert share is not None
        method, arguments = moved(order, share.policy.network.device)
        try:
            getattr(share, method)(*arguments)
        except FloatingPointError:  # raised on the leader, too, who knows what that means
            continue
