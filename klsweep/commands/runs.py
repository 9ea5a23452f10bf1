"""Commands on a run folder: logs, inspect, diff, run."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from klsweep.commands.parser import FAILED, OK, Commands
from klsweep.errors import BadInput
from klsweep.record.files import finite
from klsweep.record.folder import RunFolder
from klsweep.record.origin import check_own
from klsweep.record.rollouts import Kind

if TYPE_CHECKING:
    from klsweep.analysis.departure import Left

SHOWN = 12  # metrics that differ


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    logs = commands.on_run("logs", _logs, "how a run's latest attempt ended, and what it and its job wrote")
    logs.add_argument("--attempt", type=int, metavar="N", help="an earlier attempt")
    inspect = commands.on_run("inspect", _inspect, "single responses: probes, the base's, those before a divergence")
    text = "which responses (default: the probes if there are any, else the base's)"
    inspect.add_argument("--of", choices=get_args(Kind), help=text)
    inspect.add_argument("--update", type=int, metavar="N", help="those of an update (default for probes: the last)")
    inspect.add_argument("--top-kl", type=int, metavar="N", help="only the N responses of largest |Σℓ|, largest first")
    inspect.add_argument("--json", action="store_true", help="print responses and departures as JSON")
    diff = commands.on_run("diff", _diff, "where two runs part: configuration, and the first update of each metric")
    diff.add_argument("other", type=Path, help="another run folder")
    diff.add_argument("--tolerance", type=float, default=0.0, metavar="X", help="relative (default 0: any difference)")
    text = "print everything as JSON; null: not finite, left out: not logged"
    diff.add_argument("--json", action="store_true", help=text)
    run = commands.on_run("run", _run, "carry out one run here, from its folder", trains=True)
    run.add_argument("--into", type=Path, metavar="SWEEP", help="anew, in another sweep folder")


def _logs(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import logs

    print(logs(own_run(options.run), options.attempt), end="")
    return OK


def _inspect(options: argparse.Namespace) -> int:
    from klsweep.sweep.responses import chosen_rows, print_responses
    from klsweep.terminal import console

    folder = own_run(options.run)
    kind, rows = chosen_rows(folder, options.of, options.update, options.top_kl)
    siblings, left = _departure(folder)
    if options.json:
        found = [{key: finite(value) for key, value in one._asdict().items()} for one in left]
        print(json.dumps({"responses": rows, "siblings": siblings, "left": found}, indent=1))
    else:
        print_responses(folder, kind, rows, console())
        _print_departure(siblings, left)
    return OK


def _departure(folder: RunFolder) -> tuple[int, "list[Left]"]:
    """How many others of its cell have begun, and where the run left them."""
    from klsweep.analysis.departure import left_siblings, metrics_of, siblings_of

    siblings = siblings_of(folder)
    return len(siblings), left_siblings(metrics_of(folder), [metrics_of(sibling) for sibling in siblings])


def _print_departure(siblings: int, left: "Sequence[Left]") -> None:
    from klsweep.analysis.departure import FEWEST, WATCHED

    if siblings < FEWEST:
        print(f"siblings that have begun: {siblings}; whether it left them can be told from {FEWEST} on")
    elif not left:
        print(f"has not left its {siblings} siblings in {', '.join(WATCHED)}")
    for one in left:
        print(
            f"left its {siblings} siblings at update {one.update}: {one.metric} {one.value:.4g}, "
            f"theirs {one.low:.4g} to {one.high:.4g}"
        )


def _diff(options: argparse.Namespace) -> int:
    from klsweep.analysis.departure import config_differences, departures, metrics_of

    if not options.tolerance >= 0:
        raise BadInput(f"--tolerance={options.tolerance}: expected a number, at least 0")
    folders = existing_run(options.run), existing_run(options.other)
    fields = config_differences(*folders)
    metrics = [metrics_of(folder) for folder in folders]
    apart = departures(metrics[0], metrics[1], options.tolerance)
    both = len(set(metrics[0]) & set(metrics[1]))
    if options.json:
        parted = [{key: finite(value) for key, value in d._asdict().items() if value is not None} for d in apart]
        print(json.dumps({"config": [f._asdict() for f in fields], "metrics": parted, "updates": both}, indent=1))
        return OK
    for key, one, other in fields:
        print(f"{key}: {one!r} | {other!r}")
    if not fields:
        print("equal configurations")
    if not apart:
        print(f"no metric differs in the {both} rows that both have")
    for update, metric, one, other in apart[:SHOWN]:
        print(f"update {update}: {metric} {_figure(one)} | {_figure(other)}")
    if len(apart) > SHOWN:
        print(f"… and {len(apart) - SHOWN} further metrics, later or by less (--json)")
    return OK


def _figure(value: float | None) -> str:
    return "not logged" if value is None else f"{value:.6g}"


def _run(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import run_again

    folder, failed = run_again(own_run(options.run), options.into)
    status = folder.status()
    print(f"{folder.path}: {status['state']}{': ' + status['cause'] if status.get('cause') else ''}")
    return FAILED if failed else OK


def existing_run(path: Path) -> RunFolder:
    """The run folder at `path`. BadInput if there is none."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise BadInput(f"{path}: no run folder (one is <sweep>/runs/<run id> and holds config.yaml)")
    return folder


def own_run(path: Path) -> RunFolder:
    """The same, of a run that klsweep carried out. BadInput for an external one."""
    folder = existing_run(path)
    plan = RunFolder(path.resolve()).sweep.plan()
    check_own(row for row in plan if row["run_id"] == path.resolve().name)
    return folder
