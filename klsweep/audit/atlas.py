"""The atlas: what libraries' KL settings really optimise, from the presets in `conf/preset/`."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from klsweep.audit.bias import bias_table
from klsweep.audit.cases import Case, Row, cases
from klsweep.audit.gradient import compares
from klsweep.audit.show import Grid, figure, words
from klsweep.audit.tabular import Tables, instance
from klsweep.audit.whole import beta_in_effect, whole_table
from klsweep.component import component
from klsweep.config.compose import Composer
from klsweep.errors import BadInput

# Lengths are equal on a tabular policy: an aggregation would be one more constant factor on both terms.
PLAIN_SUMS = ("algorithm.aggregation=seq-sum", "kl.aggregation=null")
SMALL = instance(length=4, vocabulary=2)  # whole groups are enumerated on it
GROUP = "algorithm.group_size=4"


@component
class Preset:
    """What a preset says of the library: `setting` with {} for its users' name of the estimator, in `estimators`."""

    library: str
    version: str
    source: str
    setting: str
    estimators: dict[str, str | int]
    remedy: str


def atlas(composer: Composer, tables: Tables, progress: Callable[[int], None]) -> list[Row]:
    """A row per library setting: the audited row, what the library calls it, and the setting that would be unbiased.

    `beta_in_effect`: see the function. A charge that is divided by the group's std has no scale of its own: its figures
    are null, and the verdict is of the whole objective.
    """
    rows = []
    for name in composer.options("preset"):
        preset = _described(composer, name)
        for estimator, theirs in preset.estimators.items():
            chosen, _ = cases(
                composer, [f"preset={name}", f"estimator={estimator}", *PLAIN_SUMS, GROUP], "", whole=True
            )
            rows.append(
                {
                    "preset": name,
                    "library": preset.library,
                    "version": preset.version,
                    "source": preset.source,
                    "setting": preset.setting.replace("{}", str(theirs)),
                    **_audited(chosen[0], tables),
                    "remedy": preset.remedy,
                }
            )
            progress(len(rows))
    return rows


def _described(composer: Composer, name: str) -> Preset:
    node: Any = composer.compose([f"preset={name}"]).config.get("preset")
    try:
        return Preset(**node)
    except (TypeError, ValidationError) as error:
        first = str(error).splitlines()
        raise BadInput(f"preset={name}: its preset node is not complete ({' '.join(first[1:3] or first)})") from error


def _audited(case: Case, tables: Tables) -> Row:
    effect = beta_in_effect(SMALL, case)
    if not compares(case.objective) or case.objective.algorithm.linear:
        return {**bias_table(tables, [case], None, 0, lambda done: None)[0], "beta_in_effect": effect}
    neither = whole_table(SMALL, [case], lambda done: None)[0]["residual"] or 0.0
    undefined = dict.fromkeys(("relative_error", "cosine", "norm_ratio", "variance", "snr"))
    verdict = f"biased: divided by the group's std; {neither:.1%} of the loss's gradient is neither −∇E[R] nor ∇KL"
    return {**case.labels, **undefined, "verdict": verdict, "beta_in_effect": effect}


def atlas_grid(rows: list[Row]) -> Grid:
    """The atlas as text: library, setting, what it is in klsweep's words, verdict, and the remedy."""
    header = ["preset", "library", "their setting", "estimator", "placement", "clip", "gradient", "weight"]
    header += ["rel. error", "cosine", "β in effect", "verdict", "unbiased with"]
    grid = []
    for row in rows:
        described = words(row)[:-1]
        figures = [figure(row["relative_error"]), figure(row["cosine"]), _factor(row["beta_in_effect"])]
        library = f"{row['library']} {row['version']}"
        grid.append([row["preset"], library, row["setting"], *described, *figures, row["verdict"], row["remedy"]])
    return header, grid


def _factor(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
