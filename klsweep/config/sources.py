"""The data sources in a composed configuration, wherever they stand in it."""

from collections.abc import Iterator
from typing import Any

from klsweep.config.build import Builder, Node
from klsweep.tasks.source import Source

_TARGET = f"{Source.__module__}.{Source.__qualname__}"


def sources(config: Node) -> Iterator[Source]:
    """Every source in a resolved configuration: of the trained task, and of each evaluation suite."""
    for path, node in _nodes(config, ""):
        yield Builder().node(node, path, ("klsweep",))


def pinned(config: Node) -> Node:
    """The configuration with each hub dataset's revision as the commit that was fetched: `main` may move later."""

    def pin(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("_target_") == _TARGET:
            return {**value, "revision": Builder().node(value, "source", ("klsweep",)).commit()}
        return {key: pin(child) for key, child in value.items()}

    return pin(config)


def _nodes(value: Any, path: str) -> Iterator[tuple[str, Node]]:
    if not isinstance(value, dict):
        return
    if value.get("_target_") == _TARGET:
        yield path, value
        return
    for key, child in value.items():
        yield from _nodes(child, f"{path}.{key}" if path else str(key))
