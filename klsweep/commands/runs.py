"""Commands on a run folder: logs, run."""

import argparse
from pathlib import Path

from klsweep.commands.parser import FAILED, OK, Commands
from klsweep.errors import BadInput
from klsweep.record.folder import RunFolder


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    logs = commands.on_run("logs", _logs, "how a run's latest attempt ended, and what it and its job wrote")
    logs.add_argument("--attempt", type=int, metavar="N", help="an earlier attempt")
    run = commands.on_run("run", _run, "carry out one run here, from its folder", trains=True)
    run.add_argument("--into", type=Path, metavar="SWEEP", help="anew, in another sweep folder")


def _logs(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import logs

    print(logs(existing_run(options.run), options.attempt), end="")
    return OK


def _run(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import run_again

    folder, failed = run_again(existing_run(options.run), options.into)
    status = folder.status()
    print(f"{folder.path}: {status['state']}{': ' + status['cause'] if status.get('cause') else ''}")
    return FAILED if failed else OK


def existing_run(path: Path) -> RunFolder:
    """The run folder at `path`. BadInput if there is none."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise BadInput(f"{path}: no run folder (one is <sweep>/runs/<run id> and holds config.yaml)")
    return folder
