"""Figures, from plain rows, and how a figure becomes a file. matplotlib without a display."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNDATED = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
SUFFIXES = tuple(UNDATED)


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib as it comes: a matplotlibrc of the user's would make other figures of the same records."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save(figure: Any, file: Path) -> None:
    """Write a figure in the format of the file's suffix: the same figure gives the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "klsweep"}):
        figure.savefig(file, dpi=120, metadata=UNDATED[file.suffix])


def bias_and_variance(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Two panels against response length: bias (with its noise floor) and variance of each configuration.

    Lines are Monte Carlo, crosses the enumerated values; `rows` as from `klsweep audit --study`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    for i, name in enumerate(names):
        own = [row for row in rows if row["configuration"] == name]
        style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i % 3]}  # some coincide
        for panel, key in zip(panels, ("bias", "variance"), strict=True):
            panel.plot([row["length"] for row in own], [row[key] for row in own], label=name, **style)
            exact = [(row["length"], row[f"exact_{key}"]) for row in own if (row[f"exact_{key}"] or 0.0) > 1e-9]
            if exact:
                panel.plot(*zip(*exact, strict=True), "x", color=style["color"], markersize=5)
    lengths = sorted({row["length"] for row in rows})
    noise = [min(row["bias_noise"] for row in rows if row["length"] == length) for length in lengths]
    panels[0].fill_between(lengths, 0, noise, color="0.9", label="smallest noise of any")
    for panel, title in zip(panels, ("bias ‖mean − ∇KL‖ / ‖∇KL‖", "variance of a round / ‖∇KL‖²"), strict=True):
        panel.set(xlabel="response length T", title=title, yscale="log")
        panel.set_xticks(range(min(lengths), max(lengths) + 1, 5))
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    save(figure, file)
    pyplot.close(figure)
