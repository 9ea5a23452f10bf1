"""Everything that a comparison is turned into, as files: tables in each format, figures, and the page.

The files depend on the records and the choice alone: not on where they lie, nor on who makes them when. Sweeps are
named as seen from the folder that holds records and outputs, in which the commands told may be repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from klsweep.analysis.build import BASE_MODEL, Layout, build
from klsweep.analysis.choose import conditions
from klsweep.analysis.compare import Comparison, compare
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.load import load
from klsweep.analysis.report import report
from klsweep.analysis.sweep_plots import plot_all
from klsweep.analysis.table import Table
from klsweep.analysis.tables import TEXTS
from klsweep.record.folder import SweepFolder

OUTPUTS = "outputs"
FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """What is compared, and how it is shown: the options of `klsweep compare`."""

    where: Sequence[str] = ()
    mix: Sequence[str] = ()
    layout: Layout = field(default_factory=Layout)

    @property
    def of_effects(self) -> "Choice":
        """The same for effects, whose rows and columns are given, and which are of axes: no base has a level there."""
        baseline = () if list(self.layout.baseline) == [BASE_MODEL] else self.layout.baseline
        return replace(self, layout=Layout(metrics=self.layout.metrics, baseline=baseline))

    def words(self) -> list[str]:
        """As they are typed."""
        layout, words = self.layout, list[str]()
        for name, spaced in (("where", self.where), ("baseline", layout.baseline)):
            words += [f"--{name}", *spaced] if spaced else []
        for name, listed in (
            ("rows", layout.rows),
            ("columns", layout.columns),
            ("metric", layout.metrics),
            ("mix", self.mix),
        ):
            words += [f"--{name}", ",".join(listed)] if listed else []
        return [*words, *(["--detect", f"{layout.detect:g}"] if layout.detect is not None else [])]


def effects_of(comparison: Comparison, layout: Layout) -> Table:
    """What axes do, against the levels of the baseline."""
    runs = [run for cell in comparison.cells for run in cell.runs]
    return effect_table(comparison, layout.metrics, conditions(layout.baseline, runs))


def write_outputs(
    root: Path, sweeps: Sequence[str], choice: Choice, into: Path, on_step: OnStep = lambda done, of: None
) -> Mapping[str, list[str]]:
    """Make everything from the records of `sweeps`, folders below `root`, and write it below `into`.

    The files by their names below `into`, `outputs/…`, each with the command that makes it in `root`.
    BadInput for a choice that is not there.
    """
    folders = [SweepFolder(root / name) for name in sweeps]
    records = load(folders)
    comparison = compare(*folders, records=records, where=choice.where, mix=choice.mix)
    comparison = replace(comparison, sweep=", ".join(sweeps))
    effects = effects_of(comparison, choice.of_effects.layout)
    words = ["klsweep", "compare", *sweeps]
    page, figures = f"{OUTPUTS}/report.html", f"{OUTPUTS}/figures"
    (into / figures).mkdir(parents=True)
    made = dict[str, list[str]]()
    tables = {
        "comparison": (build(comparison, choice.layout), choice.words()),
        "effects": (effects, ["--effects", *choice.of_effects.words()]),
    }
    for name, (table, options) in tables.items():
        for suffix, form in FORMATS.items():
            file = f"{OUTPUTS}/{name}{suffix}"
            (into / file).write_text(TEXTS[form](table) + "\n", "utf-8", newline="\n")
            made[file] = [*words, *options, "--format", form]
    command = made[page] = [*words, *choice.words(), "--html", page]
    text = report(comparison, folders, choice.layout, root / page, command)
    (into / page).write_text(text, "utf-8", newline="\n")
    for file in plot_all(comparison, effects, into / figures, on_step):
        made[f"{figures}/{file.name}"] = [*words, *choice.of_effects.words(), "--plots", figures]
    return made
