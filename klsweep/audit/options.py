"""The options of `klsweep audit`. No torch: the command line reads them at its start."""

import argparse
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `klsweep audit`."""
    mode = parser.add_mutually_exclusive_group()

    def choose(name: str, text: str, **more: Any) -> None:
        mode.add_argument(name, help=text, **more)

    def option(name: str, text: str, **more: Any) -> None:
        parser.add_argument(name, help=text, **more)

    choose("--whole", "the whole objective: what group statistics make of β", action="store_true")
    choose("--presets", "the atlas: what libraries' settings really optimise", action="store_true")
    choose("--study", "bias and variance against length: data and plot", type=Path, metavar="DIR")
    choose("--run", "a run folder's policy against its base, by Monte Carlo (minutes)", type=Path, metavar="DIR")
    choose("--model", "a model (folder or hub name) against --reference", metavar="PATH")
    choose("--page", "write the citable page: tables, atlas and plot", type=Path, metavar="DIR")
    choose("--axes", "write a page per configuration group: fields, docstrings, audits", type=Path, metavar="DIR")
    option("--reference", "with --model: the reference", metavar="PATH")
    option(
        "--policy",
        "JSON of logits theta, ref[, sampler] [T][V+1][V], row V the start[, eos]",
        type=Path,
        metavar="FILE",
    )
    option("--length", "response length of the built-in tables (default 14; --whole: 4)", type=int, metavar="T")
    option("--vocabulary", "their vocabulary (default 2)", type=int, metavar="V")
    option("--eos", "their token that ends a response (default: all have T tokens)", type=int, metavar="TOKEN")
    option("--samples", "Monte Carlo over N sequences in place of all V^T", type=int, metavar="N")
    option("--batches", "--run, --model: batches of samples (default 64)", type=int, metavar="N")
    option("--prompts", "--run, --model: prompts per batch, 4 samples each (default 64)", type=int, metavar="N")
    option("--seed", "of what is sampled (default 0)", type=int, default=0)
    option("--json", "print the rows as JSON", action="store_true")
