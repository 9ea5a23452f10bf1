"""The command line. Each command imports what it needs: `status` and `compare` start without torch and Hydra."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from klsweep import __version__
from klsweep.audit.options import add_options
from klsweep.errors import BadInput
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.sweep.cluster import NoAnswer

if TYPE_CHECKING:
    from klsweep.sweep.launch_slurm import Submission
    from klsweep.sweep.plan import Plan

OK, FAILED, BAD_INPUT = 0, 1, 2
OVERRIDES_HELP = "Hydra overrides, e.g. estimator=k1,k3 placement=reward kl.coef=0.1 seed=range(0,3)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 finished, 1 something failed, 2 bad input."""
    options = _parse(arguments)
    try:
        return options.command(options)
    except BadInput as error:
        print(f"klsweep: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("klsweep: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED if options.command in (_sweep, _retry, _run) else OK
    except (OSError, NoAnswer) as error:
        print(f"klsweep: error: {error}", file=sys.stderr)
        return FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and overrides in any order: argparse alone stops collecting overrides at the first option."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


class Parser(argparse.ArgumentParser):
    """Errors in one line; its subcommands are of this class, too."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"klsweep: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    text = "Sweeps over KL regularisation in RL fine-tuning: plan, train, evaluate, compare."
    parser = Parser(prog="klsweep", description=text)
    parser.add_argument("--version", action="version", version=f"klsweep {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def composing(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES_HELP)
        sub.add_argument("--config-dir", type=Path, help="a folder of your own YAML files, beside the shipped ones")
        sub.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
        sub.set_defaults(command=command, multirun=name != "train")
        return sub

    train = composing("train", _sweep, "train one run (-m: a sweep)")
    train.set_defaults(extend=True)
    train.add_argument("-m", "--multirun", action="store_true", help="sweep over values separated by commas")
    sweep = composing("sweep", _sweep, "run every cell of a grid, skipping what is finished, and compare")
    for sub in (train, sweep):
        sub.add_argument("--wait", action="store_true", help="launcher=slurm: follow the runs until they have ended")
    sweep.add_argument("--extend", action="store_true", help="add to a folder that holds a sweep of other runs")
    plan = composing("plan", _plan, "show what a sweep would do, without doing it")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument("--calibrate", action="store_true", help="train a few updates here, to estimate the cost")
    doctor = composing("doctor", _doctor, "submit two short jobs that check what sweeps need from the cluster")
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    composing(
        "fetch",
        _fetch,
        "download the models of an experiment (its name, or overrides), pinned by revision, into the cache",
    )
    audits = composing("audit", _audit, "which gradient a configuration's KL term really takes, exactly")
    add_options(audits)

    def on_sweep(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("sweep", type=Path, help="a sweep folder")
        sub.set_defaults(command=command)
        return sub

    def on_run(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("run", type=Path, help="a run folder, <sweep>/runs/<run id>")
        sub.set_defaults(command=command)
        return sub

    form = on_sweep("status", _status, "state of every run of a sweep").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: counts by state, and a row per run")
    form.add_argument("--watch", action="store_true", help="show it live until nothing works on the runs any more")
    form.add_argument("--html", type=Path, metavar="FILE", help="write it as a page")
    table = "comparison table: a row per cell, mean over seeds, 95 %% t interval"
    form = on_sweep("compare", _compare, table).add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    retry = on_sweep("retry", _retry, "launch again what failed, timed out or was preempted and is not in the queue")
    retry.add_argument("--only", metavar="CAUSE", help="a state (cancelled comes back so), or a part of the cause")
    retry.add_argument("--wait", action="store_true", help="launcher=slurm: follow the runs until they have ended")
    retry.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="operational fields, e.g. launcher.mem_gb=80 launcher.time=8:00:00",
    )
    cancel = on_sweep("cancel", _cancel, "mark runs as cancelled, then end their jobs; they come back by retry alone")
    cancel.add_argument("runs", nargs="*", metavar="RUN_ID", help="these runs only")
    clean = on_sweep("clean", _clean, "delete what no result, unfinished run or queued job needs")
    clean.add_argument("--dry-run", action="store_true", help="only show it")
    logs = on_run("logs", _logs, "how a run's latest attempt ended, and what it and its job wrote")
    logs.add_argument("--attempt", type=int, metavar="N", help="an earlier attempt")
    run = on_run("run", _run, "carry out one run here, from its folder")
    run.add_argument("--into", type=Path, metavar="SWEEP", help="anew, in another sweep folder")
    return parser


def _audit(options: argparse.Namespace) -> int:
    from klsweep.analysis.plots import bias_and_variance
    from klsweep.audit.command import audit
    from klsweep.config.compose import composer

    if options.cfg:
        with composer(options.config_dir) as session:
            _print_config(session, options.overrides)
        return OK
    return audit(options, bias_and_variance)


def _make_plan(options: argparse.Namespace) -> "Plan | None":
    """The plan, or None after `--cfg job`."""
    from klsweep.config.compose import composer
    from klsweep.sweep.plan import make_plan

    with composer(options.config_dir) as session:
        if options.cfg:
            _print_config(session, options.overrides)
            return None
        return make_plan(session, options.overrides, single=not options.multirun)


def _print_config(session: Any, overrides: list[str]) -> None:
    import yaml

    from klsweep.config.compose import parse_overrides, resolve

    if swept := [o.input_line for o in parse_overrides(overrides) if o.is_sweep_override()]:
        raise BadInput(f"{swept[0]}: --cfg shows one cell (give one value per key)")
    print(yaml.dump(resolve(session.compose(overrides).config), sort_keys=False), end="")


def _plan(options: argparse.Namespace) -> int:
    from klsweep.sweep.run import calibrate, plan_cost
    from klsweep.sweep.show import plan_json, print_plan

    plan = _make_plan(options)
    if plan is None:
        return OK
    if options.calibrate:
        calibrate(plan)
    if options.json:
        print(json.dumps(plan_json(plan, plan_cost(plan)), indent=1))
    else:
        print_plan(plan, plan_cost(plan), with_cells=True)
    return OK


def _sweep(options: argparse.Namespace) -> int:
    from klsweep.sweep.run import plan_cost, run_plan
    from klsweep.sweep.show import print_notes, print_plan

    plan = _make_plan(options)
    if plan is None:
        return OK
    if options.multirun:
        print_plan(plan, plan_cost(plan), with_cells=False)
    else:
        print_notes(plan)
    if plan.conflict is not None and not options.extend:
        raise BadInput(f"{plan.conflict}: give another sweep_dir, or --extend to put both into one table")
    return _end(plan.folder, run_plan(plan), [run.run_id for run in plan.runs], options.wait)


def _end(sweep: SweepFolder, outcome: "int | Submission", run_ids: list[str], wait: bool) -> int:
    """After a launch: the table of what was run here, or what was submitted (and, with `wait`, what becomes of it)."""
    from klsweep.sweep.run import follow
    from klsweep.sweep.show import print_status, print_submission
    from klsweep.sweep.status import sweep_status

    if not isinstance(outcome, int):
        print_submission(sweep, outcome)
        if not wait:
            return OK
        outcome = follow(sweep, run_ids)
        if outcome:
            print_status(sweep_status(sweep))
    _print_comparison(sweep)
    print(f"run folders: {sweep.path / 'runs'}")
    return FAILED if outcome else OK


def _doctor(options: argparse.Namespace) -> int:
    from klsweep.sweep.doctor import examine
    from klsweep.sweep.show import print_checks

    plan = _make_plan(options)
    if plan is None:
        return OK
    checks = examine(plan)
    if options.json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
    else:
        print_checks(checks)
    return OK if all(check.passed for check in checks) else FAILED


def _fetch(options: argparse.Namespace) -> int:
    from klsweep.config.compose import composer
    from klsweep.sweep.fetch import fetch

    with composer(options.config_dir) as session:
        if options.cfg:
            _print_config(session, options.overrides)
            return OK
        overrides = [word if "=" in word else f"experiment={word}" for word in options.overrides]
        for name, revision, folder in fetch(session, overrides):
            print(f"{name} at {revision or 'its folder'}: {folder}")
    return OK


def _status(options: argparse.Namespace) -> int:
    from klsweep.sweep.page import status_page
    from klsweep.sweep.show import print_status, watch
    from klsweep.sweep.status import sweep_status

    sweep = _existing(options.sweep)
    if options.watch:
        watch(sweep)
    elif options.json:
        print(json.dumps(sweep_status(sweep), indent=1))
    elif options.html:
        options.html.write_text(status_page(sweep_status(sweep)))
        print(options.html)
    else:
        print_status(sweep_status(sweep))
    return OK


def _retry(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import retry

    sweep = _existing(options.sweep)
    outcome = retry(sweep, options.only, options.overrides)
    if outcome is None:
        which = f" that matches --only {options.only}" if options.only else ""
        print(f"nothing to retry{which} (klsweep status {sweep.path})")
        return OK
    return _end(sweep, outcome, [row["run_id"] for row in sweep.plan()], options.wait)


def _cancel(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import cancel

    marked = cancel(_existing(options.sweep), options.runs)
    print(
        f"cancelled {len(marked)} runs; those at work end after their update "
        "(klsweep retry --only cancelled brings them back)"
    )
    return OK


def _clean(options: argparse.Namespace) -> int:
    from klsweep.sweep.clean import remove, rubbish
    from klsweep.sweep.run import our_turn

    sweep = _existing(options.sweep)
    with contextlib.nullcontext() if options.dry_run else our_turn(sweep):
        found = rubbish(sweep)
        if not options.dry_run:
            remove(found)
    for entry in found:
        print(f"{entry.bytes / 2**20:9.2f} MiB  {entry.path}  ({entry.reason})")
    total = sum(entry.bytes for entry in found) / 2**20
    print(f"{'would remove' if options.dry_run else 'removed'} {len(found)} entries, {total:.2f} MiB")
    return OK


def _logs(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import logs

    print(logs(_existing_run(options.run), options.attempt), end="")
    return OK


def _run(options: argparse.Namespace) -> int:
    from klsweep.sweep.manage import run_again

    folder, failed = run_again(_existing_run(options.run), options.into)
    status = folder.status()
    print(f"{folder.path}: {status['state']}{': ' + status['cause'] if status.get('cause') else ''}")
    return FAILED if failed else OK


def _compare(options: argparse.Namespace) -> int:
    from klsweep.analysis.compare import compare
    from klsweep.analysis.tables import to_json, to_markdown

    sweep = _existing(options.sweep)
    if options.json:
        print(json.dumps(to_json(compare(sweep)), indent=1))
    elif options.markdown:
        print(to_markdown(compare(sweep)))
    else:
        _print_comparison(sweep)
    return OK


def _print_comparison(sweep: SweepFolder) -> None:
    from klsweep.analysis.compare import compare
    from klsweep.analysis.tables import print_table

    print_table(compare(sweep))


def _existing(path: Path) -> SweepFolder:
    sweep = SweepFolder(path)
    if not sweep.plan_file.exists():
        raise BadInput(f"{path}: no sweep there (a sweep folder holds plan.jsonl; `klsweep sweep` makes one)")
    return sweep


def _existing_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    if not folder.config.exists():
        raise BadInput(f"{path}: no run folder (one is <sweep>/runs/<run id> and holds config.yaml)")
    return folder


if __name__ == "__main__":
    sys.exit(main())
