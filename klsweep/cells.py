"""Telling cells apart, from the rows of a plan. Used by plans, progress, states and tables alike."""

from collections.abc import Sequence

from klsweep.record.files import Row

ALWAYS = ("estimator", "placement")
PLAIN = ("none", "same")  # values that say that nothing was changed


def varying(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Axes (always estimator and placement) and scientific fields in which rows differ.

    A field that is inert in a row is absent from it, and no difference. A field that only follows from the choice taken
    on its axis is the axis again, and left out.
    """
    names = list(dict.fromkeys(axis for row in rows for axis in row["axes"]))
    axes = [axis for axis in names if axis in ALWAYS or len({row["axes"].get(axis) for row in rows}) > 1]
    fields = sorted({name for row in rows for name in row["fields"]})
    differing = [n for n in fields if len({repr(row["fields"][n]) for row in rows if n in row["fields"]}) > 1]
    return axes, [name for name in differing if not _follows_axis(name, rows)]


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
    words += [axes["sampling"], *(axes.get(axis) for axis in further)]  # a row of an earlier version may lack an axis
    words += [f"{name}={value}" for name in fields if (value := row["fields"].get(name)) not in (None, *PLAIN)]
    return " ".join(word for word in words if word)
