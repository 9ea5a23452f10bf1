"""What every part of the benchmarks is made of: rows, timing, and the file they are written to.

A part is a function from an empty folder to rows. `RESULTS.md` has a section for each, so that one part can be measured
again, also on another machine, without the others.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

KLSWEEP = str(Path(sys.executable).parent / "klsweep")


class Row(NamedTuple):
    """One line of a part's table. What is compared was measured side by side in one go."""

    what: str
    figure: str


class Unavailable(Exception):
    """What a part needs is not here; its message says what."""


Part = Callable[[Path], Iterable[Row]]


def seconds(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(minimum, median) wall seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def command(folder: Path, *arguments: str) -> Callable[[], object]:
    """Runs `klsweep` with these arguments in `folder`."""
    return lambda: subprocess.run([KLSWEEP, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the range in brackets."""
    low, median, high = (f"{x:.{digits}f}" for x in (min(values), statistics.median(values), max(values)))
    return f"{median} ({low}–{high})"


def machine() -> str:
    """Processor, cores, how many processes wanted them, GPU if there is one, and versions."""
    import torch

    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = found[1] if found else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor}, {os.cpu_count()} cores (load average {os.getloadavg()[0]:.1f}){gpu}, {versions}"


def section(name: str, part: Part, rows: Sequence[Row]) -> str:
    """A part's section: its docstring, the machine, its rows."""
    lines = [f"| {row.what} | {row.figure} |" for row in rows]
    caption = " ".join((part.__doc__ or "").split())
    head = [f"## {name}", "", caption, "", f"On {machine()}:", "", "| what | figure |", "|---|---|"]
    return "\n".join([*head, *lines, ""])


def replace_section(file: Path, name: str, text: str, order: Sequence[str]) -> None:
    """Write one section into the results and leave the others; sections stand in `order`."""
    head, *others = re.split(r"(?m)^(?=## )", file.read_text())
    sections = {other.split("\n", 1)[0].removeprefix("## "): other.rstrip() + "\n" for other in others}
    sections[name] = text
    file.write_text("\n".join([head.rstrip() + "\n", *(sections[key] for key in order if key in sections)]))
