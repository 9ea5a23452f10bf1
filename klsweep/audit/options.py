"""The options of `klsweep audit`. No torch: the command line reads them at its start."""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `klsweep audit`."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--whole", action="store_true", help="the whole objective: what group statistics make of β")
    mode.add_argument("--presets", action="store_true", help="the atlas: what libraries' settings really optimise")
    mode.add_argument("--study", type=Path, metavar="DIR", help="bias and variance against length: data and plot")
    mode.add_argument("--run", type=Path, metavar="DIR", help="a run folder's policy against its base, by Monte Carlo")
    mode.add_argument("--model", metavar="PATH", help="a model (folder or hub name) against --reference")
    mode.add_argument("--page", type=Path, metavar="DIR", help="write the citable page: tables, atlas and plot")
    parser.add_argument("--reference", metavar="PATH", help="with --model: the reference")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="tables theta, ref[, sampler] as JSON [T][V+1][V]")
    parser.add_argument("--length", type=int, metavar="T", help="response length of the built-in tables")
    parser.add_argument("--vocabulary", type=int, metavar="V", help="their vocabulary (default 2)")
    parser.add_argument("--samples", type=int, metavar="N", help="Monte Carlo over N sequences in place of all V^T")
    parser.add_argument("--batches", type=int, default=64, help="--run, --model: batches of samples (default 64)")
    parser.add_argument("--prompts", type=int, default=64, help="--run, --model: prompts per batch (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (default 0)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
