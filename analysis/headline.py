"""What a comparison says, in sentences. Each claims what a test has found, and says so where none has."""

from collections.abc import Iterator, Sequence

from klsweep.analysis.build import BASE_MODEL, Layout, build
from klsweep.analysis.compare import COLLAPSE_SHARE, Comparison
from klsweep.analysis.entries import ALPHA
from klsweep.analysis.provenance import NAMES, differing
from klsweep.analysis.table import Entry, Line, Table, p_text
from klsweep.terminal import listed

NAMED = 3  # cells or effects that a sentence names; of more, how many
WHERE = {"in": "in distribution", "out": "out of distribution"}


def usual_baseline(comparison: Comparison) -> list[str]:
    """What rows are held against unless the reader says: the cells without KL, else the model before training."""
    without = any(cell.plan["axes"].get("placement") == "none" for cell in comparison.cells)
    return ["placement=none"] if without else [BASE_MODEL]


def headline(comparison: Comparison, effects: Table, baseline: Sequence[str]) -> list[str]:
    """Sentences on results, the best, differences from the baseline, effects of axes, and runs that did not hold."""
    if not any(cell.n_seeds for cell in comparison.cells):
        return ["No run has a result yet." if comparison.cells else "Nothing is planned.", *_fallen(comparison)]
    table = build(comparison, Layout(columns=("in", "out"), metrics=("in", "out"), baseline=tuple(baseline)))
    against = " ".join(baseline) if list(baseline) != [BASE_MODEL] else "the model before training"
    lines = []
    if not any(cell.n_seeds > 1 for cell in comparison.cells):
        lines.append("No cell has results of two seeds: there is no interval, and no difference is claimed.")
    else:
        apart = differing([cell.provenance for cell in comparison.cells if cell.n_seeds])
        if apart:
            named = ", ".join(NAMES[kind] for kind in apart)
            lines.append(
                f"Results of different {named} are kept apart: none of all is best; the table marks each kind's."
            )
        for figure in WHERE:
            best = [] if apart else _best(comparison, table, figure)
            lines += [*best, *_differences(comparison, table, figure, against)]
        lines += _effects(effects)
    return [*lines, *_fallen(comparison)]


def _column(table: Table, name: str) -> list[tuple[Line, Entry]]:
    places = [i for i, column in enumerate(table.columns) if column.name == name]
    return [(line, line.entries[i]) for i in places for line in table.rows if line.cells]


def _name(comparison: Comparison, line: Line) -> str:
    names = {cell.plan["cell_id"]: cell.name for cell in comparison.cells}
    return names[line.cells[0]]


def _named(items: Sequence[str]) -> str:
    return listed(items, NAMED, "; ")


def _best(comparison: Comparison, table: Table, figure: str) -> Iterator[str]:
    """A sentence for the best of rows that may all be compared; of one row there is none."""
    found = _column(table, figure)
    best = [(line, entry) for line, entry in found if entry.mark == "best"]
    tied = [_name(comparison, line) for line, entry in found if entry.mark == "tied"]
    others = sum("mean" in entry.values for _, entry in found) - 1
    if not best:
        return
    ((line, entry),) = best
    claim = f"Highest mean accuracy {WHERE[figure]}: {_name(comparison, line)}, {entry.text}"
    test = "paired on common seeds, 5 % in all"
    if not tied:
        yield f"{claim}; {'the other row is' if others == 1 else f'all {others} others are'} told from it ({test})."
    elif len(tied) == others:
        rest = "the other row cannot" if others == 1 else f"none of the {others} others can"
        yield f"{claim}; {rest} be told from it ({test})."
    else:
        yield f"{claim}; of {others} others {len(tied)} cannot be told from it ({test}): {_named(tied)}."


def _differences(comparison: Comparison, table: Table, figure: str, against: str) -> Iterator[str]:
    found = [(line, entry) for line, entry in _column(table, f"Δ {figure}") if "p_holm" in entry.values]
    tested = [(line, entry) for line, entry in found if entry.values["p_holm"] is not None]
    if not tested:
        return
    parts = []
    for word, sign in (("higher", 1), ("lower", -1)):
        told = [
            (line, entry)
            for line, entry in tested
            if entry.values["p_holm"] < ALPHA and sign * entry.values["mean"] > 0
        ]
        told.sort(key=lambda pair: -abs(pair[1].values["mean"]))
        named = f" ({_named([f'{_name(comparison, line)} {entry.text}' for line, entry in told])})" if told else ""
        parts.append(f"{len(told)} {word}{named}")
    rest = sum(entry.values["p_holm"] >= ALPHA for _, entry in tested)
    yield (
        f"Against {against}, {WHERE[figure]}, on common seeds: {', '.join(parts)}, {rest} not told from it "
        f"(p adjusted by Holm over {len(tested)} {'row' if len(tested) == 1 else 'rows'}, 5 %)."
    )


def _effects(effects: Table) -> Iterator[str]:
    """The main effects that are told from zero, largest first."""
    tested, told = 0, list[tuple[float, str]]()
    for place, column in list(enumerate(effects.columns))[3:]:
        for line in effects.rows:
            axis, level, reference = (entry.text for entry in line.entries[:3])
            values = line.entries[place].values
            if len(line.entries[0].values["value"]) > 1 or values.get("p_holm") is None:
                continue
            tested += 1
            if values["p_holm"] < ALPHA:
                half = values["ci_high"] - values["mean"]
                text = f"{axis} {level} rather than {reference} {values['mean']:+.3f} ±{half:.3f}"
                where = WHERE.get(column.name, column.title)
                told.append((-abs(values["mean"]), f"{text} {where} ({p_text(values['p_holm'])})"))
    if told:
        yield f"All else equal, on average over the grid: {_named([text for _, text in sorted(told)])}."
    elif tested:
        yield f"Of {tested} main effects of axes none is told from zero (Holm, 5 %)."


def _fallen(comparison: Comparison) -> Iterator[str]:
    """Counts of runs, which need no test; results of one run that are mixed are one run's."""
    ended = sum(cell.ended for cell in comparison.cells)
    diverged = [cell.name for cell in comparison.cells for _ in range(cell.diverged)]
    if diverged:
        yield f"{len(diverged)} of {ended} ended runs diverged: {_counts(diverged)}."
    evaluated = sum(cell.n_seeds for cell in comparison.cells)
    collapsed = [cell.name for cell in comparison.cells for _ in range(cell.collapsed)]
    if collapsed:
        below = f"below {COLLAPSE_SHARE:g} of the base's accuracy on the trained task"
        yield f"{len(collapsed)} of {evaluated} evaluated runs ended {below}: {_counts(collapsed)}."
    elif ended and not diverged:
        yield f"None of {ended} ended runs diverged or collapsed."


def _counts(names: Sequence[str]) -> str:
    """Names with how often each, the most frequent first."""
    counts = sorted(((names.count(name), name) for name in dict.fromkeys(names)), key=lambda pair: -pair[0])
    return _named([f"{name} ({count})" for count, name in counts])
