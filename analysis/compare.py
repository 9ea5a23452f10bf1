"""The comparison: a row per cell, means over seeds with intervals, and no run that is hidden by a mean."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from klsweep.analysis import provenance
from klsweep.analysis.choose import chosen
from klsweep.analysis.load import Records, RunResult, load
from klsweep.analysis.metrics import ACCURACY, Metric, metric, suites_of
from klsweep.analysis.provenance import Kind, Provenance
from klsweep.analysis.stats import Estimate, t_interval
from klsweep.cells import describe
from klsweep.record.files import Row
from klsweep.record.folder import SweepFolder
from klsweep.record.origin import EXTERNAL, is_external
from klsweep.terminal import listed

NAMED = 6  # runs that a warning names; of more, how many
COLLAPSE_SHARE = 0.5  # a run collapsed if its accuracy on the trained task is below this share of the base's


@dataclass(frozen=True)
class Base:
    """A base model's accuracies under one evaluation; None where a suite was not asked. `run` has evaluated it.

    `model` is its name, with the origin of the evaluation if it is not klsweep's; `provenance`: in what all results of
    cells that began with it agree.
    """

    model: str
    suites: dict[str, float | None]
    run: RunResult
    provenance: Provenance


@dataclass(frozen=True)
class CellResult:
    """The runs of one cell whose results are comparable, and those of it that have none yet."""

    plan: Row
    name: str  # in words
    runs: list[RunResult]
    provenance: Provenance  # of its results, without the kinds that are mixed; empty without a result
    planned: int  # seeds of the cell, those whose results are kept apart from these among them

    @property
    def origins(self) -> set[str]:
        """Where its runs were made."""
        return {run.origin for run in self.runs}

    @cached_property
    def states(self) -> dict[str, int]:
        """Its planned runs by state."""
        return dict(Counter(run.status["state"] for run in self.runs))

    @property
    def n_seeds(self) -> int:
        """Seeds with a final evaluation: those that the means of evaluations are over."""
        return len({run.seed for run in self.runs if run.final_eval is not None})

    @property
    def collapsed(self) -> int:
        """Seeds whose accuracy on the trained task fell below COLLAPSE_SHARE of the base's."""
        return len({run.seed for run in self.runs if has_collapsed(run)})

    @property
    def ended(self) -> int:
        """Seeds with a run that ended by itself."""
        return sum(any(run.finished for run in runs) for runs in self.of_seeds.values())

    @property
    def diverged(self) -> int:
        """Seeds with a run that diverged."""
        return len({run.seed for run in self.runs if run.status["state"] == "diverged"})

    @property
    def base(self) -> RunResult | None:
        """A run that has evaluated the base."""
        return next((run for run in self.runs if run.base is not None), None)

    @cached_property
    def of_seeds(self) -> dict[int, list[RunResult]]:
        """Its runs by seed: one each, unless several results of one run are mixed."""
        found = defaultdict[int, list[RunResult]](list)
        for run in self.runs:
            found[run.seed].append(run)
        return dict(found)

    def by_seed(self, of: Metric) -> dict[int, float]:
        """A metric of each seed that has it. Several results of one run, if they are mixed, count as their mean."""
        found = {seed: [v for run in runs if (v := of.value(run)) is not None] for seed, runs in self.of_seeds.items()}
        return {seed: math.fsum(values) / len(values) for seed, values in found.items() if values}

    def estimate(self, of: Metric) -> Estimate | None:
        """Mean over seeds with its t interval."""
        return t_interval(list(self.by_seed(of).values()))


@dataclass(frozen=True)
class Comparison:
    """All cells of some sweeps, the bases they started from, and what a reader must know before trusting them."""

    records: Records
    sweep: str  # paths as they were given
    suites: dict[str, str]  # name → "in", "out", or "mixed" if it depends on the cell
    states: dict[str, int]
    bases: list[Base]
    cells: list[CellResult]
    mixed: frozenset[Kind] = frozenset()
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def _logged(self) -> list[str]:
        return self.records.metric_names

    def metric(self, name: str) -> Metric:
        """A metric by name, see `metrics.metric`."""
        return metric(name, self.suites, self._logged)

    @cached_property
    def usual(self) -> Provenance:
        """What most cells' results were made with; empty without results, or if nothing is kept apart."""
        found = Counter(tuple(cell.provenance.items()) for cell in self.cells if cell.provenance)
        return dict(found.most_common(1)[0][0]) if found else {}

    @property
    def n_cells(self) -> int:
        """Planned cells; one whose results are kept apart is one all the same."""
        return len({cell.plan["cell_id"] for cell in self.cells})


def compare(
    *sweeps: SweepFolder, records: Records | None = None, where: Sequence[str] = (), mix: Sequence[str] = ()
) -> Comparison:
    """Compare the runs of sweeps, finished or not. `records` if those have been read already.

    `where` chooses runs (see `choose.conditions`). Results of one cell that differ in what `provenance` tells are rows
    apart, unless `mix` names the kind of difference. BadInput for a choice that is not there.
    """
    mixed = provenance.checked(mix)
    records = records or load(sweeps)
    runs = chosen(records.runs, where)
    found = provenance.provenances(runs)
    suites = _suite_roles(runs)
    cells = _cells(runs, found, mixed)
    return Comparison(
        records=records,
        sweep=", ".join(dict.fromkeys(str(sweep.path) for sweep in sweeps)),
        suites=suites,
        states=dict(Counter(run.status["state"] for run in runs)),
        bases=_bases(cells, suites),
        cells=cells,
        mixed=mixed,
        warnings=[*provenance.warnings(found, mixed), *_warnings(runs, records.repeated)],
    )


def _cells(runs: Sequence[RunResult], found: Sequence[Provenance], mixed: Collection[Kind]) -> list[CellResult]:
    """Cells in the order of their plan, one per kind of result.

    A run without a result stands with those that were evaluated as it will be, else with the cell's first.
    """
    names = describe([run.plan for run in runs])
    by_cell = defaultdict[str, list[tuple[RunResult, Provenance]]](list)
    for run, own in zip(runs, found, strict=True):
        by_cell[run.plan["cell_id"]].append((run, {kind: own[kind] for kind in own if kind not in mixed}))
    cells = []
    for cell_id, members in by_cell.items():
        groups = provenance.distinct(own for _, own in members if own) or [{}]
        planned = len({run.seed for run, _ in members})
        for group in groups:
            own = [run for run, made in members if _home(run, made, groups) == group]
            cells.append(CellResult(members[0][0].plan, names[cell_id], own, group, planned))
    return cells


def _home(run: RunResult, made: Provenance, groups: Sequence[Provenance]) -> Provenance:
    """Where a run belongs: one without a result by how it will be evaluated."""
    known = made or {"evaluation": run.status.get("eval_id") or run.plan["eval_id"]}
    return next((group for group in groups if provenance.agree(known, group)), groups[0])


def _suite_roles(runs: Sequence[RunResult]) -> dict[str, str]:
    """Suites and their role, the trained task's first."""
    roles = defaultdict[str, set[str]](set)
    for run in runs:
        for name, role in run.plan["suites"].items():
            roles[name].add(role)
    single = {name: found.pop() if len(found) == 1 else "mixed" for name, found in roles.items()}
    return dict(sorted(single.items(), key=lambda item: ("in", "mixed", "out").index(item[1])))


def _bases(cells: Sequence[CellResult], suites: Collection[str]) -> list[Base]:
    found = dict[str, list[tuple[RunResult, str, Provenance]]]()
    for cell in cells:
        if (run := cell.base) is not None:
            accuracies = {s: run.base_evaluation(s, ACCURACY) for s in suites}
            model = run.plan["axes"]["model"] + (f" {EXTERNAL}" if is_external(run.plan) else "")
            found.setdefault(repr((model, accuracies)), []).append((run, model, cell.provenance))
    bases = list[Base]()
    for members in found.values():
        run, model, made = members[0]
        common: Provenance = {k: v for k, v in made.items() if all(other.get(k) == v for *_, other in members)}
        accuracies = {s: run.base_evaluation(s, ACCURACY) for s in suites}
        bases.append(Base(model, accuracies, run, common))
    return bases


def has_collapsed(run: RunResult) -> bool:
    """True if a run ended far below the base on the trained task."""
    pairs = [(run.evaluation(s, ACCURACY), run.base_evaluation(s, ACCURACY)) for s in suites_of(run, "in")]
    return any(now is not None and base is not None and now < COLLAPSE_SHARE * base for now, base in pairs)


def _warnings(runs: Sequence[RunResult], repeated: int) -> list[str]:
    """What makes a result less than it seems, besides what `provenance` tells."""
    warnings = []
    if failing := [errors for run in runs if (errors := run.verifier_errors)]:
        text = f"verifiers could not grade {sum(failing)} responses in {len(failing)} runs; those count as wrong"
        warnings.append(text)
    if untold := [run.key.run_id for run in runs if run.verifier_errors is None]:
        names = listed(untold, NAMED)
        warnings.append(f"how many responses could not be graded is not known of {names}: its errors.jsonl is damaged")
    warnings += [f"{run.key.run_id} is as good as without result: {run.damage}" for run in runs if run.damage]
    if repeated:
        warnings.append(f"{repeated} runs are in several of these sweeps and count once")
    return warnings
