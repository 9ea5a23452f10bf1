"""One update's optimiser steps on one batch of rollouts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from klsweep.model.logprobs import Column
from klsweep.model.parallel import Ranks, local, whole
from klsweep.model.policy import Policy, Reference, Scores, statistics
from klsweep.model.tokens import Tokens, micro_batches
from klsweep.objective.objective import Objective
from klsweep.rollout.engine import Generation
from klsweep.training.metrics import Metrics, RatioStatistics


@dataclass(frozen=True)
class Learner:
    """The policy, its reference and its optimiser, and how a batch is cut for them."""

    policy: Policy
    reference: Reference
    optimiser: torch.optim.Optimizer
    objective: Objective
    temperature: float
    max_length: int
    minibatches: int
    micro_batch_size: int
    max_grad_norm: float
    ranks: Ranks

    def update(
        self, generation: Generation, scores: Scores, advantages: Tensor, beta: float, tau: float | None
    ) -> Metrics:
        """Take one optimiser step per minibatch. A gradient that is not finite is never stepped on: it ends the update.

        `beta`: that of the KL loss; `tau`: the threshold of a calibrated clip, see `Clip.at`. Returns loss terms and
        gradient norms (before clipping) averaged over the minibatches, and ratio statistics.
        """
        ratios, losses, norms = RatioStatistics(), [], []
        objective = self.objective.at(tau)
        for rows in torch.arange(len(advantages)).chunk(self.minibatches):
            losses.append(self._accumulate(objective, rows, generation, scores, advantages, beta, ratios))
            norm = whole(torch.nn.utils.clip_grad_norm_(self._trained(), self.max_grad_norm))
            norms.append(norm.item())
            if not torch.isfinite(norm):
                break
            self.optimiser.step()
            self.optimiser.zero_grad()
        bad = sum((~local(p).isfinite()).sum() for p in self._trained())
        policy, kl = torch.stack(losses).double().mean(0).tolist()
        return {
            "loss": policy + beta * kl,
            "loss/policy": policy,
            "loss/kl": kl,
            "grad_norm": sum(norms) / len(norms),
            "grad_norm_max": max(norms),
            "weights_finite": float(self.ranks.sum(torch.as_tensor(bad)).item() == 0),
            **ratios.metrics(self.ranks),
        }

    def _accumulate(
        self,
        objective: Objective,
        rows: Tensor,
        generation: Generation,
        scores: Scores,
        advantages: Tensor,
        beta: float,
        ratios: RatioStatistics,
    ) -> Tensor:
        """Add a minibatch's gradient, one micro-batch at a time. Returns its policy and KL loss, ``[2]``."""
        tokens = generation.tokens
        counts = objective.counts(tokens.lengths[rows])
        total = torch.zeros(2, device=advantages.device)
        own = micro_batches(tokens, rows[self.ranks.mine(len(rows))], self.micro_batch_size)
        for part, is_counted in self.ranks.in_step(own, rows, self.micro_batch_size):
            micro = tokens.rows(part)
            found = self._said(micro, part, scores)
            logprobs = found["logprobs"]
            old = scores.old_logprobs[part]
            terms = objective.terms(
                logprobs,
                old,
                scores.ref_logprobs[part],
                generation.sampler_logprobs[part],
                advantages[part],
                micro.mask,
                found.get("exact_kl"),
            )
            share = objective.aggregate(terms, micro.lengths, counts, self.max_length)
            (is_counted * (share.policy + beta * share.kl)).backward()
            if is_counted:
                total += torch.stack(share).detach()
                ratios.add(logprobs, old, micro.mask, objective.algorithm)
        return self.ranks.sum(total)

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the loss needs of the policy."""
        return ("logprobs", "exact_kl") if self.objective.loss_needs_distributions else ("logprobs",)

    def _said(self, micro: Tokens, part: Tensor, scores: Scores) -> dict[Column, Tensor]:
        """What the policy says of a micro-batch, differentiable: what was kept of scoring it, or said anew."""
        if scores.kept is not None:
            return {column: values[part] for column, values in scores.kept.items()}
        reference = self.reference(micro) if self.objective.loss_needs_distributions else None
        return statistics(self.policy, micro, self.temperature, self.columns, reference)

    def _trained(self) -> list[Tensor]:
        """What the optimiser steps: not the network's own weights if those are bfloat16, see `Masters`."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
