"""What was planned and what became of it: the head of every output."""

from collections import defaultdict
from collections.abc import Sequence

from klsweep.analysis.compare import CellResult, Comparison
from klsweep.record.origin import is_external
from klsweep.terminal import listed

NAMED = 6  # cells that are named; of more, how many


def coverage_lines(comparison: Comparison) -> list[str]:
    """Planned runs by state; then, unless all have a result, cells with fewer results than planned and with none.

    Results that are kept apart do not add up: what a cell has is what the fullest of its rows is over.
    """
    states = ", ".join(f"{count} {state}" for state, count in comparison.states.items()) or "nothing is planned"
    left_out = len(comparison.records.runs) - sum(comparison.states.values())
    head = f"{comparison.sweep}: {comparison.n_cells} cells, {sum(comparison.states.values())} runs: {states}"
    external = sum(is_external(run.plan) for cell in comparison.cells for run in cell.runs)
    head += f" ({external} external)" if external else ""
    lines = [head + (f" ({left_out} runs left out by --where)" if left_out else "")]
    rows = defaultdict[str, list[CellResult]](list)
    for cell in comparison.cells:
        rows[cell.plan["cell_id"]].append(cell)
    fullest = [max(same, key=lambda cell: cell.n_seeds) for same in rows.values()]
    missing = [cell for cell in fullest if not cell.n_seeds]
    partial = [cell for cell in fullest if 0 < cell.n_seeds < cell.planned]
    if missing or partial:
        parts = [f"{len(fullest) - len(missing) - len(partial)} have all their results"]
        parts += [f"{len(partial)} have fewer than planned ({_named(partial)})"] if partial else []
        parts += [f"{len(missing)} have none ({_named(missing)})"] if missing else []
        lines.append(f"of {len(fullest)} cells {'; '.join(parts)}")
    return lines


def _named(cells: Sequence[CellResult]) -> str:
    return listed([cell.name for cell in cells], NAMED)
