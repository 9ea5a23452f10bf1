"""The command line as a process of its own, and the server that it talks to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mirror.wandb_server import KEY, WandbServer, serving

ROOT = Path(__file__).resolve().parents[2]


def _hear() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in a background shell


class Cli:
    """`klsweep …` with the server as W&B, a home without credentials, and nothing else of the user's W&B."""

    def __init__(self, server: WandbServer, home: Path) -> None:
        own = {"HOME": str(home), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        self.environment = {**kept, **own, "PYTHONPATH": str(ROOT)}

    def start(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """Begin a command, in a process group of its own."""
        command = [sys.executable, "-m", "klsweep.cli", *map(str, words)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both = {**self.environment, **environment}
        return subprocess.Popen(command, env=both, start_new_session=True, preexec_fn=_hear, **pipes)  # pyright: ignore

    def __call__(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Carry a command out."""
        process = self.start(*words, **environment)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def server():
    with serving(WandbServer()) as found:
        yield found


@pytest.fixture
def cli(server, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return Cli(server, home)
