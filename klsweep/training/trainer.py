"""Everything that a run computes: policy, reference, optimiser and sampler, and what is done with them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.model.masters import Masters
from klsweep.model.policy import Policy, Scores, Tokens, load_base, score
from klsweep.model.reference import reference_of
from klsweep.model.weights import trained_weights
from klsweep.objective.objective import Objective
from klsweep.record.folder import Attempt, RunFolder
from klsweep.rollout.engine import Generation, Rollout
from klsweep.training import checkpoint
from klsweep.training.ahead import SamplingProcess
from klsweep.training.collect import Collector, longest_sequence
from klsweep.training.evaluate import ItemRow, evaluate
from klsweep.training.metrics import Metrics
from klsweep.training.step import Learner


class Trainer:
    """What a run computes with. Which computation comes when, what is recorded and when to stop, `train` decides.

    A context manager as long as it trains.

    BadInput if the policy has no positions for the longest prompt and response.
    """

    def __init__(self, spec: RunSpec, objective: Objective) -> None:
        settings = spec.train
        base = load_base(spec.model)
        self._spec = spec
        # before any checkpoint: the reference is always the base
        self._policy = base.trainable_copy(spec.adapter, spec.root.seed)
        self._reference = reference_of(base, self._policy)
        self._weights = Masters(self._policy.network)
        self._optimiser = torch.optim.AdamW(
            self._weights.named.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._optimiser.register_step_post_hook(lambda *_: self._weights.publish())
        self._sampler = spec.rollout.bind(self._policy, longest_sequence(spec, self._policy))
        self._collector = Collector(spec, self._policy, self._sampler)
        self._ahead: SamplingProcess | None = None
        self._learner = Learner(
            policy=self._policy,
            reference=self._reference,
            optimiser=self._optimiser,
            objective=objective,
            temperature=spec.rollout.temperature,
            max_length=spec.task.max_response_tokens,
            minibatches=settings.minibatches,
            micro_batch_size=settings.micro_batch_size,
            max_grad_norm=settings.max_grad_norm,
        )

    @property
    def device(self) -> Any:
        """Where batches live."""
        return self._policy.network.device

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self._policy

    @property
    def repeats_itself(self) -> bool:
        """See `Sampler.repeats_itself`."""
        return self._sampler.repeats_itself

    def __enter__(self) -> "Trainer":
        """With `sampling.overlap`: start the process that `begin` asks."""
        if self._spec.sampling.overlap:
            self._ahead = SamplingProcess(self._spec, lambda: trained_weights(self._policy))
        return self

    def __exit__(self, *_: Any) -> None:
        if self._ahead is not None:
            self._ahead.close()

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

    def score(self, tokens: Tokens) -> Scores:
        """What the policy and the reference say of a batch's tokens before its update, while the sampler rests."""
        self._sampler.rest()
        temperature, rows = self._spec.rollout.temperature, self._spec.train.micro_batch_size
        return score(self._policy, self._reference, tokens, temperature, rows)

    def update(self, generation: Generation, scores: Scores, advantages: Tensor, beta: float, lr: float) -> Metrics:
        """See `Learner.update`; the sampler then samples from the new weights."""
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        metrics = self._learner.update(generation, scores, advantages, beta)
        self._sampler.take_weights()
        return metrics

    def evaluate(self, only: Sequence[str] | None = None) -> dict[str, list[ItemRow]]:
        """See `evaluate`; of `only` these suites, if given."""
        settings = self._spec.eval
        if only is not None:
            settings = dataclasses.replace(settings, suites={name: settings.suites[name] for name in only})
        return evaluate(
            self._sampler,
            self._policy,
            settings,
            lambda tokens: score(self._policy, self._reference, tokens, settings.temperature, settings.batch_size),
        )

    def load(self, attempt: Attempt) -> checkpoint.State:
        """See `load_checkpoint`; the sampler then samples from its weights."""
        state = checkpoint.load_checkpoint(attempt, self._weights, self._optimiser)
        self._sampler.take_weights()
        return state

    def load_weights(self, run: RunFolder, update: int) -> None:
        """The weights that another run has kept, see `load_kept`, for the policy and the sampler alone."""
        checkpoint.load_kept(run, update, self._weights)
        self._sampler.take_weights()

    def load_model(self, folder: Path) -> None:
        """The same from a folder in HF format, see `load_model_folder`."""
        checkpoint.load_model_folder(folder, self._weights)
        self._sampler.take_weights()

    def save(self, attempt: Attempt, state: checkpoint.State) -> None:
        """See `save_checkpoint`."""
        checkpoint.save_checkpoint(attempt, state, self._weights, self._optimiser)

    def write_model(self, folder: Path) -> None:
        """See `checkpoint.write_model`."""
        checkpoint.write_model(folder, self._policy)

    def save_milestone(self, attempt: Attempt, update: int) -> None:
        """See `checkpoint.save_milestone`."""
        checkpoint.save_milestone(attempt, update, self._policy)
