"""The findings of the two papers against runs of the shipped model: a row per finding, decided by one rule."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from klsweep.analysis.claims import OFF_POLICY, ON_POLICY, REWARD_SHIFT, Claim, OutOfReach
from klsweep.analysis.compare import CellResult, Comparison
from klsweep.analysis.decision import Decision, Verdict, decide
from klsweep.analysis.exact_claims import HOLDS, AuditRow, Exact, Simulated, audited, computed, simulated
from klsweep.analysis.measures import Absent, Mean, Measured
from klsweep.analysis.table import PARTIAL, p_text

COMEDY = "A Comedy of Estimators"
SHIFT = "Generalisation under reward shift and clipped KL"
Asked = Claim | OutOfReach
PARTS: Sequence[tuple[str, Sequence[Asked]]] = (
    (f"{COMEDY}: on policy", ON_POLICY),
    (f"{COMEDY}: off policy, rollouts ten updates old", OFF_POLICY),
    (f"{SHIFT}: runs", REWARD_SHIFT),
)


@dataclass(frozen=True)
class Row:
    """A finding, what was measured for it, and what that says. `measured` is None where nothing was, `reason` why."""

    claim: Asked
    measured: Measured | None
    reason: str
    decision: Decision


@dataclass(frozen=True)
class Reproduction:
    """All rows by part; the rows without chance; how the bound fared in a simulation."""

    comparison: Comparison
    parts: dict[str, list[Row]]
    gradients: list[Exact]
    numbers: list[Exact]
    simulated: Simulated
    simulated_decision: Decision

    @property
    def cells(self) -> list[CellResult]:
        """The cells that claims are about, in the order of their first use; rows number them from 1."""
        by_id = {cell.plan["cell_id"]: cell for cell in self.comparison.cells}
        used = [row.measured for rows in self.parts.values() for row in rows if row.measured]
        return [by_id[name] for name in dict.fromkeys(i for one in used for i in (*one.cells, *one.against))]

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How many findings came out how, those without chance apart."""
        rows = [row.decision for rows in self.parts.values() for row in rows]
        return Counter(decision.verdict for decision in [*rows, self.simulated_decision])


def reproduce(
    comparison: Comparison, audit_rows: Sequence[AuditRow], asked: Sequence[tuple[str, Sequence[Asked]]] = PARTS
) -> Reproduction:
    """Measure every claim on these sweeps and decide them all together; `audit_rows`: see `exact_claims.audited`."""
    claims = [claim for _, members in asked for claim in members]
    found = [_measured(claim, comparison) for claim in claims]
    draws = simulated()
    decisions = decide([*(one.tails if isinstance(one, Measured) else None for one in found), draws.tails])
    rows = [
        Row(claim, one, "", decision) if isinstance(one, Measured) else Row(claim, None, one, decision)
        for claim, one, decision in zip(claims, found, decisions[:-1], strict=True)
    ]
    parts, start = dict[str, list[Row]](), 0
    for title, members in asked:
        parts[title] = rows[start : start + len(members)]
        start += len(members)
    return Reproduction(comparison, parts, audited(audit_rows), computed(), draws, decisions[-1])


def _measured(claim: Asked, comparison: Comparison) -> Measured | str:
    """What was measured, or why nothing was."""
    if isinstance(claim, OutOfReach):
        return claim.reason
    try:
        return claim.measure(comparison, claim.region)
    except Absent as reason:
        return str(reason)


HEADER = ["finding", "measured", "cells", "runs", "figure (95 % interval)", "holds if", "p", "verdict"]
EXACT_HEADER = ["finding", "said", "klsweep", "verdict"]


def grid(found: Reproduction, rows: Sequence[Row]) -> list[list[str]]:
    """Rows as text, under HEADER."""
    numbers = {cell.plan["cell_id"]: str(i) for i, cell in enumerate(found.cells, 1)}
    return [_line(row, numbers) for row in rows]


def _line(row: Row, numbers: dict[str, str]) -> list[str]:
    verdict = row.decision.verdict
    if row.measured is None or isinstance(row.claim, OutOfReach):
        return [row.claim.finding, f"nothing: {row.reason}", "", "", "", "", "", verdict]
    one, claim = row.measured, row.claim
    names = ", ".join(numbers[i] for i in one.cells)
    names += f" less {', '.join(numbers[i] for i in one.against)}" if one.against else ""
    runs = f"{one.n}/{one.planned}{PARTIAL * (one.n < one.planned)}"
    p = "" if row.decision.p is None else p_text(row.decision.p).removeprefix("p=").removeprefix("p")
    return [claim.finding, claim.measured, names, runs, _figure(one, claim), str(claim.region), p, verdict]


def _figure(one: Measured, claim: Claim) -> str:
    if one.happened is not None:
        return f"{one.happened} of {one.n}" + ("" if one.low is None else f" ({one.low:.2f} to {one.high:.2f})")
    digits = 1 if isinstance(claim.measure, Mean) and claim.measure.percent else 3
    interval = "" if one.low is None else f" ({one.low:+.{digits}f} to {one.high:+.{digits}f})"
    return f"{one.value:+.{digits}f}{interval}"


def simulated_line(found: Reproduction) -> list[str]:
    """The simulation's row, under HEADER."""
    one, decision = found.simulated, found.simulated_decision
    ratios = ", ".join(f"{ratio:.1f}" for ratio in one.ratios)
    measured = "share of simulated batches, J* known, α the paper's; 95 % quantile of the gap exceeded "
    measured += f"{ratios} times at (n, K) = (64, 4), (512, 16), (5000, 5)"
    p = "" if decision.p is None else p_text(decision.p).removeprefix("p=").removeprefix("p")
    figure = f"{one.held} of {one.draws}"
    return ["The bound holds with probability 1 − δ = 0.95", measured, "", "", figure, str(HOLDS), p, decision.verdict]


def exact_grid(rows: Sequence[Exact]) -> list[list[str]]:
    """Rows as text, under EXACT_HEADER."""
    return [[row.finding, row.said, row.found, "agrees" if row.agrees else "does not"] for row in rows]


def as_objects(found: Reproduction) -> list[dict[str, Any]]:
    """Every row with its numbers, for programs."""
    rows = [{"part": part, **_object(row)} for part, members in found.parts.items() for row in members]
    draws, words = found.simulated, {"part": SHIFT, "finding": simulated_line(found)[0]}
    rows.append({**words, **draws._asdict(), **found.simulated_decision._asdict()})
    exact = [("gradients", found.gradients), ("numbers", found.numbers)]
    return [*rows, *({"part": part, **one._asdict()} for part, members in exact for one in members)]


def _object(row: Row) -> dict[str, Any]:
    if row.measured is None or isinstance(row.claim, OutOfReach):
        return {"finding": row.claim.finding, "reason": row.reason, **row.decision._asdict()}
    asked = {"finding": row.claim.finding, "asked": row.claim.measured, "holds_if": str(row.claim.region)}
    return {**asked, **row.measured._asdict(), **row.decision._asdict()}
