"""What a row of a table is over: one cell, or several with the same labels; and what it is held against."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from klsweep.analysis.choose import Condition, cell_label
from klsweep.analysis.compare import CellResult, Comparison
from klsweep.analysis.load import RunResult
from klsweep.analysis.metrics import ITEM_SCORES, Metric
from klsweep.analysis.paired import BySeed, Difference, paired_difference
from klsweep.analysis.stats import Estimate, mean_of_means
from klsweep.analysis.store import RunKey


@dataclass(frozen=True)
class Group:
    """Cells that a row takes together, with equal weight each."""

    cells: Sequence[CellResult]

    @property
    def planned(self) -> int:
        return sum(cell.planned for cell in self.cells)

    @property
    def evaluated(self) -> int:
        """Runs with a final evaluation."""
        return sum(cell.n_seeds for cell in self.cells)

    @cached_property
    def runs(self) -> list[RunResult]:
        return [run for cell in self.cells for run in cell.runs]

    def estimate(self, of: Metric) -> Estimate | None:
        """Mean over cells of their means over seeds, and its interval over seeds."""
        return mean_of_means([cell.by_seed(of) for cell in self.cells])

    def diverged(self, of: Metric) -> int:
        """Seeds of cells whose run diverged, among those that the metric is over."""
        runs = [(run, cell.plan["cell_id"]) for cell in self.cells for run in cell.runs]
        fallen = [(run, cell_id) for run, cell_id in runs if run.status["state"] == "diverged"]
        return len({(cell_id, run.seed) for run, cell_id in fallen if of.value(run) is not None})

    def by_seed(self, of: Metric) -> BySeed:
        """The metric's mean over cells for each seed that all cells have."""
        return mean_by_seed([cell.by_seed(of) for cell in self.cells])


def mean_by_seed(cells: Sequence[BySeed]) -> BySeed:
    """Mean over cells of each seed that is in all of them."""
    common = set.intersection(*(set(cell) for cell in cells)) if cells else set[int]()
    return {seed: math.fsum(cell[seed] for cell in cells) / len(cells) for seed in sorted(common)}


class AgainstBase:
    """Differences of each run from the base model that it started from."""

    def is_baseline(self, group: Group) -> bool:
        """True if a row is the baseline itself."""
        return False

    def against(self, group: Group) -> Group:
        """No run is part of the baseline."""
        return Group([])

    def difference(self, group: Group, of: Metric) -> Difference | None:
        """Mean over cells of what their runs have gained; None for a metric of training, which the base has none of."""
        bases = [{run.seed: value for run in cell.runs if (value := of.base(run)) is not None} for cell in group.cells]
        return paired_difference(group.by_seed(of), mean_by_seed(bases))


class AgainstCell:
    """Differences from a baseline: of each cell from the one that is alike but for what the baseline says.

    Several cells may meet the baseline's conditions, `placement=none` on and off policy, say. A cell is then held
    against the one that has its own label on those axes. Results that are kept apart are not held against each other.
    """

    def __init__(self, comparison: Comparison, keys: Sequence[str], baseline: Sequence[Condition]) -> None:
        """`keys`: axes and fields in which cells differ."""
        self._comparison = comparison
        chosen = [c for c in comparison.cells if all(b.holds(cell_label(c.plan, b.key)) for b in baseline)]
        named = {condition.key for condition in baseline}
        self.context = [
            key for key in keys if key not in named and len({repr(cell_label(cell.plan, key)) for cell in chosen}) > 1
        ]
        self.names = list(dict.fromkeys(cell.name for cell in chosen))  # of the cells that meet the conditions
        self._ids = {cell.plan["cell_id"] for cell in chosen}
        self._by_place: dict[str, list[CellResult]] = {}
        for cell in chosen:
            self._by_place.setdefault(self._place(cell), []).append(cell)
        self._items: dict[tuple[str, str], dict[RunKey, dict[str, float]]] = {}

    def _place(self, cell: CellResult) -> str:
        return repr(([cell_label(cell.plan, key) for key in self.context], cell.provenance))

    def baseline(self, cell: CellResult) -> CellResult | None:
        """What a cell is held against, None if there is no such cell, or no single one."""
        found = self._by_place.get(self._place(cell), [])
        return found[0] if len(found) == 1 else None

    def is_baseline(self, group: Group) -> bool:
        """True if a row is the baseline itself."""
        return all(cell.plan["cell_id"] in self._ids for cell in group.cells)

    def against(self, group: Group) -> Group:
        """What a row is held against."""
        return Group([base for cell in group.cells if (base := self.baseline(cell)) is not None])

    def difference(self, group: Group, of: Metric) -> Difference | None:
        """Paired by seed, and over common items where two runs were not asked the same."""
        pairs = [(cell, self.baseline(cell)) for cell in group.cells]
        if self.is_baseline(group) or any(other is None for _, other in pairs):
            return None
        values = [self._values(cell, other, of) for cell, other in pairs if other is not None]
        return paired_difference(mean_by_seed([own for own, _ in values]), mean_by_seed([base for _, base in values]))

    def _values(self, cell: CellResult, other: CellResult, of: Metric) -> tuple[BySeed, BySeed]:
        own, base = cell.by_seed(of), other.by_seed(of)
        runs, others = ({run.seed: run for run in side.runs if run.finished} for side in (cell, other))
        for seed in own.keys() & base.keys() & runs.keys() & others.keys():
            suites = of.suites(runs[seed])
            if any(_asked_otherwise(runs[seed], others[seed], suite) for suite in suites):
                found = [self._on_common_items(runs[seed], others[seed], suite, of.key) for suite in suites]
                if None in found:
                    del own[seed], base[seed]
                else:
                    known = [pair for pair in found if pair is not None]
                    own[seed], base[seed] = (math.fsum(side) / len(known) for side in zip(*known, strict=True))
        return own, base

    def _on_common_items(self, run: RunResult, other: RunResult, suite: str, metric: str) -> tuple[float, float] | None:
        """A suite's metric of two runs over the prompts that both were asked, None if there are none."""
        if metric not in ITEM_SCORES:
            return None
        if (suite, metric) not in self._items:
            keys = [r.key for cell in self._comparison.cells for r in cell.runs]
            scores = self._comparison.records.item_scores(suite, ITEM_SCORES[metric], keys)
            self._items[suite, metric] = scores
        ours, theirs = (self._items[suite, metric].get(r.key, {}) for r in (run, other))
        common = sorted(ours.keys() & theirs.keys())
        if not common:
            return None
        first, second = (math.fsum(side[prompt] for prompt in common) / len(common) for side in (ours, theirs))
        return first, second


def _asked_otherwise(run: RunResult, other: RunResult, suite: str) -> bool:
    first, second = run.prompts.get(suite), other.prompts.get(suite)
    return first is not None and second is not None and first != second
