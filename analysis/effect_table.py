"""The effects of a grid's axes as a table: a row per contrast, a column per metric."""

from collections.abc import Mapping, Sequence

from klsweep.analysis.build import SHORT
from klsweep.analysis.choose import BETA, Condition, cell_label, text_of
from klsweep.analysis.compare import CellResult, Comparison
from klsweep.analysis.coverage import coverage_lines
from klsweep.analysis.effects import MOST_CONTRASTS, Effect, Effects, Observation, effects
from klsweep.analysis.explain import sign_notes
from klsweep.analysis.external import external_notes
from klsweep.analysis.groups import Group
from klsweep.analysis.table import ABSENT, Column, Entry, Line, Table, label_entry, over_runs, p_text
from klsweep.cells import varying
from klsweep.terminal import listed

NAMED = 12  # missing combinations that are named


def effect_table(comparison: Comparison, metrics: Sequence[str] = (), baseline: Sequence[Condition] = ()) -> Table:
    """Main effects and two-way interactions on metrics (by default those in and out of distribution).

    `baseline` names the levels that others are held against. Cells in which an axis is inert have no place among its
    levels and are left out, as are results that are kept apart from most.
    """
    cells, levels, left_out = _factors(comparison)
    references = {c.key: _level(cells, levels, c) for c in baseline if c.operator == "="}
    chosen = [comparison.metric(name) for name in metrics or ("in", "out")]
    found = [
        effects(
            [
                Observation(levels[i], seed, value)
                for i, cell in enumerate(cells)
                for seed, value in cell.by_seed(of).items()
            ],
            {key: level for key, level in references.items() if level is not None},
        )
        for of in chosen
    ]
    names = list(dict.fromkeys(effect[:3] for one in found for effect in (*one.main, *one.interactions)))
    by_name = [{effect[:3]: effect for effect in (*one.main, *one.interactions)} for one in found]
    runs = [run.key for cell in cells for run in cell.runs if run.finished]
    everything = Group(cells)  # which every effect rests on
    over = [
        (sum(len(cell.by_seed(of)) for cell in cells), everything.planned, everything.diverged(of)) for of in chosen
    ]
    rows = [
        Line(
            [
                *(label_entry(_joined(part), list(part)) for part in name),
                *(_entry(one.get(name), *runs_of) for one, runs_of in zip(by_name, over, strict=True)),
            ],
            [cell.plan["cell_id"] for cell in cells],
            runs,
        )
        for name in names
    ]
    labels = (("axis", "axis"), ("level", "level"), ("reference", "rather than"))
    columns = [Column(*names, label=True) for names in labels] + [Column(of.name, of.title) for of in chosen]
    told = [*_notes(found, left_out), *_unnamed(references), *sign_notes(rows)]
    told += external_notes([of.key for of in chosen], [run for cell in cells for run in cell.runs])
    return Table(coverage_lines(comparison), columns, rows, told, comparison.warnings)


def _factors(comparison: Comparison) -> tuple[list[CellResult], list[dict[str, str]], dict[str, list[str]]]:
    """The cells that take part, the level of each on every factor, and the names of the others by the reason."""
    plans = [cell.plan for cell in comparison.cells]
    axes, fields = varying(plans)
    axes = [axis for axis in axes if len({plan["axes"].get(axis) for plan in plans} - {None}) > 1]
    apart = [field for field in fields if field.split(".")[0] not in axes]
    own = [*axes, *([BETA] if len({plan["kl_coef"] for plan in plans} - {None}) > 1 else []), *apart]
    cells, levels, left_out = [], [], dict[str, list[str]]()
    for cell in comparison.cells:
        labels = {key: cell_label(cell.plan, key) for key in own}
        inert = [SHORT.get(key, key) for key, value in labels.items() if value is None]
        if inert or cell.provenance != comparison.usual:
            reason = f"{', '.join(inert)} without effect there" if inert else "no result, or one that is kept apart"
            left_out.setdefault(reason, []).append(cell.name)
            continue
        cells.append(cell)
        levels.append({key: _with_fields(text_of(value), key, fields, cell) for key, value in labels.items()})
    return cells, levels, left_out


def _with_fields(text: str, axis: str, fields: Sequence[str], cell: CellResult) -> str:
    """A level with the fields of its choice that differ: `fixed τ=1`."""
    found = [(name, cell_label(cell.plan, name)) for name in fields if name.split(".")[0] == axis and name != axis]
    return " ".join(
        [text, *(f"{SHORT.get(name, name)}={text_of(value)}" for name, value in found if value is not None)]
    )


def _level(cells: Sequence[CellResult], levels: Sequence[dict[str, str]], condition: Condition) -> str | None:
    """The first level that a condition names."""
    key = condition.key
    found = zip(cells, levels, strict=True)
    return next((own[key] for cell, own in found if key in own and condition.holds(cell_label(cell.plan, key))), None)


def _joined(part: Sequence[str]) -> str:
    return " × ".join(SHORT.get(name, name) for name in part)


def _entry(effect: Effect | None, n: int, planned: int, diverged: int) -> Entry:
    if effect is None or effect.mean is None:
        return ABSENT
    values = {name: getattr(effect, name) for name in ("mean", "ci_low", "ci_high", "freedom", "p")}
    values |= {"p_holm": effect.adjusted, "n": n, "planned": planned}
    text = f"{effect.mean:+.3f}"
    text += "" if effect.ci_high is None else f" ±{effect.ci_high - effect.mean:.3f}"
    text += "" if effect.adjusted is None else f", {p_text(effect.adjusted)}"
    return over_runs(text, values, diverged)


def _notes(found: Sequence[Effects], left_out: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [
        "Least squares on run-level values. Main effects: one level rather than another, all else equal, in a model "
        "without interactions. Interactions (×): how much more the one does at the other level than at its reference. "
        "± half of the 95 % t interval (HC2, Bell–McCaffrey); p two-sided, adjusted by Holm over the column.",
    ]
    if any(one.blocked for one in found):
        lines.append("Seeds are blocks: what the runs of one seed have in common is no error.")
    missing = list(dict.fromkeys(pair for one in found for pair in one.missing))
    if missing:
        named = listed([f"{a}={b} with {c}={d}" for a, b, c, d in missing], NAMED, "; ")
        lines.append(f"No run has {named}. An effect that these leave undetermined is –.")
    if skipped := list(dict.fromkeys(pair for one in found for pair in one.skipped)):
        pairs = ", ".join(_joined(pair) for pair in skipped)
        lines.append(f"More than {MOST_CONTRASTS} interactions each, and left out: {pairs}.")
    for reason, names in left_out.items():
        lines.append(f"Left out: {listed(names, NAMED, '; ')}: {reason}.")
    if found and not any(one.main or one.interactions for one in found):
        lines.append("There are no two levels of any axis to hold against each other.")
    return lines


def _unnamed(references: Mapping[str, str | None]) -> list[str]:
    """A line for what the baseline says of axes without saying a level of theirs."""
    keys = [SHORT.get(key, key) for key, level in references.items() if level is None]
    said = "there is no such level among these cells, and others are held against the first"
    return [f"What the baseline says of {', '.join(keys)} does not count here: {said}."] if keys else []
