"""`klsweep audit`: options to rows to text, JSON or files."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from klsweep.audit.atlas import atlas, atlas_grid
from klsweep.audit.bias import bias_table
from klsweep.audit.cases import Row, cases
from klsweep.audit.page import LONGEST_EXACT, PIECES, Plot, write_page, write_study
from klsweep.audit.show import bias_grid, real_grid, study_grid, whole_grid
from klsweep.audit.study import LENGTHS, ROUNDS, SAMPLES, synthetic_study
from klsweep.audit.tabular import Tables, instance, load_tables
from klsweep.audit.whole import whole_table
from klsweep.config.build import Builder
from klsweep.config.compose import Composer, composer
from klsweep.config.grid import Exclusion, expand
from klsweep.errors import BadInput
from klsweep.terminal import console, print_grid

TABLE_LENGTH, WHOLE_LENGTH, VOCABULARY = 14, 4, 2


def audit(options: argparse.Namespace, plot: Plot) -> int:
    """Run one mode and print it; `plot` draws the study. Raises BadInput."""
    _check(options)
    with composer(options.config_dir) as session:
        if options.page:
            with _progress("pieces", PIECES, options) as advance:
                files = write_page(session, options.page, options.seed, plot, advance)
            console().print(f"written: {', '.join(map(str, files))}")
            return 0
        rows, print_rows = _study(session, options, plot) if options.study else _mode(options)(session, options)
    if options.json:
        print(json.dumps(rows, indent=1, allow_nan=False))
    else:
        print_rows(rows)
    return 0


Printer = Callable[[list[Row]], None]


def _mode(options: argparse.Namespace) -> Callable[[Composer, argparse.Namespace], tuple[list[Row], Printer]]:
    if options.whole:
        return _whole
    if options.presets:
        return _presets
    return _real if options.run or options.model else _table


def _check(options: argparse.Namespace) -> None:
    """BadInput for options out of range or without effect in the mode."""
    for name in ("length", "vocabulary", "samples", "batches", "prompts"):
        value, least = getattr(options, name), {"vocabulary": 2}.get(name, 1)
        if value is not None and value < least:
            raise BadInput(f"--{name}={value}: expected at least {least}")
    if options.seed < 0:
        raise BadInput(f"--seed={options.seed}: expected at least 0")
    if options.reference and not options.model:
        raise BadInput(f"--reference={options.reference}: goes with --model")
    if options.model and not options.reference:
        raise BadInput(f"--model={options.model}: needs --reference, the model it is regularised towards")
    if options.policy and (options.length or options.vocabulary):
        raise BadInput(f"--policy={options.policy}: its tables have a length and a vocabulary of their own")
    tabular = not (options.study or options.run or options.model or options.page)
    if not tabular and (options.policy or options.length or options.vocabulary or options.samples):
        raise BadInput("--policy, --length, --vocabulary and --samples are for the tabular audits")
    if options.samples and (options.whole or options.presets):
        raise BadInput(f"--samples={options.samples}: --whole and --presets enumerate")
    if options.overrides and (options.presets or options.page):
        raise BadInput(f"{options.overrides[0]}: --presets and --page take no overrides")


def _tables(options: argparse.Namespace, length: int) -> Tables:
    if options.policy:
        return load_tables(options.policy)
    return instance(options.length or length, options.vocabulary or VOCABULARY)


def _table(session: Composer, options: argparse.Namespace) -> tuple[list[Row], Printer]:
    tables = _tables(options, TABLE_LENGTH)
    chosen, excluded = cases(session, options.overrides, "bias_table")
    with _progress("configurations", len(chosen), options) as advance:
        rows = bias_table(tables, chosen, options.samples, options.seed, advance)
    skipped = sum(case.off_policy for case in chosen) if tables.sampler is None else 0
    notes = _notes(excluded)
    if skipped:
        notes.append(f"{skipped} off-policy configurations left out: the policy file has no sampler table")
    return rows, _printer(bias_grid, notes)


def _whole(session: Composer, options: argparse.Namespace) -> tuple[list[Row], Printer]:
    tables = _tables(options, WHOLE_LENGTH)
    chosen, excluded = cases(session, options.overrides, "effective_beta", whole=True)
    with _progress("configurations", len(chosen), options) as advance:
        rows = whole_table(tables, chosen, advance)
    return rows, _printer(whole_grid, _notes(excluded))


def _presets(session: Composer, options: argparse.Namespace) -> tuple[list[Row], Printer]:
    tables = _tables(options, TABLE_LENGTH)
    with _progress("settings", None, options) as advance:
        rows = atlas(session, tables, advance)
    return rows, _print_atlas


def _study(session: Composer, options: argparse.Namespace, plot: Plot) -> tuple[list[Row], Printer]:
    chosen, excluded = cases(session, options.overrides, "main_estimators")
    with _progress("configurations × lengths", len(chosen) * len(LENGTHS), options) as advance:
        rows = synthetic_study(chosen, LENGTHS, ROUNDS, SAMPLES, options.seed, LONGEST_EXACT, advance)
    files = write_study(rows, options.study, plot)
    notes = [*_notes(excluded), f"written: {', '.join(map(str, files))}"]
    return rows, _printer(study_grid, notes)


def _real(session: Composer, options: argparse.Namespace) -> tuple[list[Row], Printer]:
    from klsweep.audit.subject import of_models, of_run
    from klsweep.audit.transformer import transformer_table

    sizes: dict[str, Any] = {"batches": options.batches, "prompts": options.prompts, "seed": options.seed}
    chosen, excluded = cases(session, options.overrides, "main_estimators")
    if options.run:
        subject = of_run(options.run, **sizes, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    else:
        plain = [text for text in options.overrides if text.split("=")[0].split(".")[0] in ("task", "rollout", "model")]
        spec = Builder().run_spec(expand(session, [*plain, f"model.path={options.model}"], single=True).cells[0].config)
        subject = of_models(spec, options.reference, **sizes)
    with _progress("configurations", len(chosen), options) as advance:
        kl, rows = transformer_table(subject, chosen, advance)
    notes = [f"KL(π‖π_ref) {kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}] nats per response", *_notes(excluded)]
    rows = [{**row, "kl": kl.value, "kl_low": kl.low, "kl_high": kl.high} for row in rows]
    return rows, _printer(real_grid, notes)


def _notes(excluded: Sequence[Exclusion]) -> list[str]:
    reasons = [exclusion.reason for exclusion in excluded]
    return [f"excluded {reasons.count(reason)}: {reason}" for reason in dict.fromkeys(reasons)]


def _printer(grid: Callable[[list[Row]], Any], notes: Sequence[str]) -> Printer:
    def show(rows: list[Row]) -> None:
        print_grid(*grid(rows))
        for note in notes:
            console().print(note)

    return show


def _print_atlas(rows: list[Row]) -> None:
    """A block per library: thirteen columns would fit no terminal."""
    out = console()
    header, grid = atlas_grid(rows)
    libraries = list(dict.fromkeys(line[1] for line in grid))
    for library in libraries:
        lines = [line for line in grid if line[1] == library]
        out.print(f"\n{library}", style="bold")
        out.print(
            f"  read in {next(row['source'] for row, line in zip(rows, grid, strict=True) if line[1] == library)}"
        )
        print_grid(["preset", *header[3:12]], [[line[0], *line[3:12]] for line in lines])
        for i, title in ((2, "their setting"), (12, "unbiased with")):
            out.print(f"  {title}:")
            for text in dict.fromkeys(f"{line[0]}: {line[i]}" for line in lines):
                out.print(f"    {text}")


@contextmanager
def _progress(name: str, total: int | None, options: argparse.Namespace) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal, if there is one; yields a function told how many are done."""
    columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
