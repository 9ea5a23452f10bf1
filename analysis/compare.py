"""The comparison: a row per cell, means over seeds with intervals, and no run that is hidden by a mean."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from klsweep.analysis.load import RunResult, load
from klsweep.analysis.stats import Estimate, t_interval
from klsweep.record.files import Row
from klsweep.record.folder import SweepFolder

ACCURACY = "pass@1"
COLLAPSE_SHARE = 0.5  # a run collapsed if its accuracy on the trained task is below this share of the base's


@dataclass(frozen=True)
class Base:
    """A base model's accuracies under one evaluation; None where a suite was not asked."""

    model: str
    suites: dict[str, float | None]


@dataclass(frozen=True)
class CellResult:
    """One cell. `states` counts its planned runs; estimates are over the finished ones that have the figure.

    `n_seeds` counts the runs with a final evaluation: those that the means are over.
    """

    plan: Row
    states: dict[str, int]
    n_seeds: int
    collapsed: int
    base: Base | None
    suites: dict[str, Estimate | None]
    in_distribution: Estimate | None
    out_of_distribution: Estimate | None
    kl: Estimate | None
    reward: Estimate | None

    @property
    def planned(self) -> int:
        return sum(self.states.values())


@dataclass(frozen=True)
class Comparison:
    """All cells of a sweep, the base they started from, and what a reader must know before trusting them."""

    sweep: str
    suites: dict[str, str]  # name → "in", "out", or "mixed" if it depends on the cell
    states: dict[str, int]
    bases: list[Base]
    cells: list[CellResult]
    warnings: list[str] = field(default_factory=list)


def compare(sweep: SweepFolder) -> Comparison:
    """Collect a sweep's records, finished or not."""
    runs = load([sweep]).runs
    cells: dict[str, list[RunResult]] = {}
    for run in runs:
        cells.setdefault(run.plan["cell_id"], []).append(run)
    roles: dict[str, set[str]] = {}
    for run in runs:
        for name, role in run.plan["suites"].items():
            roles.setdefault(name, set()).add(role)
    suites = {name: found.pop() if len(found) == 1 else "mixed" for name, found in roles.items()}
    results = [_cell(members, suites) for members in cells.values()]
    bases = {repr(cell.base): cell.base for cell in results if cell.base is not None}
    return Comparison(
        sweep=str(sweep.path),
        suites=dict(sorted(suites.items(), key=lambda item: ("in", "mixed", "out").index(item[1]))),
        states=dict(Counter(run.status["state"] for run in runs)),
        bases=list(bases.values()),
        cells=results,
        warnings=_warnings(runs),
    )


def _cell(runs: Sequence[RunResult], suites: dict[str, str]) -> CellResult:
    plan = runs[0].plan
    roles = plan["suites"]
    inside = [s for s in suites if roles.get(s) == "in"]
    outside = [s for s in suites if roles.get(s) == "out"]
    evaluated = next((run for run in runs if run.base is not None), None)
    base = None
    if evaluated is not None:
        base = Base(plan["axes"]["model"], {s: evaluated.base_evaluation(s, ACCURACY) for s in suites})
    return CellResult(
        plan=plan,
        states=dict(Counter(run.status["state"] for run in runs)),
        n_seeds=sum(run.final_eval is not None for run in runs),
        collapsed=sum(_collapsed(run, inside) for run in runs),
        base=base,
        suites={s: _over(runs, lambda run, s=s: run.evaluation(s, ACCURACY)) for s in suites},
        in_distribution=_over(runs, lambda run: _suite_mean(run, inside, ACCURACY)),
        out_of_distribution=_over(runs, lambda run: _suite_mean(run, outside, ACCURACY)),
        kl=_over(runs, lambda run: _suite_mean(run, inside, "kl")),
        reward=_over(runs, lambda run: run.training("reward/mean")),
    )


def _over(runs: Sequence[RunResult], figure: Callable[[RunResult], float | None]) -> Estimate | None:
    return t_interval([value for run in runs if (value := figure(run)) is not None])


def _suite_mean(run: RunResult, suites: Sequence[str], metric: str) -> float | None:
    """Mean over suites within one run: the run stays the unit of the interval."""
    values = [run.evaluation(suite, metric) for suite in suites]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _collapsed(run: RunResult, inside: Sequence[str]) -> bool:
    pairs = [(run.evaluation(s, ACCURACY), run.base_evaluation(s, ACCURACY)) for s in inside]
    return any(now is not None and base is not None and now < COLLAPSE_SHARE * base for now, base in pairs)


def _warnings(runs: Sequence[RunResult]) -> list[str]:
    """What would make two rows incomparable, or a figure less than it seems."""
    checks = {
        "evaluation settings": {str(run.status.get("eval_id")) for run in runs if run.finished},
        "science-code hashes": {str(run.status.get("science_hash")) for run in runs if run.finished},
        "plugin-code hashes": {str(run.status.get("plugin_hash")) for run in runs if run.finished},
    }
    warnings = [
        f"finished runs have {len(found)} different {what} ({', '.join(sorted(found))}): rows may not be comparable"
        for what, found in checks.items()
        if len(found) > 1
    ]
    if failing := [run for run in runs if run.verifier_errors]:
        total = sum(run.verifier_errors for run in failing)
        warnings.append(f"verifiers could not grade {total} responses in {len(failing)} runs; those count as wrong")
    return warnings
