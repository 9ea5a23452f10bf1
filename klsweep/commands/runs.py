"""Commands on a run folder: logs, inspect, run."""

import argparse
import json
from pathlib import Path
from typing import get_args

from klsweep.commands.parser import FAILED, OK, Commands
from klsweep.errors import BadInput
from klsweep.record.folder import RunFolder
from klsweep.record.rollouts import Kind


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    logs = commands.on_run("logs", _logs, "how a run's latest attempt ended, and what it and its job wrote")
    logs.add_argument("--attempt", type=int, metavar="N", help="an earlier attempt")
    inspect = commands.on_run("inspect", _inspect, "single responses: probes, the base's, those before a divergence")
    text = "which responses (default: the probes if there are any, else the base's)"
    inspect.add_argument("--of", choices=get_args(Kind), help=text)
    inspect.add_argument("--update", type=int, metavar="N", help="those of an update (default for probes: the last)")
    inspect.add_argument("--json", action="store_true", help="print the rows as JSON")
    run = commands.on_run("run", _run, "carry out one run here, from its folder", trains=True)
    run.add_argument("--into", type=Path, metavar="SWEEP", help="anew, in another sweep folder")


def _logs(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import logs

    print(logs(existing_run(options.run), options.attempt), end="")
    return OK


def _inspect(options: argparse.Namespace) -> int:
    from klsweep.sweep.responses import chosen_rows, print_responses
    from klsweep.terminal import console

    folder = existing_run(options.run)
    kind, rows = chosen_rows(folder, options.of, options.update)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print_responses(folder, kind, rows, console())
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
