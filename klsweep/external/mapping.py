"""The mapping: a YAML file that says which files hold which runs, what those are, and what their columns mean."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, StringConstraints

from klsweep.cells import AXES
from klsweep.component import component
from klsweep.config.build import validated
from klsweep.errors import BadInput
from klsweep.record.origin import is_kl

Label = bool | int | float | str
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")]  # of a folder or a file
T = TypeVar("T")
UPDATE = "update"


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,)


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


@component
class RunFiles:
    """Runs whose files are named alike. `{key}` in a path is a label, `*` any text; `columns` are labels by row.

    `labels` hold for all of them; `items` are the files of a suite.
    """

    labels: dict[str, Label] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    metrics: Texts = ()
    items: dict[str, Texts] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metrics and not self.items:
            raise ValueError("metrics or items: name at least one file")


@component
class Suite:
    """What was asked: the trained task (`in`) or not (`out`), and the columns of its files of items.

    `correct` is 0 or 1 for a response a row, or with `samples` how many of so many are right. An item is known by its
    `prompt`, else by a `prompt_hash` or an `item` of its own. Without `update`, it was asked after the last.
    """

    role: Literal["in", "out"]
    prompt: str | None = None
    prompt_hash: str | None = None
    item: str | None = None
    correct: str | None = None
    samples: str | None = None
    update: str | None = None
    greedy_correct: str | None = None
    kl: str | None = None
    entropy: str | None = None
    response: str | None = None

    def columns(self) -> dict[str, str]:
        """The columns that are named, by what is in them."""
        return {name: column for name, column in vars(self).items() if name != "role" and column is not None}


@component
class Mapping:
    """The whole file; docs/import.md explains its keys. `folder` is where it lies: paths are relative to that."""

    name: Name
    runs: tuple[RunFiles, ...]
    metrics: dict[str, str] = Field(default_factory=dict)
    suites: dict[Name, Suite] = Field(default_factory=dict)
    fields: Texts = ()
    choices: dict[str, Texts] = Field(default_factory=dict)
    update_offset: int = 0
    kl_definition: str | None = None
    evaluation: dict[str, Label] = Field(default_factory=dict)
    folder: Path

    def __post_init__(self) -> None:
        _check(self)

    @property
    def has_kl(self) -> bool:
        """True if one of its figures is a KL."""
        return any(map(is_kl, self.metrics)) or any(suite.kl is not None for suite in self.suites.values())


def load_mapping(file: Path) -> Mapping:
    """Read and check a mapping. BadInput, in one line, for what is wrong in it."""
    try:
        found = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file}: expected a mapping with name, runs, metrics, suites (docs/import.md)")
    node = {str(key): value for key, value in found.items()}
    runs, suites = node.get("runs"), node.get("suites")
    if not isinstance(runs, list) or not runs:
        raise BadInput(f"{file}: runs={runs!r}: expected a list of groups of runs")
    node["runs"] = tuple(_part(RunFiles, group, f"{file}: runs.{i}") for i, group in enumerate(runs))
    if isinstance(suites, dict):
        node["suites"] = {name: _part(Suite, suite, f"{file}: suites.{name}") for name, suite in suites.items()}
    return validated(Mapping, {**node, "folder": file.resolve().parent}, f"{file}: ")


def _part(kind: type[T], node: Any, where: str) -> T:
    if not isinstance(node, dict):
        raise BadInput(f"{where}={node!r}: expected keys and values")
    return validated(kind, node, f"{where}.")


def _check(mapping: Mapping) -> None:
    """ValueError for what does not fit together."""
    if mapping.kl_definition is not None and not mapping.kl_definition.strip():
        raise ValueError("kl_definition='': say what the KL is of, and how it is estimated")
    for axis in mapping.choices:
        if axis not in AXES:
            raise ValueError(f"choices.{axis}: no axis of that name (choose from {', '.join(AXES)})")
    if any(group.metrics for group in mapping.runs) and UPDATE not in mapping.metrics:
        raise ValueError(f"metrics.{UPDATE}: missing (the column that counts updates)")
    for i, group in enumerate(mapping.runs):
        for suite in group.items:
            if suite not in mapping.suites:
                choices = ", ".join(mapping.suites) or "none is declared"
                raise ValueError(f"runs.{i}.items.{suite}: no suite of that name (choose from {choices})")
    for metric in mapping.metrics:
        _check_metric(mapping, metric)
    for name, suite in mapping.suites.items():
        asked = any(name in group.items for group in mapping.runs)
        if asked and suite.correct is None:
            raise ValueError(f"suites.{name}.correct: missing (the column that says whether a response is right)")
        if asked and not (suite.prompt or suite.prompt_hash or suite.item):
            raise ValueError(f"suites.{name}: prompt, prompt_hash or item: one column must say which item a row is")
        if suite.kl is not None:
            _check_kl(mapping, f"suites.{name}.kl")


def _check_metric(mapping: Mapping, metric: str) -> None:
    if metric in ("sweep", "run_id"):
        raise ValueError(f"metrics.{metric}: names a run in every table (choose another name)")
    parts = metric.split("/")
    if parts[0] == "eval" and (len(parts) != 3 or parts[1] not in mapping.suites):
        choices = ", ".join(mapping.suites) or "none is declared"
        raise ValueError(f"metrics.{metric}: expected eval/<suite>/<metric> with a suite of suites ({choices})")
    if is_kl(metric):
        _check_kl(mapping, f"metrics.{metric}")


def _check_kl(mapping: Mapping, where: str) -> None:
    """A KL of another estimator, or on other samples, is another figure: nobody may take it for klsweep's."""
    if mapping.kl_definition is None:
        raise ValueError(f"{where}: kl_definition is missing: say what that KL is (klsweep: as klsweep measures it)")
