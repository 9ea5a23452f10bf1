"""Imports point one way, and heavy ones stay where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "klsweep"

# A package may import those of its own row and of rows above it. `analysis` sees the record and the theory alone.
LAYERS = [
    {"component", "errors", "terminal", "provenance"},
    {"record", "tasks", "theory"},
    {"cells"},
    {"config"},
    {"external"},
    {"objective"},
    {"model"},
    {"rollout", "tracking"},
    {"training"},
    {"audit"},
    {"sweep"},
    {"mirror", "bundle"},
    {"commands"},
    {"cli", "train"},
]
ANALYSIS_MAY_SEE = {"analysis", "cells", "errors", "record", "terminal", "theory"}


def imports(file: Path) -> set[str]:
    """Names of klsweep parts that a file imports when it runs; imports for type checkers do not count."""
    found = set()
    tree = ast.parse(file.read_text())
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and getattr(guard.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.module != "klsweep" else [f"klsweep.{a.name}" for a in node.names]
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("klsweep.")}
    return found - {"__version__"}


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(f for f in PACKAGE.rglob("*.py") if f.name != "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    own = part(file)
    if own == "analysis":
        assert imports(file) <= ANALYSIS_MAY_SEE
        return
    rank = {name: i for i, row in enumerate(LAYERS) for name in row}
    later = {name for name in imports(file) - {"analysis"} if rank[name] > rank[own]}
    assert not later, f"{own} may not import {later}"
    assert "analysis" not in imports(file) or own == "commands"


def loaded_after(code: str) -> set[str]:
    script = f"import sys; {code}; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import klsweep.cli, klsweep.sweep.status, klsweep.sweep.show", {"torch", "hydra", "wandb", "transformers"}),
        (
            "import klsweep.cli, klsweep.analysis.compare, klsweep.analysis.tables, klsweep.external.write",
            {"torch", "hydra", "wandb", "pandas"},
        ),
        (
            "from pathlib import Path; from klsweep.analysis.load import load; from klsweep.record.folder import *\n"
            "from klsweep.analysis.query import ask; sweep = SweepFolder(Path('/none'))\n"
            "ask(load([sweep]).collected, 'SELECT * FROM runs JOIN metrics USING (run_id)')\n",
            {"torch", "hydra", "wandb", "pandas"},
        ),
        ("import klsweep.tasks.arithmetic, klsweep.config.identity", {"torch", "transformers", "wandb"}),
        (
            "from klsweep.theory import bound, budget, clip_threshold, coverage, example, pac_bayes, variance",
            {"torch", "transformers", "wandb", "hydra", "matplotlib"},
        ),
        (
            "from klsweep.config.compose import composer; from klsweep.sweep.plan import make_plan\n"
            "with composer() as session: make_plan(session, [])\n",
            {"transformers", "wandb", "torch.distributed.tensor", "scipy.stats"},
        ),
        ("import klsweep.training.loop", {"transformers", "wandb", "torch.distributed.tensor", "scipy.stats"}),
    ],
)
def test_heavy_imports_stay_away(code, absent):
    assert not loaded_after(f"exec({code!r})") & absent
