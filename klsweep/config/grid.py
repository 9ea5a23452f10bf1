"""Grids: a list of products of axes, expanded into cells by composing each *choice* once, not each cell."""

import copy
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from klsweep.config.build import GRID_NODES
from klsweep.config.compose import Composed, Composer, check_key, parse_overrides, resolve, sweep_values
from klsweep.errors import BadInput

Point = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One point of the grid, seed included: its full configuration and the choices and values that made it."""

    config: dict[str, Any]
    choices: dict[str, str]
    point: Point


@dataclass(frozen=True)
class Exclusion:
    """A cell left out, and why."""

    point: Point
    reason: str


@dataclass(frozen=True)
class Expansion:
    """What a grid stands for. `given`: keys that the user set, on the command line or as an axis; `values`: the
    experiment's tags, see `tags`."""

    raw: int
    cells: list[Cell]
    excluded: list[Exclusion]
    given: frozenset[str]
    values: Any


def expand(composer: Composer, overrides: Sequence[str], single: bool = False) -> Expansion:
    """Expand an experiment's grid and the command line's sweeps; with `single`, one cell and no grid.

    An axis given on the command line replaces that axis in every product; other axes of the experiment stay.
    Raises BadInput for anything that does not compose.
    """
    parsed = parse_overrides(overrides)
    composer.admit_plugins(parsed)
    axes: dict[str, list[Any]] = {}
    fixed: dict[str, str] = {}
    for override, text in zip(parsed, overrides, strict=True):
        sweeping = override.is_sweep_override()
        if composer.is_group(override.key_or_group) and not sweeping and not override.is_delete():
            _check_single_choice(override.key_or_group, override.value())
        if sweeping and single:
            raise BadInput(f"{text}: train runs one cell (for several: `klsweep sweep …` or `klsweep train -m …`)")
        if sweeping and override.key_or_group == "experiment":
            raise BadInput(f"{text}: one experiment at a time (a sweep folder belongs to one)")
        key = override.key_or_group
        if not sweeping:
            axes.pop(key, None)  # of a key that is given twice the last word counts, as in Hydra
            fixed[key] = text
        elif override.is_add() or override.package is not None:
            raise BadInput(f"{text}: only existing keys can be swept")
        else:
            fixed.pop(key, None)
            axes[key] = sweep_values(override, composer)
    base = composer.compose(list(fixed.values()))
    grid = [{}] if single else base.config.get("grid") or [{}]
    products = [_product(line, i, axes, set(fixed)) for i, line in enumerate(grid)]
    _check_axes(composer, base, products)
    points = _distinct(point for product in products for point in _points(product))
    excludes = base.config.get("exclude") or []
    swept = {key for product in products for key in product}
    nodes = _ChoiceNodes(composer, list(fixed.values()), _without_grid(base), swept)
    kept, excluded = [], []
    for point in points:
        cell = nodes.cell(point)
        reason = _excluded_by(excludes, cell)
        if reason is None:
            kept.append(cell)
        else:
            excluded.append(Exclusion(point, reason))
    raw = sum(len(list(_points(product))) for product in products)
    return Expansion(raw, kept, excluded, frozenset(fixed) | swept, base.config.get("values") or {})


def _check_single_choice(group: str, value: Any) -> None:
    """BadInput for `group=[a,b]` and `group=null`, which Hydra takes and turns into something else than a choice."""
    if isinstance(value, list):
        values = ",".join(map(str, value))
        raise BadInput(f"{group}=[{values}]: a list is no choice (for a sweep over both write {group}={values})")
    if not isinstance(value, str) and group != "experiment":
        raise BadInput(f"{group}={'null' if value is None else value}: expected the name of a choice")


def _product(line: Any, index: int, axes: dict[str, list[Any]], fixed: set[str]) -> dict[str, list[Any]]:
    """One product of the grid, less what the command line fixed, with the axes it sweeps."""
    if not isinstance(line, dict):
        raise BadInput(f"grid[{index}]={line!r}: expected a mapping from axis to list of values")
    product = {key: value if isinstance(value, list) else [value] for key, value in line.items()}
    empty = [key for key, values in product.items() if not values]
    if empty:
        raise BadInput(f"grid[{index}].{empty[0]}=[]: expected at least one value")
    return {**{key: values for key, values in product.items() if key not in fixed}, **axes}


def _points(product: dict[str, list[Any]]) -> Iterator[Point]:
    for values in itertools.product(*product.values()):
        yield dict(zip(product, values, strict=True))


def _distinct(points: Iterator[Point]) -> list[Point]:
    return list({json.dumps(point, sort_keys=True): point for point in points}.values())


def _check_axes(composer: Composer, base: Composed, products: list[dict[str, list[Any]]]) -> None:
    for product in products:
        for key, values in product.items():
            if composer.is_group(key):
                for value in values:
                    composer.check_choice(key, value)
            else:
                check_key(base.config, key)


class _ChoiceNodes:
    """Cells assembled from nodes composed once per choice.

    Exact as long as a choice changes nothing outside its own node; one that does (a `# @package _global_` file) is
    noticed, and its cells are composed in full.
    """

    def __init__(self, composer: Composer, fixed: list[str], base: Composed, axes: set[str]) -> None:
        self._composer, self._fixed, self._axes = composer, fixed, axes
        self._base = self._resolved_once(base)
        self._nodes: dict[tuple[str, str], Any] = {}
        self._global_choices: set[tuple[str, str]] = set()

    def cell(self, point: Point) -> Cell:
        groups = {key: value for key, value in point.items() if self._composer.is_group(key)}
        values = {key: value for key, value in point.items() if key not in groups}
        for choice in groups.items():
            self._load(choice)
        if any(choice in self._global_choices for choice in groups.items()):
            composed = _without_grid(compose_point(self._composer, self._fixed, point))
        else:
            config = dict(self._base.config)
            for group, value in groups.items():
                config[group] = self._nodes[group, value]
            composed = Composed(with_values(config, values), {**self._base.choices, **groups})
        config = composed.config if self._is_resolved(composed.config) else resolve(composed.config)
        return Cell({**config, "choices": composed.choices}, composed.choices, point)

    def _load(self, choice: tuple[str, str]) -> None:
        if choice in self._nodes or choice in self._global_choices:
            return
        group, value = choice
        composed = self._resolved_once(_without_grid(compose_point(self._composer, self._fixed, {group: value})))
        rest = {key: node for key, node in composed.config.items() if key != group}
        if rest == {key: node for key, node in self._base.config.items() if key != group}:
            self._nodes[choice] = composed.config[group]
        else:
            self._global_choices.add(choice)

    def _resolved_once(self, composed: Composed) -> Composed:
        """With its interpolations filled in, if none of them refers to an axis: then they are the same in all cells."""
        text = json.dumps(composed.config)
        references = set(re.findall(r"\$\{([^}]*)\}", text))
        varies = any(ref.split(".")[0] in ("", axis.split(".")[0]) for ref in references for axis in self._axes)
        simple = all(re.fullmatch(r"[\w.]+", ref) for ref in references)
        if not references or varies or not simple:
            return composed
        return Composed(resolve(composed.config), composed.choices)

    @staticmethod
    def _is_resolved(config: dict[str, Any]) -> bool:
        return "${" not in repr(config)


def _without_grid(composed: Composed) -> Composed:
    """A cell's configuration has no part in the grid it came from."""
    config = {key: value for key, value in composed.config.items() if key not in GRID_NODES}
    return Composed(config, composed.choices)


def compose_point(composer: Composer, fixed: list[str], point: Point) -> Composed:
    """One grid point by full Hydra composition."""
    kept = [text for text, o in zip(fixed, parse_overrides(fixed), strict=True) if o.key_or_group not in point]
    return composer.compose([*kept, *(f"{key}={_override_text(value)}" for key, value in point.items())])


def _override_text(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value).replace('"', "")


def with_values(config: dict[str, Any], values: Point) -> dict[str, Any]:
    """`config` with dotted keys set, in place; of its nodes, those on their paths are copied. BadInput for others."""
    for key, value in values.items():
        *parents, last = key.split(".")
        node = config
        for part in parents:
            node[part] = copy.copy(node[part])
            node = node[part]
        check_key(node, last)
        node[last] = value
    return config


def _excluded_by(excludes: list[Any], cell: Cell) -> str | None:
    for i, rule in enumerate(excludes):
        if not isinstance(rule, dict) or set(rule) != {"when", "reason"} or not isinstance(rule["when"], dict):
            raise BadInput(f"exclude[{i}]={rule!r}: expected when (a mapping) and reason")
        if all(_matches(cell, key, wanted) for key, wanted in rule["when"].items()):
            return str(rule["reason"])
    return None


def _matches(cell: Cell, key: str, wanted: Any) -> bool:
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if key in cell.choices:
        return cell.choices[key] in wanted
    node: Any = cell.config
    for part in key.split("."):
        check_key(node, part)
        node = node[part]
    return node in wanted
