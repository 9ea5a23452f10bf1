"""The one way a configurable part is declared: a small frozen pydantic dataclass.

The fields of a component are its configuration schema: a YAML node names the class in ``_target_`` and gives every
field a value. Types are strict (a string is not a number), NaN and infinities are refused, unknown keys are errors.

A group whose choices have different fields shares a base class that declares every field as nullable; a choice
redeclares the fields it uses. What a choice does not redeclare is inert for it: still type-checked, then null in the
canonical configuration (see `used_fields`).
"""

import inspect
from dataclasses import fields
from typing import Annotated, TypeVar, dataclass_transform, get_args, get_type_hints

from annotated_types import Ge, Lt
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Seed = Annotated[int, Ge(0), Lt(2**63)]

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def component(cls: type[T]) -> type[T]:
    """Turn an annotated class into a frozen, strictly validated component."""
    return dataclass(cls, config=_CONFIG, frozen=True, kw_only=True)  # pyright: ignore[reportReturnType]


def used_fields(cls: type) -> frozenset[str]:
    """Names of the fields a choice really uses: all but those it inherits as nullable and does not redeclare."""
    hints = get_type_hints(cls)
    own = inspect.get_annotations(cls)
    names = (f.name for f in fields(cls))
    return frozenset(name for name in names if name in own or type(None) not in get_args(hints[name]))


def one_line(error: ValidationError, cls: type, prefix: str) -> str:
    """The first problem of a component's values in one line: field, value, and what is allowed."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if not field:  # a check across fields, which names them itself
        if "ctx" not in first:
            return f"{prefix}{first['msg']}"
        text = str(first["ctx"]["error"])
        return text if text.startswith(prefix) else f"{prefix.rstrip('.: ')}: {text}"
    if first["type"] in ("unexpected_keyword_argument", "missing", "missing_keyword_only_argument"):
        names = ", ".join(f.name for f in fields(cls))
        problem = "unknown key" if first["type"] == "unexpected_keyword_argument" else "missing"
        return f"{prefix}{field}: {problem} (keys: {names})"
    others = [".".join(str(part) for part in other["loc"]) for other in error.errors()[1:]]
    more = f" (wrong, too: {', '.join(others)})" if others else ""
    value = "null" if first["input"] is None else repr(first["input"])
    return f"{prefix}{field}={value}: {first['msg']}{more}"
