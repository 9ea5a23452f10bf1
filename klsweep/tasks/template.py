"""Prompts from rows, by Jinja templates in a sandbox: data are only ever values, never templates."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from klsweep.errors import BadInput


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise BadInput(f"template: {error}") from error


def render(template: str, row: Mapping[str, Any]) -> str:
    """The template filled in with a row's columns. BadInput for a column that is not there or a forbidden access."""
    compiled = _compiled(template)
    try:
        return compiled.render(row)
    except Exception as error:  # an expression may raise whatever Python's operators do
        raise BadInput(f"template: {error} (columns: {', '.join(map(str, row))})") from error
