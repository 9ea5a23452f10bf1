"""How large klsweep and what it stands on are, and how long it takes to start."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.frame import Row, command, seconds

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 5


def rows(folder: Path) -> Iterator[Row]:
    """Sizes, and start-up from process start to end in an empty folder."""
    wheel = build_wheel(folder)
    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist())
    yield Row("wheel", f"{wheel.stat().st_size / 2**20:.2f} MiB, installed {unpacked / 2**20:.2f} MiB")
    sizes = _package_sizes(Path(sysconfig.get_path("purelib")))
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:LARGEST]
    words = ", ".join(f"{name} {sizes[name] / 2**20:,.0f}" for name in largest)
    yield Row("site-packages of this environment", f"{sum(sizes.values()) / 2**20:,.0f} MiB ({words})")
    for module in ("klsweep", "klsweep.cli", "klsweep.objective.objective"):
        importing = [sys.executable, "-c", f"import {module}"]
        low, median = seconds(lambda words=importing: subprocess.run(words, cwd=folder, check=True), 7)
        yield Row(f"`import {module}`", f"{low:.2f} s min, {median:.2f} s median")
    for words in (["--help"], ["plan", "experiment=quickstart"], ["plan", "--outline", "experiment=paper_on_policy"]):
        low, median = seconds(command(folder, *words), 5)
        yield Row(f"`klsweep {' '.join(words)}`", f"{low:.2f} s min, {median:.2f} s median")


def build_wheel(folder: Path) -> Path:
    """klsweep's wheel, built in `folder` from a copy of what it is made of: setuptools leaves a build/ behind."""
    source, out = folder / "source", folder / "wheel"
    for name in ("klsweep", "conf", "analysis", "slurm"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=source, check=True)
    return next(out.glob("*.whl"))


def _package_sizes(site: Path) -> dict[str, int]:
    """Bytes of each entry of a site-packages folder."""
    files = {entry.name: [entry, *entry.rglob("*")] if entry.is_dir() else [entry] for entry in site.iterdir()}
    return {name: sum(f.stat().st_size for f in found if f.is_file()) for name, found in files.items()}
