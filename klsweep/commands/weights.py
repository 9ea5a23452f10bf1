"""Commands on trained weights: eval, export."""

import argparse
import json
from pathlib import Path

from klsweep.commands.parser import FAILED, OK, Commands
from klsweep.commands.runs import own_run
from klsweep.commands.sweeps import conclude


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    text = "evaluate what runs have left behind, or a model folder, as training would have: a sweep of evaluations"
    sub = commands.add("eval", _eval, text, trains=True)
    sub.add_argument("target", type=Path, help="a sweep folder, a run folder, or a folder of a model in HF format")
    text = "eval=…, eval.temperature=0.3,1.0, rollout=…, launcher.…=…; checkpoint=last|all (all: milestones, too)"
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    sub.add_argument("--config-dir", type=Path, help="a folder of your own YAML files, beside the shipped ones")
    sub.add_argument("--plan", action="store_true", help="show what would be evaluated, without doing it")
    sub.add_argument("--json", action="store_true", help="with --plan: print it as JSON")
    sub.add_argument("--wait", action="store_true", help="launcher=slurm: follow the runs until they have ended")
    text = "write a run's weights as a folder that transformers loads, and check it against the trained network"
    sub = commands.on_run("export", _export, text)
    sub.add_argument("folder", type=Path, help="the folder to write")
    sub.add_argument("--update", type=int, metavar="N", help="of an earlier update that was kept; default: the last")
    sub.add_argument("--overwrite", action="store_true", help="replace a folder that was exported before")


def _eval(options: argparse.Namespace) -> int:
    from klsweep.config.compose import composer
    from klsweep.sweep.evaluations import plan_evaluations
    from klsweep.sweep.run import plan_cost, run_plan
    from klsweep.sweep.show import plan_json, print_plan

    with composer(options.config_dir) as session:
        plans = plan_evaluations(session, options.target, options.overrides)
    if options.plan and options.json:
        print(json.dumps([plan_json(plan, plan_cost(plan)) for plan in plans], indent=1))
        return OK
    failed = False
    for plan in plans:
        print_plan(plan, plan_cost(plan), with_cells=options.plan)
        if not options.plan:
            ended = conclude(plan.folder, run_plan(plan), [run.run_id for run in plan.runs], options.wait)
            failed = failed or ended != OK
    return FAILED if failed else OK


def _export(options: argparse.Namespace) -> int:
    from klsweep.sweep.export import export

    verdict = export(own_run(options.run), options.update, options.folder, options.overwrite)
    found = f"largest difference of a log-probability {verdict.largest:g} nats, allowed {verdict.allowed:g}"
    what = f"{verdict.tokens} tokens of {verdict.sequences} recorded responses read again: {found}"
    print(f"{options.folder}: {'verified' if verdict.passed else 'NOT WHAT WAS TRAINED'}: {what}")
    return OK if verdict.passed else FAILED
