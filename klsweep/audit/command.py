"""`klsweep audit`: options to rows to text, JSON or files."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.audit.atlas import atlas, atlas_grid
from klsweep.audit.axes import PAGES, write_axes
from klsweep.audit.bias import bias_table
from klsweep.audit.cases import Row, cases
from klsweep.audit.page import LONGEST_EXACT, PIECES, Plot, write_page, write_study
from klsweep.audit.show import Grid, bias_grid, real_grid, study_grid, whole_grid
from klsweep.audit.study import LENGTHS, ROUNDS, SAMPLES, synthetic_study
from klsweep.audit.tabular import Tables, check_enumerable, check_eos, check_size, instance, load_tables
from klsweep.audit.whole import whole_table
from klsweep.config.build import Builder
from klsweep.config.compose import Composer, composer
from klsweep.config.grid import expand
from klsweep.errors import BadInput
from klsweep.terminal import console, print_grid, progress

TABLE_LENGTH, WHOLE_LENGTH, VOCABULARY = 14, 4, 2
BATCHES, PROMPTS = 64, 64
OF_A_MODEL = ("model", "task", "rollout")
LEGEND = [
    "rel. error ‖E g − ∇KL‖/‖∇KL‖, norm ratio ‖E g‖/‖∇KL‖, cosine between E g and ∇KL: g the KL term's gradient, ∇KL "
    "that of the sequence KL(π‖π_ref); variance: trace of one sample's covariance; SNR ‖E g‖/√variance. token-local: "
    "what a token does to later ones is dropped.",
]
PLAIN_SUMS = "audited with plain sums: what an aggregation does to responses of different lengths is set aside"


class Result(NamedTuple):
    """Rows, how they are printed, and what to say beside them."""

    rows: list[Row]
    show: Callable[[list[Row]], None]
    notes: list[str]


def audit(options: argparse.Namespace, plot: Plot) -> int:
    """Run one mode and print it; `plot` draws the study. Raises BadInput."""
    _check(options)
    with composer(options.config_dir) as session:
        if options.page or options.axes:
            _write(session, options, plot)
            return 0
        result = _study(session, options, plot) if options.study else _mode(options)(session, options)
    if options.json:
        print(json.dumps(result.rows, indent=1, allow_nan=False))
        for note in result.notes:
            if note not in LEGEND:
                print(f"note: {note}", file=sys.stderr)
    else:
        result.show(result.rows)
        for note in result.notes:
            console().print(note)
    return 0


def _mode(options: argparse.Namespace) -> Callable[[Composer, argparse.Namespace], Result]:
    if options.whole:
        return _whole
    if options.presets:
        return _presets
    return _real if options.run or options.model else _table


def _check(options: argparse.Namespace) -> None:
    """BadInput for options out of range or without effect in the mode."""
    for name in ("length", "vocabulary", "samples", "batches", "prompts"):
        value, least = getattr(options, name), {"vocabulary": 2, "samples": 2}.get(name, 1)
        if value is not None and value < least:
            raise BadInput(f"--{name}={value}: expected at least {least}")
    if not 0 <= options.seed < 2**63:
        raise BadInput(f"--seed={options.seed}: expected at least 0 and below 2^63")
    if options.reference and not options.model:
        raise BadInput(f"--reference={options.reference}: goes with --model")
    if options.model and not options.reference:
        raise BadInput(f"--model={options.model}: needs --reference, the model it is regularised towards")
    if options.policy and (options.length or options.vocabulary or options.eos is not None):
        raise BadInput(f"--policy={options.policy}: its tables have a length, vocabulary and eos of their own")
    tabular = not (options.study or options.run or options.model or options.page or options.axes)
    given = (options.policy, options.length, options.vocabulary, options.samples, options.eos)
    if (options.run or options.model) and options.samples is not None:
        raise BadInput(f"--samples={options.samples}: --run and --model take --batches of --prompts samples each")
    if not tabular and any(value is not None for value in given):
        raise BadInput("--policy, --length, --vocabulary, --eos and --samples are for the tabular audits")
    if (options.batches or options.prompts) and not (options.run or options.model):
        raise BadInput("--batches and --prompts go with --run and --model")
    if options.json and (options.page or options.axes):
        raise BadInput("--json: --page and --axes write files")
    if options.samples and (options.whole or options.presets):
        raise BadInput(f"--samples={options.samples}: --whole and --presets enumerate")
    own = [text for text in options.overrides if _node(text) in OF_A_MODEL]
    if options.run and own:
        raise BadInput(f"{own[0]}: --run audits the run's own model on its own task")
    if options.overrides and (options.presets or options.page or options.axes):
        raise BadInput(f"{options.overrides[0]}: --presets, --page and --axes take no overrides")


def _node(override: str) -> str:
    return override.split("=")[0].split(".")[0]


def _tables(options: argparse.Namespace, length: int) -> Tables:
    tables = load_tables(options.policy) if options.policy else None
    vocabulary = options.vocabulary or VOCABULARY
    length, vocabulary = (tables.length, tables.vocabulary) if tables else (options.length or length, vocabulary)
    if not options.whole and options.samples is None:
        otherwise = "give a shorter policy" if options.presets else "give --samples N for Monte Carlo"
        check_enumerable(length, vocabulary, otherwise)
    check_size(length, vocabulary)
    check_eos(options.eos, vocabulary, "--eos")
    return tables or instance(length, vocabulary, options.eos)


def _make_folder(option: str, folder: Path) -> None:
    """Before anything is computed: BadInput if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise BadInput(f"{option}={str(folder)!r}: {error.strerror}") from error


def _write(session: Composer, options: argparse.Namespace, plot: Plot) -> None:
    """The pages, and where they are."""
    if options.page:
        _make_folder("--page", options.page)
        with progress("pieces", PIECES) as advance:
            files = write_page(session, options.page, options.seed, plot, advance)
    else:
        _make_folder("--axes", options.axes)
        with progress("pages", len(PAGES)) as advance:
            files = write_axes(session, options.axes, advance)
    console().print(f"written: {', '.join(map(str, files))}")


def _table(session: Composer, options: argparse.Namespace) -> Result:
    tables = _tables(options, TABLE_LENGTH)
    chosen, notes = cases(session, options.overrides, "bias_table")
    with progress("configurations", len(chosen)) as advance:
        rows = bias_table(tables, chosen, options.samples, options.seed, advance)
    skipped = sum(case.off_policy for case in chosen) if tables.sampler is None else 0
    if skipped:
        notes.append(f"{skipped} off-policy configurations left out: the policy file has no sampler table")
    return Result(rows, _printer(bias_grid), [*LEGEND, *notes])


def _whole(session: Composer, options: argparse.Namespace) -> Result:
    tables = _tables(options, WHOLE_LENGTH)
    chosen, notes = cases(session, options.overrides, "effective_beta", whole=True)
    with progress("configurations", len(chosen)) as advance:
        rows = whole_table(tables, chosen, advance)
    return Result(rows, _printer(whole_grid), notes)


def _presets(session: Composer, options: argparse.Namespace) -> Result:
    tables = _tables(options, TABLE_LENGTH)
    with progress("settings", None) as advance:
        rows = atlas(session, tables, advance)
    return Result(rows, _print_atlas, [PLAIN_SUMS])


def _study(session: Composer, options: argparse.Namespace, plot: Plot) -> Result:
    chosen, notes = cases(session, options.overrides, "main_estimators")
    _make_folder("--study", options.study)
    with progress("configurations × lengths", len(chosen) * len(LENGTHS)) as advance:
        rows = synthetic_study(chosen, LENGTHS, ROUNDS, SAMPLES, options.seed, LONGEST_EXACT, advance)
    files = write_study(rows, options.study, plot)
    notes = [*notes, f"written: {', '.join(map(str, files))}"]
    return Result(rows, _printer(study_grid), notes)


def _real(session: Composer, options: argparse.Namespace) -> Result:
    from klsweep.audit.subject import of_models, of_run
    from klsweep.audit.transformer import check_cases, transformer_table

    batches = options.batches or BATCHES
    sizes: dict[str, Any] = {"batches": batches, "prompts": options.prompts or PROMPTS, "seed": options.seed}
    chosen, notes = cases(session, options.overrides, "main_estimators")
    check_cases(chosen, batches)
    if options.run:
        subject = of_run(options.run, **sizes)
    else:
        plain = [text for text in options.overrides if _node(text) in OF_A_MODEL]
        spec = Builder().run_spec(expand(session, [*plain, f"model.path={options.model}"], single=True).cells[0].config)
        subject = of_models(spec, options.reference, **sizes)
    with progress("configurations", len(chosen)) as advance:
        kl, rows = transformer_table(subject, chosen, advance)
    notes = [f"KL(π‖π_ref) {kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}] nats per response", *notes]
    rows = [{**row, "kl": kl.value, "kl_low": kl.low, "kl_high": kl.high} for row in rows]
    return Result(rows, _printer(real_grid), notes)


def _printer(grid: Callable[[list[Row]], Grid]) -> Callable[[list[Row]], None]:
    return lambda rows: print_grid(*grid(rows))


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
