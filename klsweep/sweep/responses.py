"""`klsweep inspect`: single responses of a run on a terminal, each token coloured by its log-ratio. No torch."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from klsweep.errors import BadInput
from klsweep.record.files import Row
from klsweep.record.folder import RunFolder
from klsweep.record.rollouts import Kind, at_update, base_lines, base_summary, read, rollout_file, rollout_rows, verdict

FULL_COLOUR = 3.0  # nats of |ℓ| at which a token has the strongest colour
PALE = 0.05  # nats of |ℓ| below which a token has no colour
MARKED = 0.5  # nats of |ℓ| from which ℓ is written out where there are no colours
LEGEND = "ℓ = log π − log π_ref of each token; red: the policy gives it more than the base, blue: less"
PLAIN_LEGEND = f"[ℓ] after a token: log π − log π_ref, in nats, where it is at least {MARKED:g}"


def chosen_rows(
    folder: RunFolder, kind: Kind | None, update: int | None, top_kl: int | None = None
) -> tuple[Kind, list[Row]]:
    """The responses to show: of the probes if there are any, else of the base; those of the last update by default.

    `top_kl`: only so many, with the largest |Σℓ| (those that are not finite first). BadInput if there are none, or none
    of that update, or if the kind has no log-probabilities to go by.
    """
    found, rows = _rows_of(folder, kind, update)
    if top_kl is None:
        return found, rows
    if top_kl < 1:
        raise BadInput(f"--top-kl={top_kl}: expected a whole number, at least 1")
    if found not in ("probes", "last_batches"):
        raise BadInput(f"--top-kl={top_kl}: {rollout_file(folder, found)} has no log-probabilities (--of=probes)")
    return found, sorted(rows, key=_size_of_log_ratio, reverse=True)[:top_kl]


def _size_of_log_ratio(row: Row) -> float:
    ratios = log_ratios(row)
    return abs(sum(x for x in ratios if x is not None)) if None not in ratios else float("inf")


def _rows_of(folder: RunFolder, kind: Kind | None, update: int | None) -> tuple[Kind, list[Row]]:
    found: Kind = kind or ("probes" if rollout_rows(folder, "probes") else "base")
    rows = rollout_rows(folder, found)
    if not rows:
        why = {"probes": " (train.probe_every=0)", "last_batches": " (the run has not diverged)"}.get(found, "")
        raise BadInput(f"{rollout_file(folder, found)}: nothing there{why}")
    if update is None and found != "probes":
        return found, rows
    wanted = at_update(rows, update)
    if not wanted:
        updates = ", ".join(map(str, sorted({row["update"] for row in rows})))
        raise BadInput(f"--update={update}: {rollout_file(folder, found)} is of updates {updates}")
    return found, wanted


def print_responses(folder: RunFolder, kind: Kind, rows: Sequence[Row], out: Console) -> None:
    """The rows, prompt and response in full, with what training made of them."""
    out.print(Text(f"{rollout_file(folder, kind)}: {len(rows)} rows", style="bold"))
    if kind == "errors":
        for row in rows:
            out.print(f"update {row['update']}, {row['where']}: {row['errors']} not graded, e.g. {row['examples'][-1]}")
        return
    if kind == "base":
        base = folder.recorded().get("base")
        for line in [*([base_summary(base)] if base else []), *base_lines(rows)]:
            out.print(line)
        return
    out.print(Text(LEGEND if _has_colours(out) else PLAIN_LEGEND, style="dim"))
    prompt = None
    for row in rows:
        if (row["update"], row["item"]) != prompt:
            prompt = row["update"], row["item"]
            out.print(Text(f"\nupdate {row['update']}, training prompt {row['item']}", style="bold"))
            out.print(Text(row["prompt"], style="dim"))
        out.print(Text(heading(row), style="green" if row["correct"] else "red"))
        out.print(Text.assemble(*_tokens(row, _has_colours(out))))


def heading(row: Row) -> str:
    """What a response was worth: verdict, reward, advantage, and its log-ratio in all."""
    ratios = log_ratios(row)
    total = "not finite" if None in ratios else f"{sum(x for x in ratios if x is not None):+.3f}"
    stale = (
        f", sampled after update {row['version']}" if row["version"] not in (row["update"], row["update"] - 1) else ""
    )
    return (
        f"sample {row['sample']}: {verdict(row)}{read(row)}, reward {row['reward']:.4g}, "
        f"advantage {_advantage(row['advantage'])}, Σℓ {total}{stale}"
    )


def log_ratios(row: Row) -> list[float | None]:
    """ℓ of each token, None where it is not finite."""
    pairs = zip(row["logprobs"], row["ref_logprobs"], strict=True)
    return [None if ours is None or ref is None else ours - ref for ours, ref in pairs]


def _advantage(values: Sequence[float | None]) -> str:
    words = list(dict.fromkeys("not finite" if value is None else f"{value:+.3f}" for value in values))
    return words[0] if len(words) == 1 else f"{words[0]} … {words[-1]} by token"


def _tokens(row: Row, colours: bool) -> Iterator[tuple[str, str]]:
    """(text, style) of each token."""
    for token, ratio in zip(row["tokens"], log_ratios(row), strict=True):
        text = token.replace("\n", "⏎\n")
        if colours:
            yield text, style_of(ratio)
        else:
            mark = "[not finite]" if ratio is None else f"[{ratio:+.2f}]" if abs(ratio) >= MARKED else ""
            yield f"{text}{mark}", ""


def style_of(ratio: float | None) -> str:
    """Background by ℓ: none near 0, full red at `FULL_COLOUR` nats above the base, full blue at as many below."""
    if ratio is None:
        return "black on yellow"
    if abs(ratio) < PALE:
        return ""
    strength = min(1.0, abs(ratio) / FULL_COLOUR)
    pale, full = round(255 * (1 - strength)), 255
    red, blue = (full, pale) if ratio > 0 else (pale, full)
    return f"black on rgb({red},{pale},{blue})"


def _has_colours(out: Console) -> bool:
    return out.color_system is not None
