"""The reproduction as a page in Markdown: the rule, the findings, the cells behind them, how to make it again."""

from collections.abc import Mapping, Sequence

from klsweep import __version__
from klsweep.analysis.compare import CellResult
from klsweep.analysis.coverage import coverage_lines
from klsweep.analysis.origins import origins
from klsweep.analysis.reproduction import (
    EXACT_HEADER,
    HEADER,
    SHIFT,
    Reproduction,
    exact_grid,
    grid,
    simulated_line,
)
from klsweep.analysis.table import estimate_entry
from klsweep.cells import describe
from klsweep.record.folder import SweepFolder
from klsweep.terminal import markdown_grid

INTRODUCTION = """# What two papers found, and what runs of a small model show of it

Written by `make reproduction` (klsweep {version}) from its own runs; no figure is edited by hand. The papers are "A
Comedy of Estimators: On KL Regularization in RL Training of LLMs" (arXiv 2512.21852) and "Generalisation of RLHF
under Reward Shift and Clipped KL Regularisation" (arXiv 2602.21765); what they found we have from secondary sources
on them.

**What an agreement means.** The runs are of the shipped policy, 0.2 M parameters, on string and arithmetic tasks, at
strengths β of their own ([experiments.md](experiments.md)). A finding that agrees is one whose effect such a policy
has, too; one that does not may still be true of 7B models, and the other way round. What only those can tell is
listed all the same, as not to be seen here.

**The rule**, one for all rows. A finding is put as a figure and where it must lie ("holds if"). Means and differences
are over seeds, differences on common seeds, with Student's t; shares of runs are tested as binomial. Two one-sided
tests ask whether the figure lies outside of where it must (p small: it *agrees*) or inside (p small: it *does not*).
The smaller p counts twice and is adjusted by Holm over all rows of this page that have one: beyond 0.05 the finding
*cannot be seen at this scale*. So the probability of one or more wrong verdicts on this page is at most 5 %.
Intervals are 95 % ones of each figure by itself: t, or Wilson's for shares.

A run *collapses* if it diverges, or if the share of right responses in its batches (mean of 5 updates) falls below
half of its best by more than noise explains, and ends below 0.8 of it ([analyse.md](analyse.md)).
"""


CELLS = (
    "Rows above name them by number. Algorithm: with prompts × responses of an update, and learning rate; in, out: "
    "sampled pass@1 on the trained and on the other tasks; KL: nats per response; means ± half of the 95 % t interval."
)


def page(found: Reproduction, sweeps: Mapping[str, SweepFolder], command: Sequence[str]) -> str:
    """The page; `sweeps` by their names in run keys, `command` what wrote it."""
    parts = [INTRODUCTION.format(version=__version__), _summary(found), *_findings(found), *_exact(found)]
    parts += ["## The cells", CELLS, *coverage_lines(found.comparison), _cells(found)]
    parts += ["## How to make it again", "`make reproduction` does all of this:"]
    for origin in origins(found.comparison, sweeps, command):
        parts += [f"**{origin.name}**"]
        parts += ["```\n" + "\n".join(origin.commands) + "\n```"] if origin.commands else []
        parts += ["\n".join(f"- {fact}" for fact in origin.facts)] if origin.facts else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(found: Reproduction) -> str:
    counts = found.verdicts
    nothing = sum(row.measured is None for rows in found.parts.values() for row in rows)
    unseen = counts["cannot be seen at this scale"]
    exact = [*found.gradients, *found.numbers]
    agree = sum(row.agrees for row in exact)
    return (
        f"**{counts.total()} findings: {counts['agrees']} agree, {counts['does not']} do not, {unseen} cannot be seen "
        f"at this scale** ({nothing} of these were not measured, for the reason in their row). Of {len(exact)} "
        f"statements without chance, computed exactly, {agree} agree."
    )


def _findings(found: Reproduction) -> list[str]:
    parts = []
    for title, rows in found.parts.items():
        lines = grid(found, rows)
        parts += [f"## {title}", _table(HEADER, lines)]
    return [*parts, f"## {SHIFT}: the bound, simulated", _table(HEADER, [simulated_line(found)])]


def _exact(found: Reproduction) -> list[str]:
    return [
        "## What the gradients are",
        "Exact: the expected gradient of the objective that trains, over every sequence of a policy with V = 3 and "
        "T = 4 ([audit.md](audit.md)); the figure is ‖E g − ∇KL‖/‖∇KL‖.",
        _table(EXACT_HEADER, exact_grid(found.gradients)),
        "## What the bounds and budgets are",
        "To the digits said; formulas in [theory.md](theory.md).",
        _table(EXACT_HEADER, exact_grid(found.numbers)),
    ]


def _cells(found: Reproduction) -> str:
    """The cells that rows name by number."""
    header = ["", "sweep", "configuration", "runs", "seeds", "algorithm", "updates", "in", "out", "KL", "cell"]
    rows = []
    for number, cell in enumerate(found.cells, 1):
        sweep = cell.runs[0].key.sweep
        names = describe([one.plan for one in found.comparison.cells if one.runs[0].key.sweep == sweep])
        name = names[cell.plan["cell_id"]]
        rows.append([str(number), sweep, name, *_settings(cell), *_figures(found, cell), cell.plan["cell_id"]])
    return _table(header, rows)


def _settings(cell: CellResult) -> list[str]:
    seeds = sorted({run.seed for run in cell.runs})
    span = f"{seeds[0]}–{seeds[-1]}" if seeds == list(range(seeds[0], seeds[-1] + 1)) else ", ".join(map(str, seeds))
    fields = cell.plan["fields"]
    batch = f"{fields['train.prompts_per_update']} × {fields['algorithm.group_size']}, lr {fields['train.lr']:g}"
    runs = f"{cell.n_seeds}/{cell.planned}"
    return [runs, span, f"{cell.plan['axes']['algorithm']}, {batch}", str(cell.plan["updates"])]


def _figures(found: Reproduction, cell: CellResult) -> list[str]:
    metrics = [found.comparison.metric(name) for name in ("in", "out", "kl")]
    return [estimate_entry(cell.estimate(of), cell.planned).text for of in metrics]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_grid(header, [[cell.replace("|", "\\|") for cell in row] for row in rows])
