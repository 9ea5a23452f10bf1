"""Commands that compose a configuration: train, sweep, plan, doctor, smoke, fetch, audit."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from klsweep.audit.options import add_options
from klsweep.commands.parser import FAILED, OK, Commands
from klsweep.commands.sweeps import conclude
from klsweep.errors import BadInput

if TYPE_CHECKING:
    from klsweep.sweep.plan import Plan


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    train = commands.composing("train", _sweep, "train one run (-m: a sweep)", trains=True, multirun=False, extend=True)
    train.add_argument("-m", "--multirun", action="store_true", help="sweep over values separated by commas")
    text = "run every cell of a grid, skipping what is finished, and compare"
    sweep = commands.composing("sweep", _sweep, text, trains=True)
    for sub in (train, sweep):
        sub.add_argument("--wait", action="store_true", help="launcher=slurm: follow the runs until they have ended")
    sweep.add_argument("--extend", action="store_true", help="add to a folder that holds a sweep of other runs")
    plan = commands.composing("plan", _plan, "show what a sweep would do, without doing it")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    outline = "grid, notes and values, without reading models and data: no ids, no cost"
    plan.add_argument("--outline", action="store_true", help=outline)
    plan.add_argument("--calibrate", action="store_true", help="train a few updates here, to estimate the cost")
    text = "submit two short jobs that check what sweeps need from the cluster"
    doctor = commands.composing("doctor", _doctor, text)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    text = "try out, for two updates at full length, the heaviest cell of each group that takes equal memory"
    smoke = commands.composing("smoke", _smoke, text, trains=True)
    smoke.add_argument("--json", action="store_true", help="print the findings as JSON")
    text = "download the models of an experiment (its name, or overrides), pinned by revision, into the cache"
    commands.composing("fetch", _fetch, text)
    add_options(commands.composing("audit", _audit, "which gradient a configuration's KL term really takes, exactly"))


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
        outline = getattr(options, "outline", False)
        return make_plan(session, options.overrides, single=not options.multirun, outline=outline)


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
    if plan.outline and options.calibrate:
        raise BadInput("--calibrate trains a few updates, --outline looks at no model: give one of them")
    if options.calibrate:
        calibrate(plan)
    cost = None if plan.outline else plan_cost(plan)
    if options.json:
        print(json.dumps(plan_json(plan, cost), indent=1))
    else:
        print_plan(plan, cost, with_cells=True)
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
    return conclude(plan.folder, run_plan(plan), [run.run_id for run in plan.runs], options.wait)


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


def _smoke(options: argparse.Namespace) -> int:
    from klsweep.sweep.smoke import print_trials, smoke

    options.overrides = _named_experiment(options.overrides)
    plan = _make_plan(options)
    if plan is None:
        return OK
    trials = smoke(plan)
    if options.json:
        print(json.dumps([trial.to_json() for trial in trials], indent=1))
    else:
        print_trials(trials)
    return OK if all(trial.passed for trial in trials) else FAILED


def _named_experiment(overrides: list[str]) -> list[str]:
    """Overrides; a bare word among them is an experiment's name."""
    return [word if "=" in word else f"experiment={word}" for word in overrides]


def _fetch(options: argparse.Namespace) -> int:
    from klsweep.config.compose import composer
    from klsweep.sweep.fetch import fetch

    with composer(options.config_dir) as session:
        if options.cfg:
            _print_config(session, options.overrides)
            return OK
        overrides = _named_experiment(options.overrides)
        for name, revision, folder in fetch(session, overrides):
            print(f"{name} at {revision or 'its folder'}: {folder}")
    return OK
