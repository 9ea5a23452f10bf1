"""How a command is declared: its parser, what carries it out and returns the exit code, the sweep it is given."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from klsweep import __version__
from klsweep.errors import BadInput
from klsweep.record.folder import SweepFolder

OK, FAILED, BAD_INPUT = 0, 1, 2
OVERRIDES_HELP = "Hydra overrides, e.g. estimator=k1,k3 placement=reward kl.coef=0.1 seed=range(0,3)"

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Errors in one line; its subcommands are of this class, too."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"klsweep: error: {message} (see {self.prog} --help)\n")


class Commands:
    """Collects the commands of `parser`. Those that train set `trains`: their exit code tells how training went."""

    def __init__(self) -> None:
        text = "Sweeps over KL regularisation in RL fine-tuning: plan, train, evaluate, compare."
        self.parser = Parser(prog="klsweep", description=text)
        self.parser.set_defaults(trains=False)
        self.parser.add_argument("--version", action="version", version=f"klsweep {__version__}")
        self._added = self.parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, command: Command, text: str, **defaults: Any) -> argparse.ArgumentParser:
        """A command without arguments yet."""
        sub = self._added.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command, **defaults)
        return sub

    def composing(self, name: str, command: Command, text: str, **defaults: Any) -> argparse.ArgumentParser:
        """A command that composes a configuration."""
        sub = self.add(name, command, text, **{"multirun": True, **defaults})
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES_HELP)
        sub.add_argument("--config-dir", type=Path, help="a folder of your own YAML files, beside the shipped ones")
        sub.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
        return sub

    def on_sweep(self, name: str, command: Command, text: str, **defaults: Any) -> argparse.ArgumentParser:
        """A command on a sweep folder."""
        sub = self.add(name, command, text, **defaults)
        sub.add_argument("sweep", type=Path, help="a sweep folder")
        return sub

    def on_run(self, name: str, command: Command, text: str, **defaults: Any) -> argparse.ArgumentParser:
        """A command on a run folder."""
        sub = self.add(name, command, text, **defaults)
        sub.add_argument("run", type=Path, help="a run folder, <sweep>/runs/<run id>")
        return sub


def existing_sweep(path: Path) -> SweepFolder:
    """The sweep folder at `path`. BadInput if there is none."""
    sweep = SweepFolder(path)
    if not sweep.plan_file.exists():
        raise BadInput(f"{path}: no sweep there (a sweep folder holds plan.jsonl; `klsweep sweep` makes one)")
    return sweep
