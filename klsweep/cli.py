"""The command line. Each command imports what it needs: `status` and `compare` start without torch and Hydra."""

import argparse
import os
import sys
from collections.abc import Sequence

from klsweep.commands import (
    analysis,
    bounds,
    bundles,
    composing,
    exchange,
    mirrors,
    reproduction,
    runs,
    sweeps,
    weights,
)
from klsweep.commands.parser import BAD_INPUT, FAILED, OK, Commands
from klsweep.errors import BadInput
from klsweep.sweep.cluster import NoAnswer


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 finished, 1 something failed, 2 bad input."""
    options = parse(arguments)
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
        return FAILED if options.trains else OK
    except (OSError, NoAnswer) as error:
        print(f"klsweep: error: {error}", file=sys.stderr)
        return FAILED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and overrides in any order: argparse alone stops collecting overrides at the first option."""
    commands = Commands()
    for part in (composing, sweeps, runs, mirrors, weights, analysis, bounds, exchange, bundles, reproduction):
        part.declare(commands)
    options, rest = commands.parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "overrides")):
        commands.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


if __name__ == "__main__":
    sys.exit(main())
