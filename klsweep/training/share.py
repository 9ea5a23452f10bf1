"""What each process of a run holds and computes: its share of the networks, the optimiser and the rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.model.logprobs import Column
from klsweep.model.masters import Masters
from klsweep.model.parallel import ALONE, Ranks, forget_gathered, moved, spread
from klsweep.model.policy import Policy, Reference, Scores, device_of, load_base, load_policy, score
from klsweep.model.reference import reference_of
from klsweep.model.tokens import Tokens
from klsweep.model.weights import named_weights
from klsweep.objective.objective import Objective
from klsweep.rollout.engine import Generation, joined
from klsweep.training import shards
from klsweep.training.collect import longest_sequence
from klsweep.training.metrics import Metrics
from klsweep.training.step import Learner


class Share:
    """One rank's part of a run. Every rank calls the same methods, with equal arguments, in the same order.

    BadInput if the policy has no positions for the longest prompt and response.
    """

    def __init__(self, spec: RunSpec, objective: Objective, ranks: Ranks) -> None:
        settings = spec.train
        self._spec, self._ranks = spec, ranks
        self.policy, self.reference = _networks(spec, ranks)
        self._weights = Masters(self.policy.network)
        self._optimiser = torch.optim.AdamW(
            self._weights.named.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._optimiser.register_step_post_hook(lambda *_: self._weights.publish())
        self.sampler = spec.rollout.bind(self.policy, longest_sequence(spec, self.policy))
        self._learner = Learner(
            policy=self.policy,
            reference=self.reference,
            optimiser=self._optimiser,
            objective=objective,
            temperature=spec.rollout.temperature,
            max_length=spec.task.max_response_tokens,
            minibatches=settings.minibatches,
            micro_batch_size=settings.micro_batch_size,
            max_grad_norm=settings.max_grad_norm,
            ranks=ranks,
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], samples: int, uniforms: np.ndarray, temperature: float, top_p: float
    ) -> Generation:
        """See `Sampler.generate`; each rank answers its part of the prompts."""
        mine = self._ranks.mine(len(prompts))
        asked = mine if prompts[mine] else slice(0, 1)  # newer weights are gathered first, which all have to do
        draws = uniforms[asked.start * samples : asked.stop * samples]
        part: Generation | FloatingPointError | None
        try:
            part = self.sampler.generate(prompts[asked], samples, draws, temperature, top_p)
        except FloatingPointError as error:  # the others wait for this rank's part
            part = error
        part = part if prompts[mine] else None
        parts = [found for found in self._ranks.gather(part) if found is not None]
        for found in parts:
            if isinstance(found, FloatingPointError):
                raise found
        return joined(moved(parts, self.policy.network.device), self.policy.tokenizer.pad_token_id)

    def rest(self) -> None:
        """See `Sampler.rest`."""
        self.sampler.rest()

    def score_batch(self, tokens: Tokens) -> Scores:
        """`score` of a batch that `update` comes next for, which takes over the graph if there is one step on it."""
        settings, keep = self._spec.train, self._learner.columns
        return self.score(
            tokens,
            self._spec.rollout.temperature,
            settings.micro_batch_size,
            keep if settings.minibatches == self._ranks.size == 1 else (),
        )

    def score(self, tokens: Tokens, temperature: float, batch_size: int, keep: tuple[Column, ...] = ()) -> Scores:
        """See `score`; each rank does its part of the rows.

        All of them equally many, since each forward pass gathers the weights: a shorter part is filled up with row 0.
        """
        ranks, rows = self._ranks, torch.arange(len(tokens.mask))
        longest = -(-len(rows) // ranks.size)
        mine = rows[ranks.mine(len(rows))]
        padded = torch.cat([mine, rows[:1].expand(longest - len(mine))])
        found = score(self.policy, self.reference, tokens.rows(padded), temperature, batch_size, keep)
        if ranks.size == 1:
            return found
        forget_gathered(self.policy.network)
        columns = [column[: len(mine)] for column in found.columns]
        parts = moved(ranks.gather(columns), self.policy.network.device)
        return Scores(*(torch.cat(column) for column in zip(*parts, strict=True)), kept=None)

    def update(
        self, generation: Generation, scores: Scores, advantages: Tensor, beta: float, tau: float | None, lr: float
    ) -> Metrics:
        """See `Learner.update`; the sampler then samples from the new weights."""
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        metrics = self._learner.update(generation, scores, advantages, beta, tau)
        self.sampler.take_weights()
        return metrics

    def save(self, folder: Path) -> shards.Digests:
        """Write weights and optimiser state into a folder, a file of each per rank; the digests of all."""
        written = shards.save_state(folder, self._weights, self._optimiser, self._ranks)
        return {name: digest for part in self._ranks.gather(written) for name, digest in part.items()}

    def load(self, folder: Path, with_optimiser: bool) -> None:
        """Restore what any number of ranks has saved; the sampler then samples from it."""
        shards.load_weights(folder, self._weights)
        if with_optimiser:
            shards.load_optimiser(folder, self._weights, self._optimiser)
        self.sampler.take_weights()

    def load_model(self, folder: Path) -> None:
        """The same for the weights of a folder in HF format."""
        shards.load_model_folder(folder, self._weights)
        self.sampler.take_weights()

    def weights(self) -> dict[str, Tensor] | None:
        """All weights by name, on the CPU, one at a time, tied ones once: the leader's, None on other ranks."""
        leads, found = self._ranks.rank == 0, dict[str, Tensor]()
        for name, tensor in named_weights(self.policy):
            if leads:
                found[name] = tensor.cpu()
        first: dict[int, str] = {}
        for name, parameter in self.policy.network.state_dict(keep_vars=True).items():
            if name in found:  # an adapter's are not
                found[name] = found[first.setdefault(id(parameter), name)]
        return found if leads else None


def _networks(spec: RunSpec, ranks: Ranks) -> tuple[Policy, Reference]:
    """The policy to train and its reference, which is always the base; whole in a process by itself."""
    if ranks == ALONE:
        base = load_base(spec.model)
        policy = base.trainable_copy(spec.adapter, spec.root.seed)
        return policy, reference_of(base, policy)
    base = load_policy(spec.model, "cpu")
    policy = base.trainable_copy(device="cpu")
    base.network.requires_grad_(False)
    for each in (policy, base):
        spread(each.network, spec.parallel, ranks, device_of(spec.model))
    return policy, reference_of(base, policy)
