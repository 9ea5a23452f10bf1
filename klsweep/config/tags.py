"""Where an experiment's values come from: its `values` node, held against the fields that decide its results.

`values` maps a key to a tag and, after a comma, a note: `train.lr: assumed, the paper's is not known to us`. A key
covers the fields below it unless they have a tag of their own; a part of it that is `*` stands for any one name. Tags
are no part of a run, and enter no id.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klsweep.config.compose import check_key
from klsweep.errors import BadInput

TAGS = ("paper", "inferred", "assumed")
GIVEN, UNTAGGED = "given", "untagged"  # set on the command line; not spoken of
ONE_CLASS = ("kl", "train", "eval")  # nodes without choices: their class says nothing


@dataclass(frozen=True)
class Tagged:
    """A tag, and the fields it covers: each with the values it takes in the cells, in their order."""

    key: str
    tag: str
    note: str
    fields: dict[str, list[Any]]


def check_tags(tags: Any, overridden: Collection[str], configs: Sequence[dict[str, Any]]) -> None:
    """BadInput for a tag that is none of `TAGS`, or a key that no cell has and that no overridden key took away."""
    if not isinstance(tags, Mapping):
        raise BadInput(f"values={tags!r}: expected a mapping from key to tag")
    for key, text in tags.items():
        if not isinstance(text, str) or _split(text)[0] not in TAGS:
            raise BadInput(f"values.{key}={text!r}: expected one of {', '.join(TAGS)}, then a comma and a note, if any")
        if not any(_has(config, key) for config in configs) and _longest(overridden, key) is None:
            try:
                check_key(configs[0], key)
            except BadInput as error:
                raise BadInput(f"values.{error}") from error


def tagged(tags: Mapping[str, str], overridden: Collection[str], cells: Iterable[Mapping[str, Any]]) -> list[Tagged]:
    """Every field of `cells` under the tag of the longest key that covers it; the paper's first.

    Fields that an overridden key covers are `given`, whatever the experiment says of them; others without a tag are
    `untagged`. Args: `overridden` the command line's keys; `cells` each cell's fields and values.
    """
    found = {key: Tagged(key, *_split(text), fields={}) for key, text in tags.items()}
    for cell in cells:
        for field, value in cell.items():
            if field in ONE_CLASS:
                continue
            key = _longest(overridden, field)
            tag = GIVEN if key else UNTAGGED
            if key is None and (key := _longest(tags, field)):
                tag = found[key].tag
            name = f"{GIVEN} {key}" if tag == GIVEN else key or field
            values = found.setdefault(name, Tagged(key or field, tag, "", {})).fields.setdefault(field, [])
            if value not in values:
                values.append(value)
    order = (*TAGS, GIVEN, UNTAGGED)
    return sorted((tag for tag in found.values() if tag.fields), key=lambda tag: order.index(tag.tag))


def _split(text: str) -> tuple[str, str]:
    """Tag and note."""
    tag, _, note = text.partition(",")
    return tag.strip(), note.strip()


def _longest(keys: Iterable[str], field: str) -> str | None:
    """The key of most parts that covers a field; of two, the one that names more of them."""
    return max((key for key in keys if _covers(key, field)), key=lambda k: (k.count("."), -k.count("*")), default=None)


def _covers(key: str, field: str) -> bool:
    wanted, parts = key.split("."), field.split(".")
    return len(wanted) <= len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts, strict=False))


def _has(config: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    if not isinstance(config, dict):
        return False
    children = [child for name, child in config.items() if first in ("*", name)]
    return bool(children) and (not rest or any(_has(child, rest) for child in children))
