"""The page that can be cited: bias table, atlas, β in effect and synthetic study, as Markdown with data and plot."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from klsweep import __version__
from klsweep.audit.atlas import atlas, atlas_grid
from klsweep.audit.bias import bias_table
from klsweep.audit.cases import Row, cases
from klsweep.audit.reference import kl_gradient
from klsweep.audit.show import Grid, bias_grid, study_grid, whole_grid
from klsweep.audit.study import LENGTHS, ROUNDS, SAMPLES, synthetic_study
from klsweep.audit.tabular import instance
from klsweep.audit.whole import whole_table
from klsweep.config.compose import Composer
from klsweep.terminal import markdown_grid

LONGEST_EXACT = 14  # the study enumerates up to this length
PIECES = 6

Plot = Callable[[Sequence[Row], Path], None]

INTRODUCTION = """# Which gradient does a KL configuration take?

Written by `klsweep audit --page docs` (klsweep {version}); the rows come from the objective that trains, differentiated
over every sequence of a small policy in float64. The aim is ∇KL(π_θ ‖ π_ref) of *sequences*. Relative error is ‖E g −
∇KL‖/‖∇KL‖, variance the trace of the covariance of one sample's gradient, SNR ‖E g‖/√variance. The task reward is
zero unless said otherwise; samples that share a leave-one-out baseline are correlated: G times the variance of their
mean is larger by ‖∇KL‖²/(G − 1) on policy. A verdict names the gradient where it equals one that has a name;
token-local means that what a token does to later tokens is dropped. `klsweep audit --json` has the same rows in full;
`klsweep audit estimator=k3 placement=loss clip=fixed clip.tau=0.3,1,3` audits any other configuration, `--policy
FILE` other tables.
"""


def write_page(composer: Composer, folder: Path, seed: int, plot: Plot, progress: Callable[[int], None]) -> list[Path]:
    """Write `audit.md` with `study.csv` and `study.png` into `folder`; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, done = [INTRODUCTION.format(version=__version__)], 0

    def add(*texts: str) -> None:
        nonlocal done
        parts.extend(texts)
        done += 1
        progress(done)

    for length, vocabulary in ((4, 3), (14, 2)):
        add(_bias_part(composer, length, vocabulary))
    chosen, _ = cases(composer, [], "aggregation_table")
    add(
        "## Aggregations, where responses end at different lengths",
        "V = 3, T = 4, and token 0 ends a response (it is at most four tokens long). token-mean divides by the tokens "
        "of a whole batch, fixed by L_max = 4: one factor for all. seq-mean divides each response by its own length.",
        _markdown(bias_grid(bias_table(instance(4, 3, eos=0), chosen, None, 0, lambda count: None))),
    )
    whole, _ = cases(composer, [], "effective_beta", whole=True)
    add(
        "## What groups make of β",
        "The expected gradient of the whole loss, over all groups, fitted as a·(−∇E[R]) + b·β∇KL: reward scale a, KL "
        "scale b, β in effect βb/a; neither: the share of the gradient that is not in their span. V = 2, T = 4, R = 1 "
        "if at least half of the tokens are 0.",
        _markdown(whole_grid(whole_table(instance(4, 2), whole, lambda count: None))),
    )
    settings = atlas(composer, instance(14, 2), lambda count: None)
    header, lines = atlas_grid(settings)
    add(
        "## Libraries",
        "Each setting as a preset (`klsweep train preset=NAME`), audited on the tables with V = 2 and T = 14. Lengths "
        "are equal there: what an aggregation does to sequences of different lengths is set aside; and no log-ratio "
        "reaches the clamps that libraries put at 10, 20 or 40, which cut the gradient off where one does. β in "
        "effect: the factor that the group's normalisation puts on β beside the task reward (group of 4).",
        _markdown((header[:-1], [line[:-1] for line in lines])),
        "What to change in each library for the gradient of the sequence KL:",
        "\n".join(_remedies(lines)),
        "Read in:",
        "\n".join(dict.fromkeys(f"- {row['library']} {row['version']}: {row['source']}" for row in settings)),
    )
    chosen, _ = cases(composer, [], "main_estimators")
    rows = synthetic_study(chosen, LENGTHS, ROUNDS, SAMPLES, seed, LONGEST_EXACT, lambda count: None)
    files = write_study(rows, folder, plot)
    add(
        "## Bias and variance against length",
        f"Binary policy, {ROUNDS} rounds of {SAMPLES} samples per length (after arXiv 2512.21852). Bias ‖mean − ∇KL‖/"
        "‖∇KL‖ (noise: what it would be on average without any), variance of a round over ‖∇KL‖²; crosses in the plot "
        f"and distances, in standard errors, compare with enumeration up to T = {LONGEST_EXACT}.",
        _markdown(study_grid(rows)),
        "![bias and variance](study.png)",
        "Data: [study.csv](study.csv).",
    )
    page = folder / "audit.md"
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    return [page, *files]


def _bias_part(composer: Composer, length: int, vocabulary: int) -> str:
    tables = instance(length, vocabulary)
    chosen, _ = cases(composer, [], "bias_table")
    kl, gradient = kl_gradient(tables)
    rows = bias_table(tables, chosen, None, 0, lambda count: None)
    return (
        f"## Bias table, V = {vocabulary}, T = {length}\n\n"
        "θ = sin(1 + 3p + v), ref = cos(2p + v), sampler ½ sin(1 + 3p + v) + 0.3 cos(pv); p = 0 at the start, else 1 + "
        f"the previous token. KL {kl:.6f}, ‖∇KL‖ {gradient.norm().item():.6f}.\n\n{_markdown(bias_grid(rows))}"
    )


def _remedies(lines: Sequence[Sequence[str]]) -> list[str]:
    """A line per library and remedy, with the presets it is for."""
    presets: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        found = presets.setdefault((line[1], line[-1]), [])
        found += [] if line[0] in found else [line[0]]
    return [f"- {library} ({', '.join(names)}): {remedy}" for (library, remedy), names in presets.items()]


def _markdown(grid: Grid) -> str:
    header, rows = grid
    return markdown_grid(header, [[cell.replace("|", "\\|") for cell in row] for row in rows])


def write_study(rows: Sequence[Row], folder: Path, plot: Plot) -> list[Path]:
    """Data as CSV, and the plot; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "study.csv", folder / "study.png"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, picture)
    return [table, picture]
