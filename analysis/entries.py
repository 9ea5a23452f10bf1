"""What fills a column: from the groups of its rows to their entries. A row without such cells has None for a group."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from klsweep.analysis.compare import Comparison
from klsweep.analysis.external import OTHER_KL, kl_definitions
from klsweep.analysis.groups import Group
from klsweep.analysis.load import RunResult
from klsweep.analysis.metrics import Metric
from klsweep.analysis.paired import Difference, SeedsNeeded, best_of, holm, seeds_needed
from klsweep.analysis.stability import collapse, spikes
from klsweep.analysis.stats import bootstrap, wilson_interval
from klsweep.analysis.table import (
    ABSENT,
    BLANK,
    Entry,
    Mark,
    estimate_entry,
    over_runs,
    p_text,
    rate_entry,
    resampled_entry,
)

ALPHA = 0.05
LEARNED = "reward/correct"  # whose collapse during a run is looked for; it lies in [0, 1]
STRAINED = "grad_norm"  # whose spikes are

Groups = Sequence[Group | None]
Fill = Callable[[Groups], list[Entry]]


class Reference(Protocol):
    """What rows are held against."""

    def is_baseline(self, group: Group) -> bool: ...

    def against(self, group: Group) -> Group: ...

    def difference(self, group: Group, of: Metric) -> Difference | None: ...


def each(entry: Callable[[Group], Entry]) -> Fill:
    """A column whose entries do not depend on each other."""
    return lambda groups: [BLANK if group is None else entry(group) for group in groups]


def runs_entry(group: Group) -> Entry:
    """`2/3`: seeds with a final evaluation, of those planned."""
    return Entry(f"{group.evaluated}/{group.planned}", {"evaluated": group.evaluated, "planned": group.planned})


def outcome_entry(group: Group) -> Entry:
    """States other than done, and collapses; `done` if there is nothing to say."""
    states = defaultdict[str, int](int)
    for cell in group.cells:
        for state, count in cell.states.items():
            states[state] += count
    collapsed = sum(cell.collapsed for cell in group.cells)
    parts = [f"{count} {state}" for state, count in states.items() if state != "done"]
    parts += [f"collapsed {collapsed}/{group.evaluated}"] if collapsed else []
    return Entry(", ".join(parts) or "done", {**states, "collapsed": collapsed})


def divergence_entry(group: Group) -> Entry:
    """Share of seeds whose run diverged, of those whose run ended by itself."""
    ended = sum(cell.ended for cell in group.cells)
    return rate_entry(wilson_interval(sum(cell.diverged for cell in group.cells), ended), group.planned)


def collapse_entry(group: Group) -> Entry:
    """Share of runs that ended far below the base on the trained task, of those evaluated."""
    return rate_entry(wilson_interval(sum(cell.collapsed for cell in group.cells), group.evaluated), group.planned)


def metrics(of: Metric) -> Fill:
    """Means with intervals; the best, and what cannot be told from it, are marked where higher is better.

    Rows are compared with those whose results may be mixed with theirs.
    """

    def fill(groups: Groups) -> list[Entry]:
        marks = _marks(of, groups) if of.higher_is_better is not None else {}
        return [BLANK if group is None else metric_entry(group, of, marks.get(i)) for i, group in enumerate(groups)]

    return fill


def metric_entry(group: Group, of: Metric, mark: Mark | None = None) -> Entry:
    """The mean of a metric over a group with its interval."""
    entry = estimate_entry(group.estimate(of), group.planned, mark, diverged=group.diverged(of))
    return told_kl(entry, group.runs, of)


def told_kl(entry: Entry, runs: Sequence[RunResult], of: Metric) -> Entry:
    """The entry of a KL says so if what these runs have is another's KL."""
    found = kl_definitions(of.key, runs) if entry is not ABSENT else []
    return replace(entry, text=entry.text + OTHER_KL, values={**entry.values, "definition": found}) if found else entry


def _marks(of: Metric, groups: Groups) -> dict[int, Mark]:
    """By place in the column."""
    comparable = defaultdict[str, dict[int, Group]](dict)
    for i, group in enumerate(groups):
        if group is not None:
            comparable[_provenance(group)][i] = group
    marks: dict[int, Mark] = {}
    for members in comparable.values():
        values = {i: values for i, group in members.items() if (values := group.by_seed(of))}
        found = best_of(values, ALPHA, highest=bool(of.higher_is_better)) if len(values) > 1 else None
        if found is not None:
            marks |= {i: "best" if i == found.best else "tied" for i in values if i in found.tied}
    return marks


def _provenance(group: Group) -> str:
    return repr(max((cell.provenance for cell in group.cells), key=len, default={}))


def differences(of: Metric, reference: Reference) -> Fill:
    """Paired differences from the reference, p by Holm over the column's rows."""

    def fill(groups: Groups) -> list[Entry]:
        found = [None if group is None else reference.difference(group, of) for group in groups]
        adjusted = holm([d and d.p for d in found])
        return [
            BLANK
            if group is None or reference.is_baseline(group)
            else _difference_entry(d, p, of, group, reference.against(group))
            for group, d, p in zip(groups, found, adjusted, strict=True)
        ]

    return fill


def _difference_entry(found: Difference | None, p: float | None, of: Metric, group: Group, other: Group) -> Entry:
    if found is None:
        return ABSENT
    planned = max(cell.planned for cell in group.cells)
    entry = estimate_entry(found.estimate, planned, sign=True, diverged=group.diverged(of) + other.diverged(of))
    values = {**entry.values, "p": found.p, "p_holm": p, "alone": found.alone, "baseline_alone": found.baseline_alone}
    entry = replace(entry, text=entry.text if p is None else f"{entry.text}, {p_text(p)}", values=values)
    return told_kl(entry, [*group.runs, *other.runs], of)


def seeds(of: Metric, reference: Reference, difference: float) -> Fill:
    """How many more seeds would find a difference from the reference that large, at the level that Holm begins with."""

    def fill(groups: Groups) -> list[Entry]:
        found = [None if group is None else reference.difference(group, of) for group in groups]
        tests = sum(d is not None for d in found)
        return [
            BLANK if group is None or reference.is_baseline(group) else _seeds_entry(d, difference, tests)
            for group, d in zip(groups, found, strict=True)
        ]

    return fill


def _seeds_entry(found: Difference | None, difference: float, tests: int) -> Entry:
    if found is None or not found.spread:  # one seed, or seeds that say nothing of how differences spread
        return ABSENT
    needed = seeds_needed(difference, found.spread, found.estimate.n, ALPHA / tests)
    return Entry(seeds_text(needed), needed._asdict())


def seeds_text(needed: SeedsNeeded) -> str:
    """`5 more (of 8; up to 19)`."""
    if needed.total is None:
        return "over 10,000"
    cautious = "over 10,000" if needed.cautious is None else f"{needed.cautious:,}"
    if not needed.more:
        return f"enough (up to {cautious})"
    return f"{needed.more:,} more (of {needed.total:,}; up to {cautious})"


def interquartile(of: Metric) -> Fill:
    """Interquartile mean over runs and the suites of a metric, with an interval that resamples seeds."""

    def entry(group: Group) -> Entry:
        of_seed = defaultdict[int, list[float]](list)
        runs = 0
        for cell in group.cells:
            for seed, same in cell.of_seeds.items():
                asked = [[run.evaluation(suite, of.key) for suite in of.suites(run)] for run in same]
                whole = [row for row in asked if row and None not in row]
                of_seed[seed] += np.mean(np.array(whole, float), axis=0).tolist() if whole else []
                runs += bool(whole)
        found = bootstrap([values for values in of_seed.values() if values])
        return resampled_entry(found and found._replace(n=runs), group.planned, group.diverged(of))

    return each(entry)


def trouble(comparison: Comparison) -> Fill:
    """What happened during runs: collapses of the share of right responses, and spikes of the gradient's norm."""
    learned, strained = comparison.records.series(LEARNED), comparison.records.series(STRAINED)

    def entry(group: Group) -> Entry:
        seeds = [runs for cell in group.cells for runs in cell.of_seeds.values()]
        found = [next((r.key for r in runs if r.key in learned or r.key in strained), None) for runs in seeds]
        logged = [key for key in found if key is not None]
        if not logged:
            return ABSENT
        falls = [found for key in logged if key in learned and (found := collapse(learned[key]))]
        jumps = [found for key in logged if key in strained and (found := spikes(strained[key]))]
        parts = []
        if falls:
            depth = _span([100 * fall.depth for fall in falls])
            back = sum(fall.recovered for fall in falls)
            when = _span([fall.update for fall in falls])
            parts.append(f"fell {_share(len(falls), len(logged))} at {when} by {depth} %, {back} recovered")
        if jumps:
            calm = sum(jump.settled for jump in jumps)
            when = _span([jump.first for jump in jumps])
            parts.append(f"spikes {_share(len(jumps), len(logged))} from {when}, {calm} settled")
        values = {"n": len(logged), "planned": group.planned}
        values |= {"fell": [f._asdict() for f in falls], "spikes": [j._asdict() for j in jumps]}
        return over_runs("; ".join(parts) or "none", values)

    return each(entry)


def _share(k: int, n: int) -> str:
    """`1/3 (6–79 %)`."""
    return rate_entry(wilson_interval(k, n), n).text


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
