"""A page per configuration group: its choices, fields and docstrings, and what the audit says of each choice."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter

from klsweep import __version__
from klsweep.audit.bias import bias_table
from klsweep.audit.cases import cases
from klsweep.audit.show import Grid, bias_grid, figure, whole_grid
from klsweep.audit.tabular import instance
from klsweep.audit.whole import whole_table
from klsweep.component import used_fields
from klsweep.config.build import allowed, find_target
from klsweep.config.compose import CONF, Composer
from klsweep.errors import BadInput
from klsweep.terminal import markdown_grid

PLACES = {
    "reward": ("placement=reward",),
    "loss, level token": ("placement=loss",),
    "loss, level sequence": ("placement=loss", "placement.level=sequence"),
    "reward_and_loss": ("placement=reward_and_loss",),
}
LEFT_OUT = ("cosine", "norm ratio", "variance", "SNR")
UNUSED = "–"  # by this choice


class Axis(NamedTuple):
    """A page: its sentence, and the overrides that each choice is audited with (none: nothing to audit)."""

    about: str
    audited: tuple[str, ...] = ()
    further: Mapping[str, tuple[str, ...]] = {}  # by choice
    whole: bool = False  # audited with the group statistics of the whole objective


# Every group whose choices are components of klsweep's own, and the `kl` node.
AXES = {
    "model": Axis("Which policy is trained, and from what."),
    "estimator": Axis(
        "What is computed from a log-ratio ℓ = log π − log π_ref.",
        ("placement=reward,loss,reward_and_loss", "placement.level=token,sequence"),
    ),
    "placement": Axis(
        "Where the estimate enters.",
        ("estimator=k1,k3", "placement.credit=sequence,to_go,token", "placement.level=token,sequence"),
    ),
    "clip": Axis(
        "What bounds the log-ratio before the estimator sees it, and the estimate after it.",
        ("estimator=k1,k2", "placement=reward,loss", "placement.level=token,sequence"),
        {"fixed": ("clip.level=token,sequence", "clip.mode=hard,straight_through")},
    ),
    "sampling": Axis(
        "How old the weights are that a batch was sampled from.", ("estimator=k1,k3", "placement=reward,loss")
    ),
    "correction": Axis(
        "What weighs the policy gradient, and the KL in the reward with it, where the sampler is not π_old.",
        ("estimator=k1", "placement=reward", "sampling=off_policy", "correction.level=token,sequence"),
    ),
    "kl": Axis(
        "How strong the regulariser is, and what weighs the KL loss.",
        (
            "estimator=k1,k3",
            "placement=loss",
            "sampling=off_policy",
            "kl.weight=none,token,sequence",
            "kl.weight_grad=detached,differentiable",
        ),
    ),
    "algorithm": Axis(
        "How rewards of a group become advantages, and how the policy loss is clipped and aggregated.",
        ("estimator=k1", "placement=reward", "algorithm.group_size=4", "kl.coef=0.1"),
        whole=True,
    ),
    "adapter": Axis("What of the model is trained."),
    "rollout": Axis("Which engine samples."),
    "parallel": Axis("How many processes share one run."),
    "reward": Axis("What training sees of a response."),
    "launcher": Axis("Where runs are carried out."),
}


INDEX = "README"
PAGES = [INDEX, *AXES]
WRITTEN = f"Written by `klsweep audit --axes docs/axes` (klsweep {__version__}) from docstrings, schemas and YAML files"


class Choice(NamedTuple):
    """One choice of a group: the component, and its YAML's values and comments by field."""

    name: str
    kind: type
    about: str  # the comment at the head of its file
    values: dict[str, Any]
    comments: dict[str, str]


def write_axes(composer: Composer, folder: Path, progress: Callable[[int], None]) -> list[Path]:
    """Write `README.md` and, for each of `AXES`, `<group>.md` into `folder`; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in PAGES:
        file = folder / f"{name}.md"
        file.write_text(page(composer, name))
        files.append(file)
        progress(len(files))
    return files


def page(composer: Composer, name: str) -> str:
    """One of `PAGES`, as Markdown."""
    return index_page(composer) if name == INDEX else axis_page(composer, name)


def index_page(composer: Composer) -> str:
    """What there is, and the verdict on each estimator in each place."""
    names = composer.options("estimator")
    verdicts = [_verdicts(composer, [f"estimator={','.join(names)}", *words]) for words in PLACES.values()]
    rows = [[f"`{name}`", *(_cell(place.get(name, "undefined")) for place in verdicts)] for name in names]
    parts = [
        "# The axes",
        f"{WRITTEN}, with the audit's verdicts.",
        "\n".join(f"- [{group}]({group}.md): {axis.about}" for group, axis in AXES.items()),
        "## Which gradient is taken",
        "On policy, V = 3, T = 4: the relative error of the expected gradient of the KL term against "
        "∇KL(π_θ ‖ π_ref) of sequences, and what it is. Everything else is as by default (credit `sequence`, no clip, "
        "no weight).",
        markdown_grid(["estimator", *(f"`{place}`" for place in PLACES)], rows),
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(composer: Composer, overrides: Sequence[str]) -> dict[str, str]:
    """What each estimator's gradient is, of those that are defined so."""
    chosen, _ = cases(composer, overrides, "")
    rows = bias_table(instance(4, 3), chosen, None, 0, lambda done: None)
    return {row["estimator"]: f"{figure(row['relative_error'])} {row['verdict']}" for row in rows}


def axis_page(composer: Composer, group: str) -> str:
    """The page of one group, as Markdown."""
    axis, choices = AXES[group], _choices(composer, group)
    bases = {_base(choice.kind) for choice in choices}
    common = bases.pop() if len(bases) == 1 else None
    parts = [
        f"# `{group}`",
        axis.about,
        f"{WRITTEN}, with the audit's tables." if axis.audited else f"{WRITTEN}.",
        *([] if common is None else [_text(common)]),
        "## Fields",
        markdown_grid(*_fields(group, choices)),
        *([_caption(axis)] if axis.audited else []),
    ]
    for choice in choices:
        is_group = group != "kl"
        parts += [f"## `{group}={choice.name}`"] if is_group else []
        parts += [choice.about] if choice.about else []
        parts += [_text(choice.kind)] if choice.kind is not common else []
        parts += _audited(composer, axis, [f"{group}={choice.name}"] if is_group else []) if axis.audited else []
    return "\n\n".join(parts) + "\n"


def _caption(axis: Axis) -> str:
    if axis.whole:
        return "The tables below: what group statistics make of reward and KL, with V = 2 and T = 4."
    return (
        "The tables below: with V = 3 and T = 4, the relative error of the expected gradient of the KL term against "
        "∇KL(π_θ ‖ π_ref) of sequences, and what that gradient is."
    )


def _audited(composer: Composer, axis: Axis, choice: Sequence[str]) -> list[str]:
    """The audit of a choice: its command, its table, and what was excluded from it."""
    name = choice[0].split("=")[1] if choice else ""
    overrides = [*choice, *axis.audited, *axis.further.get(name, ())]
    options = "--whole" if axis.whole else "--length 4 --vocabulary 3"
    command = f"`klsweep audit {' '.join(overrides)} {options}`:"
    try:
        chosen, notes = cases(composer, overrides, "", whole=axis.whole)
    except BadInput as reason:
        return [command, f"{reason}."]
    if axis.whole:
        header, rows = whole_grid(whole_table(instance(4, 2), chosen, lambda done: None))
    else:
        header, rows = _narrowed(bias_grid(bias_table(instance(4, 3), chosen, None, 0, lambda done: None)))
    table = markdown_grid(header, [[_cell(text) for text in row] for row in rows])
    excluded = "\n".join(f"- {note}" for note in notes if note.startswith("excluded"))
    return [command, table, *([excluded] if excluded else [])]


def _narrowed(grid: Grid) -> Grid:
    """Without the columns that docs/audit.md has besides."""
    header, rows = grid
    kept = [i for i, name in enumerate(header) if name not in LEFT_OUT]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _choices(composer: Composer, group: str) -> list[Choice]:
    if group == "kl":
        text = (CONF / "config.yaml").read_text()
        node = text.split("\nkl:\n")[1].split("\n\n")[0]
        return [_choice("kl", inspect.cleandoc(f"\n{node}"))]
    return [_choice(name, (CONF / group / f"{name}.yaml").read_text()) for name in composer.options(group)]


def _choice(name: str, text: str) -> Choice:
    node = yaml.safe_load(text)
    head = " ".join(re.findall(r"^# ?(.*)$", text.split("_target_")[0], re.M))
    comments = {key: _meaning(comment) for key, comment in re.findall(r"^(\w+):.*?\s# (.*)$", text, re.M)}
    return Choice(name, find_target(node.pop("_target_"), name, allowed(())), head, node, comments)


def _meaning(comment: str) -> str:
    """A comment without the list of values at its head, which is the type's."""
    return re.sub(r"^[\w-]+( \| [\w-]+)+([:;] |$)", "", comment)


def _base(kind: type) -> type:
    """The class that declares the group's fields."""
    parent = kind.__mro__[1]
    return parent if dataclasses.is_dataclass(parent) else kind


def _text(kind: type) -> str:
    """A class's docstring, with those of the functions that it refers to in place of an explanation."""
    text = inspect.cleandoc(kind.__doc__ or "")
    module = sys.modules[kind.__module__]
    for name in re.findall(r"see `(\w+)`", text):
        function = getattr(module, name, None)
        if inspect.isfunction(function):
            text += f"\n\n`{name}`: {inspect.cleandoc(function.__doc__ or '')}"
    return text.replace("``", "`")


def _fields(group: str, choices: Sequence[Choice]) -> Grid:
    """A row per field: type, meaning, and the value that each choice's YAML gives it."""
    several = len(choices) > 1
    header = ["field", "type", "meaning", *([f"`{choice.name}`" for choice in choices] if several else ["default"])]
    names = dict.fromkeys(name for choice in choices for name in choice.values)
    rows = []
    for name in names:
        users = [choice for choice in choices if name in choice.values and name in used_fields(choice.kind)]
        types = dict.fromkeys(_type(choice.kind, name) for choice in users)
        meaning = _said_by([choice for choice in users if name in choice.comments], name)
        values = [_value(choice.values[name]) if choice in users else UNUSED for choice in choices]
        rows.append([f"`{group}.{name}`", _cell(" / ".join(types)), _cell(meaning), *values])
    return header, rows


def _said_by(choices: Sequence[Choice], name: str) -> str:
    """What the comments on a field say; by choice, where they say different things."""
    said: dict[str, list[str]] = {}
    for choice in choices:
        said.setdefault(choice.comments[name], []).append(choice.name)
    if len(said) < 2:
        return "".join(said)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in said.items())


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{_cell(text)}`"


def _type(kind: type, name: str) -> str:
    schema = TypeAdapter(kind).json_schema()
    return _shown(schema["properties"][name], schema.get("$defs", {}))


def _shown(schema: dict[str, Any], named: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return _shown(named[schema["$ref"].rsplit("/", 1)[1]], named)
    if "anyOf" in schema:
        return " or ".join(_shown(part, named) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_shown(schema.get('items', {}), named) or 'values'}"
    bounds = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    words = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema and schema[key] < 2**62]
    kinds = {"string": "text", "object": "mapping"}
    kind = schema.get("type", "value")
    return f"{kinds.get(kind, kind)} {' and '.join(words)}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
