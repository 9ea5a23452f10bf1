"""The notes below a table: what its figures and marks mean."""

from collections.abc import Sequence

from klsweep.analysis import stability
from klsweep.analysis.compare import COLLAPSE_SHARE, Comparison
from klsweep.analysis.entries import Reference
from klsweep.analysis.external import external_notes
from klsweep.analysis.groups import AgainstCell
from klsweep.analysis.metrics import NOTES
from klsweep.analysis.stats import FEW_RUNS
from klsweep.analysis.table import DIVERGED, PARTIAL, Entry, Line, Table

ACCURACIES = "Accuracy: sampled pass@1, mean over runs (seeds) ± half of its 95 % t interval; (in): the trained task."
BEST = (
    "◆ best, ◇ not told from the best: no row is better on common seeds, paired t at 5 % / (rows − 1). "
    "With 95 % probability the truly best row is among the marked."
)
PARTIAL_NOTE = f"{PARTIAL} mean over fewer runs than planned (see runs)."
DIVERGED_NOTE = (
    f"{DIVERGED} over runs of which some diverged: an accuracy is what those had then, a training figure the mean of "
    "their last finite updates."
)
EQUAL_NOTE = "±0.000: those runs agree to the last digit, by chance if they are few; a difference then has no p."
TROUBLE = (
    f"trouble: fell, the share of right responses (mean of {stability.WINDOW} updates) to less than "
    f"{stability.DROP:g} of its best, beyond noise; recovered, ended at {stability.BACK:g} of it or more. spikes, a "
    f"gradient norm of more than {stability.SPIKE:g} times the median of {stability.BEFORE} updates, or not finite. "
    "k/n of the runs that have logged, 95 % interval by Wilson."
)


def notes(table: Table, comparison: Comparison, reference: Reference | None, pooled: bool) -> list[str]:
    """A line per thing to know, of the things that are in the table."""
    names = {column.name for column in table.columns}
    runs = [run for cell in comparison.cells for run in cell.runs]
    lines = [" ".join([ACCURACIES, *(text for name, text in NOTES.items() if name in names)])]
    lines += external_notes(names, runs)
    if "outcome" in names and any(cell.collapsed for cell in comparison.cells):
        lines.append(f"collapsed k/n: {_COLLAPSED}.")
    lines += sign_notes(table.rows)
    if pooled:
        lines.append(
            "Rows over several cells: the mean of the cells' means, each with the same weight; the interval is about "
            "seeds, which their cells share, not about which cells there are."
        )
    if any(entry.mark for line in table.rows for entry in line.entries):
        lines.append(BEST)
    if reference is not None:
        lines += _differences(reference, names)
    if "divergence" in names:
        lines.append("divergence: diverged of ended runs, 95 % interval by Wilson.")
    if "collapse" in names:
        lines.append(f"collapse: {_COLLAPSED}, of those evaluated; 95 % interval by Wilson.")
    if "trouble" in names:
        lines.append(TROUBLE)
    if names & {"iqm/in", "iqm/out"}:
        lines.append(
            "IQM: interquartile mean of pass@1 over runs and suites, 95 % interval by resampling whole runs; below "
            f"{FEW_RUNS} runs it is too narrow (of means, it covers 74 % at 3 runs, 85 % at 5, 90 % at 10)."
        )
    return lines


def sign_notes(rows: Sequence[Line]) -> list[str]:
    """What the signs behind entries mean, of those that are there."""
    entries = [entry for line in rows for entry in line.entries]
    partial = [PARTIAL_NOTE] if any(entry.partial for entry in entries) else []
    equal = [EQUAL_NOTE] if any(_is_by_chance_exact(entry) for entry in entries) else []
    return [*partial, *([DIVERGED_NOTE] if any(entry.diverged for entry in entries) else []), *equal]


def _is_by_chance_exact(entry: Entry) -> bool:
    """True for an interval of width zero, unless all runs are at an end of the scale."""
    low, high = entry.values.get("ci_low"), entry.values.get("ci_high")
    mean = entry.values.get("mean")
    return low is not None and low == high and mean is not None and mean not in (0.0, 1.0)


_COLLAPSED = f"accuracy on the trained task below {COLLAPSE_SHARE:g} of the base's in k of n runs"


def _differences(reference: Reference, names: set[str]) -> list[str]:
    """What rows are held against, and how."""
    line = "Δ: paired difference from the base model" if not isinstance(reference, AgainstCell) else ""
    if isinstance(reference, AgainstCell):
        line = f"Δ: paired difference from the baseline ({', '.join(reference.names)}"
        line += f"; each row from the one of its own {', '.join(reference.context)})" if reference.context else ")"
    lines = [f"{line} on common seeds ± half of the 95 % t interval; p two-sided, adjusted by Holm over the column."]
    if any(name.startswith("seeds ") for name in names):
        lines.append(
            "seeds: so many find the difference in 80 % of studies, two-sided paired t at 5 % / (tests in the column), "
            "if the spread of differences is as it seems; up to: if it is as large as its upper 80 % limit."
        )
    return lines
