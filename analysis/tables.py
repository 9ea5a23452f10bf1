"""A comparison as a terminal table, Markdown or JSON: three renderings of one list of columns and cells."""

from typing import Any

from rich.table import Table

from klsweep.analysis.compare import CellResult, Comparison
from klsweep.analysis.stats import Estimate
from klsweep.terminal import console

AXES = ("model", "estimator", "placement", "clip", "sampling")
Cells = list[str]


def to_json(comparison: Comparison) -> list[dict[str, Any]]:
    """A list of cells; inert values are null, and so are intervals below two runs."""
    return [
        {
            "cell_id": cell.plan["cell_id"],
            **{axis: cell.plan["axes"][axis] for axis in AXES},
            "kl_coef": cell.plan["kl_coef"],
            "n_seeds": cell.n_seeds,
            "states": cell.states,
            "collapsed": cell.collapsed,
            "suites": {
                name: {"role": cell.plan["suites"].get(name), **_numbers(estimate)}
                for name, estimate in cell.suites.items()
            },
            "in_distribution": _numbers(cell.in_distribution),
            "out_of_distribution": _numbers(cell.out_of_distribution),
            "kl": _numbers(cell.kl),
            "reward": _numbers(cell.reward),
            "base": comparison.base.get(cell.plan["axes"]["model"]),
            "fields": cell.plan["fields"],
        }
        for cell in comparison.cells
    ]


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"n": 0, "mean": None, "ci_low": None, "ci_high": None}
    return estimate._asdict()


def to_markdown(comparison: Comparison) -> str:
    """A Markdown table with its coverage line and notes."""
    header, rows = _grid(comparison)
    lines = [coverage(comparison), "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes(comparison))])


def print_table(comparison: Comparison) -> None:
    """The table on a terminal, coverage first."""
    out = console()
    out.print(coverage(comparison), style="bold", highlight=False)
    header, rows = _grid(comparison)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    if _total(widths) > out.width:
        # too narrow: break between mean and interval, and lines if need be, but never cut a word or a figure
        widths = [max(len(word) for cell in column for word in cell.split()) for column in columns]
        out.width = max(out.width, _total(widths))
    for i, (name, width) in enumerate(zip(header, widths, strict=True)):
        table.add_column(name, justify="left" if i == 0 else "right", width=width)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for note in notes(comparison):
        out.print(note, highlight=False)


def _total(widths: list[int]) -> int:
    """Characters of a line: each column has a space on either side."""
    return sum(widths) + 2 * len(widths)


def coverage(comparison: Comparison) -> str:
    """Planned runs by state."""
    states = ", ".join(f"{count} {state}" for state, count in comparison.states.items())
    return f"{comparison.sweep}: {len(comparison.cells)} cells, {sum(comparison.states.values())} runs: {states}"


def notes(comparison: Comparison) -> Cells:
    """What the marks mean, and warnings."""
    ids = [name for name, role in comparison.suites.items() if role == "in"]
    lines = [
        "Accuracy: sampled pass@1, mean over seeds ± half of the 95 % t interval over runs. "
        f"In distribution: {', '.join(ids)}. KL(π‖π_ref): nats per response, fresh samples on the trained task.",
    ]
    if not all(cell.complete for cell in comparison.cells):
        lines.append("* mean over fewer runs than planned (see runs).")
    return [*lines, *(f"warning: {text}" for text in comparison.warnings)]


def _grid(comparison: Comparison) -> tuple[Cells, list[Cells]]:
    """Header and rows as text: only axes and fields that differ, then figures."""
    axes, fields = _varying(comparison)
    ids = [name for name, role in comparison.suites.items() if role == "in"]
    outs = [name for name, role in comparison.suites.items() if role == "out"]
    header = [*axes, *(["β"] if _has_beta(comparison) else []), *(_short(f) for f in fields), "runs"]
    header += [*(f"{name} (in)" for name in ids), *outs, "out mean", "KL", "reward", "outcome"]
    rows = []
    for model, accuracies in comparison.base.items():
        lead = [f"base {model}", *[""] * (header.index("runs"))]
        known = [value for name in outs if (value := accuracies[name]) is not None]
        out_mean = [_plain(sum(known) / len(known)) if known else "–"]
        rows.append([*lead, *(_plain(accuracies[n]) for n in (*ids, *outs)), *out_mean, "0", "", ""])
    for cell in comparison.cells:
        rows.append(
            [
                *(_label(cell.plan["axes"][axis]) for axis in axes),
                *([_label(cell.plan["kl_coef"])] if _has_beta(comparison) else []),
                *(_label(cell.plan["fields"].get(name)) for name in fields),
                f"{cell.n_seeds}/{cell.planned}",
                *(_figure(cell.suites.get(name), cell) for name in (*ids, *outs)),
                _figure(cell.out_of_distribution, cell),
                _figure(cell.kl, cell),
                _figure(cell.reward, cell),
                _outcome(cell),
            ]
        )
    return header, rows


def _varying(comparison: Comparison) -> tuple[list[str], list[str]]:
    """Axes and scientific fields in which cells differ; always at least estimator and placement."""
    plans = [cell.plan for cell in comparison.cells]
    names = list(dict.fromkeys(axis for plan in plans for axis in plan["axes"]))
    axes = [a for a in names if a in ("estimator", "placement") or len({p["axes"].get(a) for p in plans}) > 1]
    fields = sorted({name for plan in plans for name in plan["fields"]})
    differing = [name for name in fields if len({repr(p["fields"].get(name)) for p in plans}) > 1]
    # a field that only says which choice was taken is the axis again
    return axes, [name for name in differing if not _follows_axis(name, plans)]


def _follows_axis(name: str, plans: list[dict[str, Any]]) -> bool:
    """True if a field differs between choices of its axis only, never within one."""
    axis = name.split(".")[0]
    values: dict[Any, set[str]] = {}
    for plan in plans:
        if axis in plan["axes"]:
            values.setdefault(plan["axes"][axis], set()).add(repr(plan["fields"].get(name)))
    return bool(values) and all(len(found) == 1 for found in values.values())


def _has_beta(comparison: Comparison) -> bool:
    return any(cell.plan["kl_coef"] is not None for cell in comparison.cells)


def _short(field: str) -> str:
    return {"clip.tau": "τ", "sampling.async_level": "lag", "placement.credit": "credit"}.get(field, field)


def _label(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _figure(estimate: Estimate | None, cell: CellResult) -> str:
    if estimate is None:
        return "–"
    mark = "" if estimate.n == cell.planned else "*"
    if estimate.ci_high is None:
        return f"{estimate.mean:.3f}{mark}"
    return f"{estimate.mean:.3f} ±{estimate.ci_high - estimate.mean:.3f}{mark}"


def _outcome(cell: CellResult) -> str:
    parts = [f"{n} {state}" for state, n in cell.states.items() if state != "done"]
    if cell.collapsed:
        parts.append(f"collapsed {cell.collapsed}/{cell.n_seeds}")
    return ", ".join(parts) or "done"
