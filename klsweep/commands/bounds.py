"""The command on the theory: bound, from an array of log-ratios, a run folder or a sweep folder."""

import argparse
from pathlib import Path

from klsweep.commands.parser import Commands

EPILOG = """from log-ratios of sequences (a .npy file, [N] or [prompts, rollouts], nats):
  klsweep bound prompts=512 rollouts=16 beta=0.1 log_ratios=FILE.npy [confidence=0.95] [alpha=paper|hoeffding]
    [asymmetric=true] [split=true] [seed=0] [reward_error=0.1 coverage=1.3|log_weights=FILE.npy]
    [reward_low=0 reward_high=1] [cost_prefill=8 cost_decode=1 [budget=1000] [rewards=FILE.npy]
    [cost_preference=5 error_rate=2]]
from a record, every term with its source:
  klsweep bound sweeps/x/runs/r1-… | sweeps/x [update=N] [confidence=…] [alpha=…] [reward_low=… reward_high=…]
    [cost_prefill=… cost_decode=… [budget=…]]"""


def declare(commands: Commands) -> None:
    """Add the commands of this file."""
    text = (
        "how far a batch's objective may be from the true one: the bound's terms, the best threshold, the best n and K"
    )
    sub = commands.add("bound", _bound, text)
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE|FOLDER", help="see below")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="the terms against τ, n and K (.png, .svg or .pdf)")


def _bound(options: argparse.Namespace) -> int:
    from klsweep.commands.bound_forms import bound

    return bound(options.overrides, options.json, options.plot)
