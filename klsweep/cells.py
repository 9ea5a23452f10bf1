"""Telling cells apart, from the rows of a plan. Used by plans, progress, states and tables alike."""

from collections.abc import Collection, Sequence

from klsweep.record.files import Row
from klsweep.record.origin import EXTERNAL, is_external

AXES = ("model", "adapter", "estimator", "placement", "clip", "correction", "sampling")
AXES += ("algorithm", "task", "reward", "rollout")
ALWAYS = ("estimator", "placement")
PLAIN = ("none", "same")  # values that say that nothing was changed


def varying(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Axes (always estimator and placement) and scientific fields in which rows differ.

    A field that is inert in a row is absent from it, and no difference; nor is an axis that an external row does not
    declare. A field that only follows from the choice taken on its axis is the axis again, and left out.
    """
    names = list(dict.fromkeys(axis for row in rows for axis in row["axes"]))
    axes = [axis for axis in names if axis in ALWAYS or len(_choices(axis, rows)) > 1]
    fields = sorted({name for row in rows for name in row["fields"]})
    differing = [n for n in fields if len({repr(row["fields"][n]) for row in rows if n in row["fields"]}) > 1]
    return axes, [name for name in differing if not _follows_axis(name, rows)]


def _choices(axis: str, rows: Sequence[Row]) -> Collection[str | None]:
    """The choices on an axis; a row of an earlier version that lacks it has None."""
    return {row["axes"].get(axis) for row in rows if axis in row["axes"] or not is_external(row)}


def _follows_axis(name: str, rows: Sequence[Row]) -> bool:
    """True if a field differs between choices of its axis only, never within one."""
    axis = name.split(".")[0]
    values: dict[str, set[str]] = {}
    for row in rows:
        if axis in row["axes"]:
            values.setdefault(row["axes"][axis], set()).add(repr(row["fields"].get(name)))
    return bool(values) and all(len(found) == 1 for found in values.values())


def describe(rows: Sequence[Row]) -> dict[str, str]:
    """Each cell in a few words that tell it from the others, by cell id: `k1 reward β=0.1 off_policy`."""
    axes, fields = varying(rows)
    further = [axis for axis in axes if axis not in (*ALWAYS, "clip", "correction", "sampling")]
    return {row["cell_id"]: _words(row, further, fields) for row in rows}


def _words(row: Row, further: Sequence[str], fields: Sequence[str]) -> str:
    axes = row["axes"]
    words = [axes["estimator"], axes["placement"] if axes["estimator"] else "no KL"]
    if row["kl_coef"] is not None:
        words.append(f"β={row['kl_coef']:g}")
    words += [f"{axis} {axes[axis]}" for axis in ("clip", "correction") if axes.get(axis) not in (None, "none")]
    words += [axes.get(axis) for axis in ("sampling", *further)]  # a row of an earlier version may lack an axis
    words += [f"{name}={value}" for name in fields if (value := row["fields"].get(name)) not in (None, *PLAIN)]
    words += [EXTERNAL] if is_external(row) else []
    return " ".join(word for word in words if word)
