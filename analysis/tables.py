"""A comparison as a terminal table, Markdown or JSON: three renderings of one list of columns and cells."""

import math
from typing import Any

from klsweep.analysis.compare import COLLAPSE_SHARE, CellResult, Comparison
from klsweep.analysis.load import LAST_UPDATES
from klsweep.analysis.stats import Estimate
from klsweep.cells import varying
from klsweep.terminal import console, markdown_grid, print_grid

SHORT = {"clip.tau": "τ", "sampling.async_level": "lag", "placement.credit": "credit", "algorithm.aggregation": "agg."}

Words = list[str]


def to_json(comparison: Comparison) -> list[dict[str, Any]]:
    """A list of cells; inert values are null, and so are intervals below two runs."""
    return [
        {
            "cell_id": cell.plan["cell_id"],
            **cell.plan["axes"],
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
            "base": cell.base.suites if cell.base else None,
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
    lines = [coverage(comparison), "", markdown_grid(*_grid(comparison)), ""]
    return "\n".join([*lines, *(f"{note}  " for note in notes(comparison))])


def print_table(comparison: Comparison) -> None:
    """The table on a terminal, coverage first."""
    out = console()
    out.print(coverage(comparison), style="bold")
    print_grid(*_grid(comparison))
    for note in notes(comparison):
        out.print(note)


def coverage(comparison: Comparison) -> str:
    """Planned runs by state."""
    states = ", ".join(f"{count} {state}" for state, count in comparison.states.items())
    return f"{comparison.sweep}: {len(comparison.cells)} cells, {sum(comparison.states.values())} runs: {states}"


def notes(comparison: Comparison) -> Words:
    """What the figures and marks mean, and warnings."""
    lines = [
        "Accuracy: sampled pass@1, mean over runs (seeds) ± half of its 95 % t interval; (in): the trained task. "
        "KL: KL(π‖π_ref) in nats per response, on fresh samples for the trained task. "
        f"reward: of the last {LAST_UPDATES} training batches."
    ]
    if any(cell.collapsed for cell in comparison.cells):
        lines.append(
            f"collapsed k/n: accuracy on the trained task below {COLLAPSE_SHARE:g} of the base's in k of n runs."
        )
    if any(text.endswith("*") for row in _grid(comparison)[1] for text in row):
        lines.append("* mean over fewer runs than planned (see runs).")
    return [*lines, *(f"warning: {text}" for text in comparison.warnings)]


def _grid(comparison: Comparison) -> tuple[Words, list[Words]]:
    """Header and rows as text: only axes and fields that differ, then figures."""
    axes, fields = varying([cell.plan for cell in comparison.cells])
    betas = any(cell.plan["kl_coef"] is not None for cell in comparison.cells)
    lead = [*axes, *(["β"] if betas else []), *(SHORT.get(name, name) for name in fields)]
    roles = comparison.suites
    mixed = "mixed" in roles.values()  # several trained tasks: a suite is in distribution for some cells only
    header = [*lead, "runs", *(["in mean"] if mixed else [])]
    header += [f"{name} (in)" if role == "in" else name for name, role in roles.items()]
    header += ["out mean", "KL", "reward", "outcome"]
    rows = []
    for base in comparison.bases:
        known = [value for name, role in roles.items() if role == "out" and (value := base.suites[name]) is not None]
        out_mean = _plain(math.fsum(known) / len(known) if known and not mixed else None)
        accuracies = [_plain(base.suites[name]) for name in roles]
        name = f"base {base.model}"
        rows.append([name, *[""] * (len(lead) + mixed), *accuracies, out_mean, "0", "", ""])
    for cell in comparison.cells:
        labels = [*(cell.plan["axes"].get(axis) for axis in axes), *([cell.plan["kl_coef"]] if betas else [])]
        labels += [cell.plan["fields"].get(name) for name in fields]
        figures = [*([cell.in_distribution] if mixed else []), *(cell.suites.get(name) for name in roles)]
        figures += [cell.out_of_distribution, cell.kl, cell.reward]
        texts = [*map(_label, labels), f"{cell.n_seeds}/{cell.planned}", *(_figure(f, cell) for f in figures)]
        rows.append([*texts, _outcome(cell)])
    return header, rows


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
