"""`klsweep bound`: options to figures to text, JSON or a plot."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.analysis.bound_plots import plot_bound
from klsweep.analysis.bounds import FIGURES, Asked, RunBound, recorded_components, recorded_log_ratios, run_bound
from klsweep.analysis.plots import SUFFIXES
from klsweep.cells import describe
from klsweep.commands.bound_options import Common, FromRecord, FromSamples, load_array, options, told
from klsweep.commands.parser import OK
from klsweep.commands.runs import own_run
from klsweep.commands.sweeps import own_sweep
from klsweep.errors import BadInput
from klsweep.record.files import finite
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.terminal import console, print_grid, progress
from klsweep.theory.bound import UNIT_REWARDS
from klsweep.theory.budget import EQUAL_COSTS, Split, best_split
from klsweep.theory.coverage import Coverage, coverage_from_weights
from klsweep.theory.decomposition import Decomposition, Setting, Spending, decompose, spending
from klsweep.theory.inputs import Floats
from klsweep.theory.variance import VarianceComponents, variance_components

Lines = list[list[str]]


def bound(words: Sequence[str], as_json: bool, plot: Path | None) -> int:
    """Answer in one of the forms; the exit code. Raises BadInput."""
    if plot is not None and plot.suffix not in SUFFIXES:
        raise BadInput(f"--plot={str(plot)!r}: expected a file that ends in {', '.join(SUFFIXES)}")
    folder, values = told(words)
    try:
        if folder is None:
            _from_samples(options(FromSamples, values), as_json, plot)
        elif SweepFolder(folder).plan_file.exists():
            _from_sweep(folder, options(FromRecord, values), as_json, plot)
        else:
            _from_run(own_run(folder), options(FromRecord, values), as_json, plot)
    except BadInput:
        raise
    except ValueError as error:  # what the theory refuses
        raise BadInput(str(error)) from error
    return OK


class Extra(NamedTuple):
    """What was asked besides the terms."""

    coverage: Coverage | None
    components: VarianceComponents | None
    spent: list[Spending]
    split: Split | None


def _from_samples(given: FromSamples, as_json: bool, plot: Path | None) -> None:
    log_ratios = load_array("log_ratios", given.log_ratios)
    weights = None if given.log_weights is None else load_array("log_weights", given.log_weights).ravel()
    coverage = None if weights is None else coverage_from_weights(weights)
    setting = Setting(
        given.prompts,
        given.rollouts,
        1 - given.confidence,
        given.beta,
        given.alpha,
        given.asymmetric,
        coverage.coefficient if coverage else given.coverage or 1.0,
        given.reward_error or 0.0,
        given.reward_range or UNIT_REWARDS,
    )
    components = None
    if given.rewards is not None:
        rewards = load_array("rewards", given.rewards)
        setting.rewards.to_unit(rewards)  # refuses those out of range
        components = variance_components(rewards)
    with progress("resamples", given.resamples) as advance:
        found = decompose(setting, log_ratios, given.split, given.seed, given.resamples, advance)
    spent = _spent(given, setting, components)
    extra = Extra(coverage, components, spent, _preference_split(given, setting, found))
    if plot is not None:
        _plot(found, log_ratios, given, plot)
    notes = list(coverage.warnings) if coverage else []
    if given.reward_error is None:
        notes.append("no reward_error given: the reward is taken as the true one")
    if as_json:
        print(json.dumps({**_samples_json(found, extra), "notes": notes}, indent=1, allow_nan=False))
        return
    print_grid(["figure", "value", "how"], [*_samples_grid(found), *_extra_grid(extra, given.alpha)])
    for note in [found.label, *notes]:
        console().print(note)


def _spent(given: Common, setting: Setting, components: VarianceComponents | None) -> list[Spending]:
    return [] if given.costs is None else spending(setting, given.costs, given.budget, components)


def _preference_split(given: FromSamples, setting: Setting, found: Decomposition) -> Split | None:
    """The budget (default: what n and K cost) over prompts, rollouts and preferences, with τ held at τ*."""
    if given.costs is None or given.cost_preference is None or given.error_rate is None:
        return None
    budget = given.budget or setting.prompts * given.costs.of_prompt(float(setting.rollouts))
    width = setting.rewards.width + setting.beta * (found.clip.low + found.clip.high)
    scale = width * math.sqrt(math.log(4 / setting.delta) / 2)
    return best_split(given.costs, given.cost_preference, budget, scale, setting.coverage * given.error_rate)


def _plot(found: Decomposition, log_ratios: Floats, given: Common, file: Path) -> None:
    """K* is by cost, of equal ones if none were given."""
    costs = given.costs or EQUAL_COSTS
    plot_bound(found, log_ratios, costs, spending(found.setting, costs, given.budget, None)[0], file)
    console(stderr=True).print(f"written: {file}")


def _samples_json(found: Decomposition, extra: Extra) -> dict[str, Any]:
    setting, clip, terms = found.setting, found.clip, found.bound
    result: dict[str, Any] = {
        "alpha": setting.alpha,
        "quantile": setting.quantile,
        "tau_star": None if setting.asymmetric else clip.high,
        "sampling": terms.sampling,
        "clipping": terms.clipping,
        "reward_shift": terms.reward_shift,
        "total": terms.total,
        "tau_low": clip.low,
        "tau_high": clip.high,
        "tau_low_interval": list(found.interval.low),
        "tau_high_interval": list(found.interval.high),
        "clipped_share": found.clipped_share,
        "prompts": setting.prompts,
        "rollouts": setting.rollouts,
        "confidence": 1 - setting.delta,
        "beta": setting.beta,
        "alpha_name": setting.alpha_name,
        "coverage": setting.coverage,
        "reward_error": setting.reward_error,
        "reward_low": setting.rewards.low,
        "reward_high": setting.rewards.high,
        "label": found.label,
    }
    if extra.coverage:
        names = ("samples", "effective_samples", "carriers", "tail_index")
        result["weights"] = {name: getattr(extra.coverage, name) for name in names}
    return result | _spent_json(extra)


def _spent_json(extra: Extra) -> dict[str, Any]:
    """Keys for what was asked only."""
    result: dict[str, Any] = {}
    if extra.components:
        names = ("prompt", "rollout", "ratio_interval")
        result["variance"] = {name: getattr(extra.components, name) for name in names}
    if extra.spent:
        rows = [best._asdict() for best in extra.spent]
        result["spending"] = [{**row, "best_rollouts": finite(row["best_rollouts"])} for row in rows]
    if extra.split:
        result["preference_split"] = {**extra.split._asdict(), "total": extra.split.total}
    return result


def _samples_grid(found: Decomposition) -> Lines:
    setting, clip, terms = found.setting, found.clip, found.bound
    name = f"{setting.alpha_name}: n = {setting.prompts}, K = {setting.rollouts}, confidence {1 - setting.delta:g}"
    sides = [("τ* (nats)", clip.high, found.interval.high)]
    what = "1 − 2α, of |ℓ|"
    if setting.asymmetric:
        sides = [("τ_lo (nats)", clip.low, found.interval.low), ("τ_hi (nats)", clip.high, found.interval.high)]
        what = "1 − α, of ℓ and of −ℓ"
    lines = [["α", _figure(setting.alpha), name], ["quantile", _figure(setting.quantile), what]]
    for side, value, (low, high) in sides:
        lines.append([side, _figure(value), f"bootstrap {low:.4g} to {high:.4g}, at the same confidence"])
    width = "1" if setting.rewards == UNIT_REWARDS else f"{setting.rewards.width:g}"
    return [
        *lines,
        ["clipped", _figure(found.clipped_share), "share of the log-ratios beyond"],
        ["sampling", _figure(terms.sampling), f"({width} + β(τ_lo + τ_hi))α, β = {setting.beta:g}"],
        ["clipping", _figure(terms.clipping), "β E|ℓ − ℓ^τ|"],
        [
            "reward shift",
            _figure(terms.reward_shift),
            f"C √L, C = {setting.coverage:.4g}, √L = {setting.reward_error:.4g}",
        ],
        ["total", _figure(terms.total), "bounds |Ĵ − J*|, as far as the line below allows"],
    ]


def _extra_grid(extra: Extra, alpha_name: str) -> Lines:
    lines = []
    if extra.coverage:
        tail = "–" if extra.coverage.tail_index is None else f"{extra.coverage.tail_index:.2f}"
        text = f"of {extra.coverage.samples} samples; tail index {tail}"
        lines.append(["effective samples", _figure(extra.coverage.effective_samples), text])
    if extra.components:
        lines.append(["σ² of prompts", _figure(extra.components.prompt), "one-way random effects"])
        lines.append(["σ² of rollouts", _figure(extra.components.rollout), ""])
    for best in extra.spent:
        least, of = ("α", f"by α ({alpha_name})") if best.criterion == alpha_name else ("standard error", "by variance")
        text = f"{of}; within the budget n = {best.prompts}, K = {best.rollouts}: {least} {best.value:.4g}"
        lines.append(["K*", _figure(best.best_rollouts), text])
    if split := extra.split:
        text = f"n = {split.prompts}, K = {split.rollouts}, preferences {split.preferences} (√L = κ/√m is assumed)"
        lines.append(["best split", _figure(split.total), f"{text}; no split is below {split.least:.4g}"])
    return lines


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.6f}" if math.isfinite(value) and abs(value) < 1e6 else f"{value:g}"


def _from_run(folder: RunFolder, given: FromRecord, as_json: bool, plot: Path | None) -> None:
    found = run_bound(folder, _asked(given))
    extra, source = _record_extra(folder, given, found)
    if plot is not None:
        _plot_record(folder, found, given, plot)
    if as_json:
        print(json.dumps({**_record_json(found), **_spent_json(extra)}, indent=1, allow_nan=False))
        return
    update = "" if found.update is None else f", update {found.update}"
    console().print(f"{folder.path}{update}: n = {found.prompts}, K = {found.rollouts}", style="bold")
    lines = [
        [name.replace("_", " "), _figure(found.figures[name].value), found.figures[name].source] for name in FIGURES
    ]
    print_grid(["figure", "value", "source"], [*lines, *_extra_grid(extra, given.alpha)])
    for note in [*found.notes, *source]:
        console().print(note)


def _asked(given: FromRecord) -> Asked:
    return Asked(given.confidence, given.alpha, given.update, given.reward_range)


def _record_extra(folder: RunFolder, given: FromRecord, found: RunBound) -> tuple[Extra, list[str]]:
    """K* if costs were given, and where the variance components come from."""
    if given.costs is None:
        return Extra(None, None, [], None), []
    components, source = recorded_components(folder)
    return Extra(None, components, _spent(given, _setting(found), components), None), [f"σ²: {source}"]


def _setting(found: RunBound) -> Setting:
    values = {name: found.figures[name].value for name in ("beta", "coverage", "reward_error")}
    return Setting(
        found.prompts,
        found.rollouts,
        1 - found.confidence,
        values["beta"] or 0.0,
        found.alpha_name,
        False,
        values["coverage"] or 1.0,
        values["reward_error"] or 0.0,
        found.rewards or UNIT_REWARDS,
    )


def _plot_record(folder: RunFolder, found: RunBound, given: FromRecord, file: Path) -> None:
    """From the log-ratios that the record holds, if it does."""
    recorded = None if found.update is None else recorded_log_ratios(folder, found.update)
    if recorded is None:
        raise BadInput(f"--plot={str(file)!r}: {folder.run_id} has recorded no single responses (train.probe_every)")
    setting = _setting(found)
    _plot(decompose(setting, recorded.log_ratios, split=False, seed=0), recorded.log_ratios, given, file)


def _record_json(found: RunBound) -> dict[str, Any]:
    return {
        "run_id": found.run_id,
        "update": found.update,
        "prompts": found.prompts,
        "rollouts": found.rollouts,
        "confidence": found.confidence,
        "alpha_name": found.alpha_name,
        "reward_low": found.rewards.low if found.rewards else None,
        "reward_high": found.rewards.high if found.rewards else None,
        **{name: found.figures[name].value for name in FIGURES},
        "sources": {name: found.figures[name].source for name in FIGURES},
        "notes": found.notes,
    }


def _from_sweep(folder: Path, given: FromRecord, as_json: bool, plot: Path | None) -> None:
    if plot is not None:
        raise BadInput(f"--plot={str(plot)!r}: of a run; give one of the folders in {folder / 'runs'}")
    if given.costs is not None:
        raise BadInput(f"cost_decode={given.cost_decode}: of a run; give one of the folders in {folder / 'runs'}")
    sweep = own_sweep(folder)
    rows = [row for row in sweep.plan() if sweep.run(row["run_id"]).config.exists()]
    cells = describe(rows)
    found = [(row, run_bound(sweep.run(row["run_id"]), _asked(given))) for row in rows]
    if as_json:
        cell = [{"cell": cells[row["cell_id"]], "seed": row["seed"], **_record_json(each)} for row, each in found]
        print(json.dumps(cell, indent=1, allow_nan=False))
        return
    shown = ("beta", "tau_high", "sampling", "reward_shift", "clipping", "total", "tau_star")
    header = ["cell", "seed", "update", "n", "K", *(name.replace("_", " ") for name in shown)]
    lines = []
    for row, each in found:
        update = "–" if each.update is None else str(each.update)
        sizes = [str(row["seed"]), update, str(each.prompts), str(each.rollouts)]
        lines.append([cells[row["cell_id"]], *sizes, *(_figure(each.figures[name].value) for name in shown)])
    print_grid(header, lines)
    for note in _sources([each for _, each in found], shown):
        console().print(note)


def _sources(found: Sequence[RunBound], names: Sequence[str]) -> list[str]:
    """Where each column comes from, and in how many runs; then the notes."""
    told = [(name.replace("_", " "), each.figures[name].source) for name in names for each in found]
    told += [("note", note) for each in found for note in each.notes]
    return [f"{name}: {text} ({told.count((name, text))} of {len(found)} runs)" for name, text in dict.fromkeys(told)]
