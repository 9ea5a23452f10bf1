"""The command line. Each command imports what it needs: `status` and `compare` start without torch and Hydra."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from klsweep import __version__
from klsweep.audit.options import add_options
from klsweep.errors import BadInput
from klsweep.record import SweepFolder

if TYPE_CHECKING:
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
        return OK


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
    train.add_argument("-m", "--multirun", action="store_true", help="sweep over values separated by commas")
    composing("sweep", _sweep, "run every cell of a grid, skipping what is finished, and compare")
    plan = composing("plan", _plan, "show what a sweep would do, without doing it")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    audits = composing("audit", _audit, "which gradient a configuration's KL term really takes, exactly")
    add_options(audits)
    status = commands.add_parser("status", help="state of every run of a sweep")
    compare = commands.add_parser("compare", help="comparison table: a row per cell, mean over seeds, 95 %% t interval")
    for sub, command in ((status, _status), (compare, _compare)):
        sub.add_argument("sweep", type=Path, help="a sweep folder")
        form = sub.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print JSON")
        if sub is compare:
            form.add_argument("--markdown", action="store_true", help="print a Markdown table")
        sub.set_defaults(command=command)
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
    from klsweep.sweep.show import plan_json, print_plan

    plan = _make_plan(options)
    if plan is None:
        return OK
    if options.json:
        print(json.dumps(plan_json(plan), indent=1))
    else:
        print_plan(plan, with_cells=True)
    return OK


def _sweep(options: argparse.Namespace) -> int:
    from klsweep.sweep.run import run_plan
    from klsweep.sweep.show import print_notes, print_plan

    plan = _make_plan(options)
    if plan is None:
        return OK
    if options.multirun:
        print_plan(plan, with_cells=False)
    else:
        print_notes(plan)
    failed = run_plan(plan)
    _print_comparison(plan.folder)
    print(f"run folders: {plan.folder.path / 'runs'}")
    return FAILED if failed else OK


def _status(options: argparse.Namespace) -> int:
    from klsweep.sweep.show import print_status
    from klsweep.sweep.status import sweep_status

    status = sweep_status(_existing(options.sweep))
    if options.json:
        print(json.dumps(status, indent=1))
    else:
        print_status(status)
    return OK


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


if __name__ == "__main__":
    sys.exit(main())
