"""A real SLURM of two nodes, sweeps on it that can be paced and broken, and what they must come to."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klsweep.record.files import read_rows
from klsweep.record.folder import FINISHED, RunFolder, SweepFolder
from klsweep.sweep.status import sweep_status
from klsweep.sweep.submissions import submitted
from tests.conftest import LIGHT

LOCAL_CLUSTER = Path(__file__).parents[2] / "slurm/local-cluster"
MAX_ARRAY = 3
UPDATES = 40
PATIENCE_SECONDS = 600.0  # what takes a few seconds may take minutes on a machine that does a lot else
CELL = [
    "reward=paced",
    "plugins=[paced]",
    "train.prompts_per_update=8",
    "algorithm.group_size=4",
    "eval.samples_per_prompt=2",
    "eval.pass_at=[1,2]",
    *LIGHT,
    "kl.schedule=adaptive",
    "kl.target=0.05",
    "kl.horizon=64",
    "sampling.async_level=2",
    f"train.updates={UPDATES}",
    "train.checkpoint_seconds=0",
    "wandb.mode=disabled",
]
GRID = ["sampling=on_policy,off_policy", "seed=0,1"]
RUNS = 4  # of GRID
HELD = "launcher.sbatch={begin: now+1hour}"
PROFILE = """\
partition: all
time: 30
cpus_per_task: 1
"""


class Arena:
    """A cluster and a reference sweep, in one folder. `close` ends both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "conf/reward").mkdir(parents=True)
        (root / "conf/reward/paced.yaml").write_text("_target_: paced.Paced\nbatch: 32\n")
        (root / "profile.yaml").write_text(PROFILE)
        self.cluster("--max-array", str(MAX_ARRAY), "start")
        os.environ["SLURM_CONF"] = str(root / "slurm/slurm.conf")
        self.environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        try:
            self.klsweep("sweep", *CELL, *GRID, "launcher.threads=1", "sweep_dir=reference")
        except BaseException:
            self.close()
            raise
        self.reference = SweepFolder(root / "reference")

    def cluster(self, *arguments: str) -> None:
        command = [sys.executable, str(LOCAL_CLUSTER), "--state", str(self.root / "slurm"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        self.cluster("stop")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """klsweep with `--config-dir`, in the arena."""
        options = ["--config-dir", "conf"] if arguments[0] in ("sweep", "plan", "doctor") else []
        return subprocess.Popen(
            [sys.executable, "-m", "klsweep.cli", *arguments, *options],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background shell
        )

    def klsweep(self, *arguments: str, code: int = 0) -> str:
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE_SECONDS)
            finally:
                process.kill()
        assert process.returncode == code, (arguments, process.returncode, out, err)
        return out + err


class Trial:
    """One sweep on the arena's cluster that something is done to."""

    def __init__(self, arena: Arena, name: str, *overrides: str, pace: float = 0.05, folder: str | None = None) -> None:
        self.arena, self.name = arena, name
        self.control = arena.root / f"control-{name}"
        self.control.mkdir()
        self.directory = folder or f"sweeps/{name}"
        self.sweep = SweepFolder(arena.root / self.directory)
        self.overrides = [
            *CELL,
            *(overrides or ["seed=0", f"sampling={random.choice(['on_policy', 'off_policy'])}"]),
            f"sweep_dir={self.directory}",
            "launcher=slurm",
            f"launcher.profile={arena.root / 'profile.yaml'}",
            f"launcher.setup=['export TORTURE={self.control}']",
        ]
        self.faults: dict[str, tuple[str, int]] = {}
        self.pace(pace)

    def pace(self, seconds: float) -> None:
        content = json.dumps({"pace": seconds, "faults": self.faults})
        (self.control / "control.tmp").write_text(content)
        (self.control / "control.tmp").rename(self.control / "control.json")

    def submit(self, *more: str) -> str:
        return self.arena.klsweep("sweep", *self.overrides, *more)

    def folders(self) -> list[RunFolder]:
        return [self.sweep.run(row["run_id"]) for row in self.sweep.plan()]

    @property
    def run(self) -> RunFolder:
        """The only run of a trial that has one."""
        (folder,) = self.folders()
        return folder

    def job(self) -> str:
        return submitted(self.sweep)[self.run.run_id].job

    def strike_point(self) -> int:
        """Wait until the run has done a random number of updates; the process id of its worker."""
        update = random.randint(3, UPDATES // 2)
        wait_until(lambda: rows_of(self.run) > update, f"{self.name}: update {update}")
        return self.run.status()["owner"]["pid"]

    def states(self) -> list[str]:
        return [run["state"] for run in self.status()["runs"]]

    def status(self) -> dict[str, Any]:
        return sweep_status(self.sweep)

    def settle(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until nothing works on the sweep any more or waits in the queue; its status."""

        def idle() -> dict[str, Any] | None:
            status = self.status()
            busy = status["slurm"] or any(run["state"] == "running" or run["queue"] for run in status["runs"])
            return None if busy else status

        return wait_until(idle, f"{self.name}: quiet", seconds)

    def finish(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until every run is finished, lifting the hold of requeued jobs."""

        def finished() -> bool:
            status = self.status()
            for run in status["runs"]:
                if run["queue"] and "BeginTime" in run["queue"]:
                    shell("scontrol", "update", f"JobId={run['job']}", "StartTime=now")
                if run["queue"] and "held" in run["queue"]:  # SLURM found the old copy of a job on its node
                    shell("scontrol", "release", run["job"])
            return all(run["state"] in FINISHED for run in status["runs"])

        wait_until(finished, f"{self.name}: done", seconds, self._explanation)

    def _explanation(self) -> str:
        files = self.sweep.path.glob("submissions/*/logs/*_log.*")
        logs = [f"{file.name}: {file.read_text()[-1500:]}" for file in files]
        status = self.status()
        jobs = "|".join({str(run["job"]).split("_")[0] for run in status["runs"]})
        controller = (self.arena.root / "slurm/slurmctld.log").read_text().splitlines()
        about = [line for line in controller if re.search(rf"JobId=({jobs})\b", line)]
        return "\n".join([*logs, *about, shell("squeue", "--array", "--states=all"), json.dumps(status, indent=1)])

    def check(self) -> str:
        """Every planned run is done, once, and equals the undisturbed one byte for byte; how many attempts it took."""
        attempts = []
        for folder in self.folders():
            twin = self.arena.reference.run(folder.run_id)
            for name in ("metrics.jsonl", *(f"eval/{file.name}" for file in twin.evaluations.glob("*.jsonl"))):
                assert (folder.path / name).read_bytes() == (twin.path / name).read_bytes(), (self.name, name)
            assert weights(folder) == weights(twin), self.name
            ends = [folder.attempts.end_of(n) for n in range(1, folder.attempts.latest() + 1)]
            states = [end["state"] if end else "open" for end in ends]
            assert states.count("done") == 1, (self.name, states)
            assert states[-1] == "done", (self.name, states)
            attempts.append(len(states))
        return f"attempts {'+'.join(map(str, attempts))}, bit-identical"


def rows_of(folder: RunFolder) -> int:
    return len(list(read_rows(folder.metrics)))


def weights(folder: RunFolder) -> bytes:
    return (folder.checkpoints / f"update-{UPDATES:06d}/model.safetensors").read_bytes()


def shell(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_until(
    ask: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS, explain: Callable[[], str] = lambda: ""
) -> Any:
    """What `ask` says once it says anything. It waits nine times as long as asking took: SLURM has other work."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if answer := ask():
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what} {explain()}"
        time.sleep(max(0.1, 9 * (time.monotonic() - asked)))
