"""The folder that a page's commands are executed in, and what lies there for the names that pages use."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from klsweep.record.folder import SweepFolder
from tests.docs.pages import ROOT
from tests.docs.rules import UPDATES
from tests.mirror.wandb_server import KEY

LIMIT = 600  # seconds a command may take, on a busy machine
LAUNCHES = r"^klsweep (sweep|train|plan|doctor|smoke|fetch) "
SHARED = {
    "sweep": "klsweep sweep placement=none,reward,loss seed=0,1 sweep_dir=sweep checkpoint.keep_at=[1]",
    # has probes, and the batches before its end
    "diverged": "klsweep train sweep_dir=diverged train.max_kl=1e-9 train.probe_every=1",
}


class Done(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    code: int
    output: str


class Workshop:
    """What all pages share: the environment, a SLURM if there is one, a small sweep and a diverged run, made once."""

    def __init__(self, root: Path, wandb_url: str) -> None:
        self.root = root
        home = root / "home"
        home.mkdir()
        own = {
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "KLSWEEP_CACHE": str(root / "cache"),
            "OMP_NUM_THREADS": "1",  # several commands at a time: more threads would only wait for each other
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WANDB_API_KEY": KEY,
            "WANDB_BASE_URL": wandb_url,
            "WANDB_ENTITY": "lab",
        }
        self.environment = {**os.environ, **own}
        self._once, self._made = threading.Lock(), dict[str, Done]()

    def run(self, command: str, folder: Path, **environment: str) -> Done:
        """Execute a line of shell."""
        try:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired as error:
            return Done(-1, f"{(error.stdout or b'').decode()}\nstopped after {LIMIT} s")
        return Done(done.returncode, done.stdout)

    def shared(self, name: str) -> Path:
        """The folder `sweep` or `diverged`, made when it is first asked for."""
        with self._once:
            if name not in self._made:
                self._made[name] = self.run(f"{SHARED[name]} {UPDATES}", self.root)
        assert self._made[name].code == 0, self._made[name].output
        return self.root / name

    def start_slurm(self) -> bool:
        """Start a cluster of our own; False if SLURM's programs are missing."""
        done = self.run(f"{self._cluster} start", self.root)
        self.environment["SLURM_CONF"] = str(self.root / "slurm/slurm.conf")
        return done.code == 0

    def stop_slurm(self) -> None:
        """End that cluster."""
        self.run(f"{self._cluster} stop", self.root)

    @property
    def _cluster(self) -> str:
        return f"{sys.executable} {ROOT}/slurm/local-cluster --state {self.root}/slurm"


class Bench:
    """A page's own folder in the workshop."""

    def __init__(self, workshop: Workshop, page: str) -> None:
        self.workshop, self.page = workshop, page
        self.folder = workshop.root / page.replace("/", "-").removesuffix(".md")
        self.environment: dict[str, str] = {}
        if page == "CONTRIBUTING.md":  # its examples change the package
            self._copy_repository()
        elif page.startswith("examples/"):
            shutil.copytree(ROOT / page.removesuffix("/README.md"), self.folder)
        else:
            self.folder.mkdir()

    def _copy_repository(self) -> None:
        for name in ("klsweep", "conf", "analysis", "slurm"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.folder / name, symlinks=True, ignore=ignore)
        self.environment["PYTHONPATH"] = str(self.folder)

    def run(self, command: str) -> Done:
        """Execute a command in the folder."""
        return self.workshop.run(command, self.folder, **self.environment)

    def bound(self, command: str) -> str:
        """The command with what the page's names stand for in place of them; what they name is there afterwards."""
        if not re.search(LAUNCHES, command) and "export" not in command:
            for sweep in re.findall(r"\bsweeps/\w+", command):
                self._lay(sweep, self.workshop.shared("sweep"))
        words = iter(range(9))
        command = re.sub(r"(sweeps/\w+)/runs/r1-…", lambda m: self._run_of(m[1], next(words)), command)
        command = re.sub(r"\[RUN_ID …\]", lambda m: Path(self._run_of("sweeps/quickstart", 0)).name, command)
        if re.search(r"\bRUN\b", command):
            self._lay("diverged", self.workshop.shared("diverged"))
            command = re.sub(r"\bRUN\b", self._run_of("diverged", 0), command)
        command = re.sub(r"launcher\.profile=\w+", "launcher.profile=local", command)
        command = re.sub(r"\bPATH\b", str(ROOT / "klsweep/model/tiny"), command)
        if "export" in command:
            fresh = f"exported-{len(list(self.folder.glob('exported-*')))}"
            return command.replace("path/to/model", fresh)
        for name, write in FILES.items():
            if re.search(rf"(?<![\w/]){re.escape(name)}\b", command) and not (self.folder / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                write(self.folder / name)
        return command

    def _lay(self, name: str, source: Path) -> None:
        if not (self.folder / name).exists():
            shutil.copytree(source, self.folder / name)

    def _run_of(self, sweep: str, index: int) -> str:
        """The path of the sweep's run of that place in its plan, finished ones only."""
        if not (self.folder / sweep).exists():
            self._lay(sweep, self.workshop.shared("sweep"))
        folder = SweepFolder(self.folder / sweep)
        ids = [row["run_id"] for row in folder.plan()]
        return f"{sweep}/runs/{ids[index % len(ids)]}"


def _tables(file: Path) -> None:
    rows = [[0.3, -0.2], [0.1, 0.4], [0.5, 0.0]]
    theta, ref = [rows] * 3, [[row[::-1] for row in rows]] * 3
    file.write_text(json.dumps({"theta": theta, "ref": ref}))


def _problems(file: Path) -> None:
    """150 sums, of which a page holds 100 out."""
    pairs = random.Random(0).sample([(a, b) for a in range(20) for b in range(20)], 150)
    file.write_text("".join(json.dumps({"question": f"{a}+{b}=", "solution": str(a + b)}) + "\n" for a, b in pairs))


FILES = {
    "tables.json": _tables,
    "FILE.npy": lambda file: np.save(file, np.random.default_rng(0).normal(0.0, 0.5, (512, 16))),
    "mine.jsonl": _problems,
    "examples": lambda folder: shutil.copytree(ROOT / "examples", folder),
    "path/to/model": lambda folder: shutil.copytree(ROOT / "klsweep/model/tiny", folder),
}
