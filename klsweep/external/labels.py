"""What an external run is, as its mapping declares it: its labels checked, and its row in a plan."""

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from klsweep.cells import AXES
from klsweep.errors import BadInput
from klsweep.external.files import Labels, scalar
from klsweep.external.mapping import Mapping
from klsweep.provenance import PACKAGE
from klsweep.record.files import Row
from klsweep.record.folder import FINISHED
from klsweep.record.origin import EXTERNAL

STATES = (*FINISHED, "failed")
UNKNOWN = "unknown"
NAMED = ("adapter", "estimator", "placement", "clip", "correction", "sampling")  # axes whose choices have a meaning
REQUIRED = ("model", "placement", "sampling", "seed", "state")
BETA = "kl.coef"
KEYS = (*AXES, BETA, "seed", "state", "cause", "updates")


def plan_row(labels: Labels, mapping: Mapping, updates: int, suites: Collection[str]) -> Row:
    """The row of a run in `plan.jsonl`; `suites` are what it was to be asked.

    Its ids hash what is declared. None of klsweep's own begins with x.
    """
    axes: Row = {axis: labels[axis] for axis in AXES if axis in labels}
    beta = labels.get(BETA)
    if not has_kl(labels):  # estimator, clip and β are inert then, as in klsweep's own cells
        axes, beta = {key: axes[key] for key in axes if key != "clip"} | {"placement": "none", "estimator": None}, None
    fields = {key: value for key, value in labels.items() if key not in KEYS} | {"study": mapping.name}
    cell = {"axes": axes, "kl_coef": beta, "fields": fields}
    asked = mapping.evaluation or {"study": mapping.name}  # nobody knows whether undeclared settings are alike
    return {
        "run_id": _id("x", {**cell, "seed": labels["seed"]}),
        "cell_id": _id("xc", cell),
        "eval_id": _id("xe", asked),
        "seed": labels["seed"],
        "updates": updates,
        **cell,
        "suites": {name: mapping.suites[name].role for name in mapping.suites if name in suites},
        "origin": EXTERNAL,
        "kl_definition": mapping.kl_definition if mapping.has_kl else None,
    }


def _id(kind: str, content: Row) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{kind}1-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def checked(labels: Labels, mapping: Mapping, where: str) -> Labels:
    """The labels of a run, as numbers where they are. BadInput for one that is missing, unknown, or out of range."""
    for key in labels:
        if key not in (*KEYS, *mapping.fields):
            choices = ", ".join((*KEYS, *mapping.fields))
            raise BadInput(f"{where}: {key}: no such label (choose from {choices}; fields: [{key}] declares one more)")
    if missing := [key for key in REQUIRED if key not in labels]:
        raise BadInput(f"{where}: {missing[0]}: missing (labels, a column, or {{{missing[0]}}} in a path say it)")
    found: Labels = {}
    for key, value in labels.items():
        found[key] = _axis(key, value, mapping, where) if key in AXES else _other(key, value, where)
    if has_kl(found) and (missing := [key for key in ("estimator", BETA) if key not in found]):
        raise BadInput(f"{where}: {missing[0]}: missing, and placement={found['placement']} has a KL")
    return found


def has_kl(labels: Labels) -> bool:
    """False without placement, or with β = 0."""
    return labels["placement"] != "none" and labels.get(BETA) != 0


def _axis(axis: str, value: Any, mapping: Mapping, where: str) -> str:
    """The choice on an axis, as text. Those of axes that say what was trained have to be known, or to be declared."""
    text = str(value)
    choices = [*shipped(axis), UNKNOWN, *mapping.choices.get(axis, ())]
    if axis in NAMED and text not in choices:
        raise BadInput(
            f"{where}: {axis}={text}: choose from {', '.join(choices)} (choices: {{{axis}: [{text}]}} declares it)"
        )
    return text


def shipped(axis: str) -> list[str]:
    """The choices that klsweep has on an axis."""
    return sorted(file.stem for file in (PACKAGE / "conf" / axis).glob("*.yaml"))


def _other(key: str, value: Any, where: str) -> Any:
    found = scalar(value)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if key in ("seed", "updates") and not (type(found) is int and 0 <= found < 2**63):
        raise BadInput(f"{where}: {key}={value!r}: expected a whole number, at least 0")
    if key == BETA and not (is_number and 0 <= found < math.inf):
        raise BadInput(f"{where}: {BETA}={value!r}: expected a number, at least 0")
    if key == "state" and found not in STATES:
        raise BadInput(f"{where}: state={value!r}: choose from {', '.join(STATES)}")
    if found is None or (isinstance(found, float) and not math.isfinite(found)):
        raise BadInput(f"{where}: {key}={value!r}: expected a text or a finite number")
    return float(found) if key == BETA else found


def check_distinct(rows: Sequence[tuple[Row, str]]) -> None:
    """BadInput if two runs (plan row, and where it is from) have the same labels: one would hide the other."""
    seen: dict[str, str] = {}
    for row, where in rows:
        if (other := seen.get(row["run_id"])) is not None:
            raise BadInput(
                f"{where}: has the labels of {other}, seed {row['seed']} included: a field must tell the two apart"
            )
        seen[row["run_id"]] = where
