"""What of a run's responses is kept to be looked at: the base's first ones, probes, and the batches of a divergence.

Nothing here changes a result: the base is judged by the first batch, which it has sampled anyway, and probes have draws
of their own.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.model.policy import Policy, Scores
from klsweep.objective.objective import Objective
from klsweep.record.files import Row, rows_text, write_text
from klsweep.record.folder import Attempt
from klsweep.record.rollouts import Kind, base_lines, base_summary, rollout_file
from klsweep.rollout.engine import Rollout
from klsweep.training.evaluate import EXAMPLES, ungraded
from klsweep.training.trainer import Trainer

BASE_SHOWN = 10
BATCHES_KEPT = 2
TOKENS_KEPT = 2**17  # of a batch: its JSON is then about 10 MB
PROBE_BYTES = 2**28  # of probes.jsonl: no more probes beyond
EXCERPT = 500


class Batch(NamedTuple):
    """Responses with what training made of them; `scores` are of the policy before the update."""

    rollout: Rollout
    scores: Scores
    advantages: Tensor


class Witness:
    """Writes `rollouts/` of a run; see `klsweep.record.rollouts` for the files."""

    def __init__(self, spec: RunSpec, attempt: Attempt, trainer: Trainer) -> None:
        self._spec, self._attempt, self._trainer = spec, attempt, trainer
        self._last: deque[Batch] = deque(maxlen=BATCHES_KEPT)
        attempt.folder.rollouts.mkdir(exist_ok=True)
        self._path("last_batches").unlink(missing_ok=True)  # of an attempt that was killed while it ended
        self.logs = [self._path("probes"), self._path("errors")]  # for `begin_logs`

    def _path(self, kind: Kind) -> Path:
        return rollout_file(self._attempt.folder, kind)

    def sees_base(self, rollout: Rollout) -> str | None:
        """Show and judge the first batch; why the run is not to be trained, None if it is."""
        trouble = None if self._spec.train.base_check == "off" else base_trouble(rollout)
        base: Row = {
            "responses": len(rollout.grades),
            "right": sum(grade.correct for grade in rollout.grades) / len(rollout.grades),
            "truncated": rollout.generation.truncated.double().mean().item(),
            "trouble": trouble,
        }
        rows = list(self._shown_of_base(rollout))
        self._attempt.check()
        write_text(self._path("base"), rows_text(rows))
        self._attempt.note(base=base)
        print(base_summary(base), *base_lines(rows), sep="\n", flush=True)
        if trouble is None or self._spec.train.base_check == "warn":
            return None
        return f"train.base_check=refuse: {trouble} (train.base_check=warn trains all the same; rollouts/base.jsonl)"

    def _shown_of_base(self, rollout: Rollout) -> Iterator[Row]:
        """One response to each of the first prompts, then another if there are fewer prompts than that."""
        groups, group_size = len(rollout.prompts), self._spec.algorithm.group_size
        texts = self._trainer.policy.decode(rollout.generation.tokens.response_ids)
        for i in range(min(BASE_SHOWN, len(texts))):
            yield self._described(rollout, texts, (i % groups) * group_size + i // groups)

    def _described(self, rollout: Rollout, texts: Sequence[str], place: int) -> Row:
        group, sample = divmod(place, self._spec.algorithm.group_size)
        grade = rollout.grades[place]
        return {
            "update": rollout.update,
            "version": rollout.version,
            "item": rollout.prompts[group],
            "sample": sample,
            "prompt": self._spec.task.train_items()[rollout.prompts[group]].prompt,
            "response": texts[place],
            **grade._asdict(),
            "truncated": bool(rollout.generation.truncated[place]),
            "reward": rollout.rewards[place].item(),
        }

    def sees(self, rollout: Rollout, scores: Scores, advantages: Tensor) -> None:
        """An update's batch: remember it in case it is among the last, and note what could not be graded."""
        self._last.append(Batch(rollout, scores, advantages))
        errors = [place for place, grade in enumerate(rollout.grades) if grade.error is not None]
        if errors:
            texts = self._trainer.policy.decode(rollout.generation.tokens.response_ids)
            rows = [self._described(rollout, texts, place) for place in errors[:EXAMPLES]]
            examples = [{key: str(row[key])[:EXCERPT] for key in ("prompt", "response", "error")} for row in rows]
            row = {"update": rollout.update, "where": "training", "errors": len(errors), "examples": examples}
            self._attempt.append(self._path("errors"), [row])

    def sees_evaluation(self, update: int, rows: dict[str, list[Row]]) -> None:
        """An evaluation: note what could not be graded."""
        self._attempt.append(self._path("errors"), ungraded(update, rows))

    def probe(self, update: int, objective: Objective, beta: float) -> None:
        """After an update: ask the probe prompts, if it is their turn. `beta`: that of the KL in the reward."""
        every, path = self._spec.train.probe_every, self._path("probes")
        if not every or update % every or path.stat().st_size > PROBE_BYTES:
            return
        try:
            rollout = self._trainer.probe(update)
        except FloatingPointError:  # nor can the next batch be sampled, and the run ends as diverged there
            return
        tokens = rollout.generation.tokens
        scores = self._trainer.score(tokens)
        advantages = objective.advantages(
            rollout.rewards, scores.old_logprobs, scores.ref_logprobs, tokens.mask, beta, scores.exact_kl
        )
        batch = Batch(rollout, scores, advantages)
        self._attempt.append(path, self._rows(batch, scores.old_logprobs, range(len(rollout.rewards))))

    def diverged(self) -> None:
        """Write the last batches, with what the policy says of them now that it has diverged."""
        rows: list[Row] = []
        for batch in self._last:
            logprobs = self._trainer.score(batch.rollout.generation.tokens).old_logprobs
            rows += self._rows(batch, logprobs, kept_places(batch, self._spec.algorithm.group_size))
        self._attempt.check()
        write_text(self._path("last_batches"), rows_text(rows))

    def _rows(self, batch: Batch, logprobs: Tensor, places: Sequence[int]) -> list[Row]:
        rollout, scores, tokens = batch.rollout, batch.scores, batch.rollout.generation.tokens
        policy = self._trainer.policy
        texts = policy.decode(tokens.response_ids)
        per_token: dict[str, Tensor] = {
            "logprobs": logprobs,
            "old_logprobs": scores.old_logprobs,
            "sampler_logprobs": rollout.generation.sampler_logprobs,
            "ref_logprobs": scores.ref_logprobs,
            "advantage": batch.advantages.expand_as(tokens.mask),
        }
        rows = []
        for place in places:
            length = int(tokens.lengths[place])
            ids = tokens.response_ids[place, :length]
            prompt = tokens.prompt_ids[place][tokens.prompt_mask[place].bool()]
            numbers = {name: _numbers(values[place, :length]) for name, values in per_token.items()}
            row = self._described(rollout, texts, place)
            rows.append({**row, "prompt_ids": prompt.tolist(), "response_ids": ids.tolist()})
            rows[-1] |= {"tokens": _pieces(policy, ids), **numbers}
        return rows


def base_trouble(rollout: Rollout) -> str | None:
    """Why training on the base's first batch would be in vain, None if it would not.

    All responses right, or none, and their rewards equal: no group has a signal. Or most are cut off before their end.
    """
    responses, right = len(rollout.grades), sum(grade.correct for grade in rollout.grades)
    truncated = int(rollout.generation.truncated.sum())
    if 2 * truncated > responses:
        length = rollout.generation.tokens.response_ids.shape[1]
        return f"{truncated} of the base's first {responses} responses are cut off after {length} tokens"
    rewards = rollout.rewards
    if right in (0, responses) and bool((rewards == rewards[0]).all()):
        share = "none" if right == 0 else "all"
        return f"{share} of the base's first {responses} responses is right, and every reward is {rewards[0].item():g}"
    return None


def kept_places(batch: Batch, group_size: int) -> list[int]:
    """Places of the responses to keep: whole groups, those with the largest |ℓ_t| first, while there is room."""
    ref_log_ratio = (batch.scores.old_logprobs - batch.scores.ref_logprobs) * batch.rollout.generation.tokens.mask
    size = torch.nan_to_num(ref_log_ratio.abs(), nan=torch.inf).amax(1).view(-1, group_size).amax(1)
    lengths = batch.rollout.generation.tokens.lengths.view(-1, group_size).sum(1)
    order = size.argsort(descending=True, stable=True)
    kept = order[lengths[order].cumsum(0) <= TOKENS_KEPT].sort().values.tolist()
    return [group * group_size + sample for group in kept for sample in range(group_size)]


def _numbers(values: Tensor) -> list[float | None]:
    """The shortest decimals that are these float32 numbers; null for those that JSON does not have."""
    finite = values.isfinite().tolist()
    return [float(str(x)) if ok else None for x, ok in zip(values.float().cpu().numpy(), finite, strict=True)]


def _pieces(policy: Policy, ids: Tensor) -> list[str]:
    """The text of each token, special ones included."""
    return [policy.tokenizer.decode([token]) for token in ids.tolist()]
