"""Policies small enough to know exactly: a table of logits per position, given the token before.

A table is ``[T, V + 1, V]``: T positions, one row per previous token, row V for the start of the sequence. Everything
is float64 and in nats.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klsweep.errors import BadInput
from klsweep.objective.kl import exact_token_kl

KEYS = {"theta", "ref", "sampler", "eos"}
MOST_SEQUENCES = 2**20
MOST_LOGITS = 10**7
CHUNK = 2**15


@dataclass(frozen=True)
class Tables:
    """Logits of the policy θ, the reference and, for off-policy rows, the sampler μ; all ``[T, V + 1, V]``.

    `eos`: the token that ends a response, itself included; None: all responses have T tokens.
    """

    theta: Tensor
    ref: Tensor
    sampler: Tensor | None
    eos: int | None = None

    @property
    def length(self) -> int:
        """T."""
        return self.theta.shape[0]

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.theta.shape[2]

    def drawn_from(self, off_policy: bool) -> Tensor:
        """Logits of whoever samples."""
        assert self.sampler is not None or not off_policy
        return self.sampler if off_policy and self.sampler is not None else self.theta


def instance(length: int, vocabulary: int, eos: int | None = None) -> Tables:
    """θ = sin(1 + 3p + v), ref = cos(2p + v), sampler = ½ sin(1 + 3p + v) + 0.3 cos(pv), the same at every position.

    p is 0 at the start and 1 + the previous token after it.
    """
    p = torch.cat([torch.arange(vocabulary) + 1, torch.zeros(1, dtype=torch.long)]).double()[:, None]
    v = torch.arange(vocabulary).double()[None, :]
    theta, ref = torch.sin(1 + 3 * p + v), torch.cos(2 * p + v)
    sampler = 0.5 * theta + 0.3 * torch.cos(p * v)
    theta, ref, sampler = (table.expand(length, -1, -1).clone() for table in (theta, ref, sampler))
    return Tables(theta, ref, sampler, eos)


def load_tables(file: Path) -> Tables:
    """Read `theta`, `ref`, optionally `sampler` and `eos`, as JSON. BadInput unless equal tables of finite logits."""
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise BadInput(f"--policy={str(file)!r}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"--policy={str(file)!r}: not JSON ({error})") from error
    if not isinstance(content, dict) or not {"theta", "ref"} <= set(content) <= KEYS:
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise BadInput(
            f"--policy={str(file)!r}: expected the keys theta, ref and optionally sampler, eos; found {found}"
        )
    where = f"--policy={str(file)!r}: "
    names = [name for name in ("theta", "ref", "sampler") if name != "sampler" or content.get(name) is not None]
    tables = {name: _table(where + name, content[name]) for name in names}
    for name, table in tables.items():
        if table.shape != tables["theta"].shape:
            shapes = list(table.shape), list(tables["theta"].shape)
            raise BadInput(f"{where}{name}: shape {shapes[0]} is not that of theta, {shapes[1]}")
    eos = content.get("eos")
    check_eos(eos, tables["theta"].shape[2], f"{where}eos")
    return Tables(tables["theta"], tables["ref"], tables.get("sampler"), eos)


def check_eos(eos: object, vocabulary: int, name: str) -> None:
    """BadInput unless `eos` is None or a token."""
    if eos is not None and not (type(eos) is int and 0 <= eos < vocabulary):
        raise BadInput(f"{name}={eos}: expected a token, 0 to {vocabulary - 1}")


def _table(name: str, rows: Any) -> Tensor:
    try:
        table = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: expected nested lists [T][V + 1][V] of numbers, all of equal length") from error
    if table.ndim != 3 or table.shape[0] == 0 or table.shape[2] < 2 or table.shape[1] != table.shape[2] + 1:
        raise BadInput(
            f"{name}: shape {list(table.shape)}, expected [T][V + 1][V] with V of at least 2: a row per previous token "
            "and one for the start"
        )
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        t, p, v = bad[0].tolist()
        raise BadInput(f"{name}[{t}][{p}][{v}]={table[t, p, v].item()}: logits must be finite")
    return table


@dataclass(frozen=True)
class Batch:
    """Sequences with the probability (or 1/n) each stands for, and what the objective needs to know of them."""

    weights: Tensor  # [B]
    mask: Tensor  # [B, T] 1 up to the end of the response
    mean_length: float  # of all responses, not of the batch's
    cells: Tensor  # [B, T] index of the table row that token t was drawn from, among T·(V + 1)
    logprobs: Tensor  # [B, T]
    ref_logprobs: Tensor  # [B, T]
    sampler_logprobs: Tensor  # [B, T]
    exact_kl: Tensor  # [B, T]
    score: Tensor  # [B, T, V] ∂ log π(y_t) / ∂ logits of that row
    exact_score: Tensor  # [B, T, V] ∂ exact_kl_t / ∂ logits of that row


def every_sequence(tables: Tables, off_policy: bool) -> Iterator[Batch]:
    """All V^T sequences with their probabilities under whoever samples, in chunks."""
    total = tables.vocabulary**tables.length
    places = tables.vocabulary ** torch.arange(tables.length - 1, -1, -1)
    for start in range(0, total, CHUNK):
        index = torch.arange(start, min(start + CHUNK, total))
        tokens = index[:, None].div(places, rounding_mode="floor") % tables.vocabulary
        batch = describe(tables, tokens, off_policy)
        yield Batch(**{**vars(batch), "weights": batch.sampler_logprobs.sum(1).exp()})


def check_enumerable(length: int, vocabulary: int, otherwise: str) -> None:
    """BadInput if there are too many sequences to enumerate; `otherwise`: what to do then."""
    if length * math.log2(vocabulary) > math.log2(MOST_SEQUENCES):
        raise BadInput(
            f"V^T = {vocabulary}^{length} sequences are more than can be enumerated ({MOST_SEQUENCES}): {otherwise}"
        )


def check_size(length: int, vocabulary: int) -> None:
    """BadInput if the tables themselves are too large."""
    if length * vocabulary * (vocabulary + 1) > MOST_LOGITS:
        raise BadInput(f"--length={length} with --vocabulary={vocabulary}: tables of more than {MOST_LOGITS} logits")


def sampled(tables: Tables, off_policy: bool, count: int, generator: torch.Generator) -> Batch:
    """`count` independent sequences of whoever samples, each standing for 1/count."""
    probabilities = torch.softmax(tables.drawn_from(off_policy), -1)
    cumulative = probabilities.cumsum(-1)
    previous = torch.full((count,), tables.vocabulary)
    columns = []
    for t in range(tables.length):
        draws = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        previous = (draws > cumulative[t, previous, :-1]).sum(1)
        columns.append(previous)
    return describe(tables, torch.stack(columns, 1), off_policy)


def visits(log_probabilities: Tensor, eos: int | None) -> Tensor:
    """P_t(p), the probability that token t is drawn, and from row p. ``[T, V + 1, V]`` → ``[T, V + 1]``.

    Nothing is drawn after `eos`; the sum over p and t is the expected length.
    """
    length, rows, vocabulary = log_probabilities.shape
    going_on = torch.ones(vocabulary, dtype=log_probabilities.dtype)
    if eos is not None:
        going_on[eos] = 0.0
    current = torch.zeros(rows, dtype=log_probabilities.dtype)
    current[-1] = 1.0
    found = [current]
    for t in range(length - 1):
        following = (current @ log_probabilities[t].exp()) * going_on
        current = torch.cat([following, following.new_zeros(1)])
        found.append(current)
    return torch.stack(found)


def live(tokens: Tensor, eos: int | None) -> Tensor:
    """1 on tokens up to and including the first `eos`, 0 after it. ``[B, T]`` float64."""
    ended = torch.zeros_like(tokens) if eos is None else (tokens == eos).cumsum(1) - (tokens == eos).long()
    return (ended == 0).double()


def describe(tables: Tables, tokens: Tensor, off_policy: bool) -> Batch:
    """A batch of given sequences ``[B, T]``, each with weight 1/B.

    What follows the end of a response is drawn like the rest and masked: sums over all V^T sequences stay plain sums.
    """
    count, length = tokens.shape
    rows = torch.cat([torch.full((count, 1), tables.vocabulary), tokens[:, :-1]], 1)
    cells = torch.arange(length) * (tables.vocabulary + 1) + rows

    def distributions(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1).flatten(0, 1)[cells]

    log_p, log_q = distributions(tables.theta), distributions(tables.ref)
    log_mu = distributions(tables.drawn_from(off_policy))
    exact = exact_token_kl(log_p, log_q)

    def chosen(log_probabilities: Tensor) -> Tensor:
        return log_probabilities.gather(2, tokens[:, :, None]).squeeze(2)

    return Batch(
        weights=torch.full((count,), 1.0 / count, dtype=torch.float64),
        mask=live(tokens, tables.eos),
        mean_length=visits(torch.log_softmax(tables.drawn_from(off_policy), -1), tables.eos).sum().item(),
        cells=cells,
        logprobs=chosen(log_p),
        ref_logprobs=chosen(log_q),
        sampler_logprobs=chosen(log_mu),
        exact_kl=exact,
        score=torch.nn.functional.one_hot(tokens, tables.vocabulary) - log_p.exp(),
        exact_score=log_p.exp() * (log_p - log_q - exact[:, :, None]),
    )
