"""What sampling beside the training saves, against sampling in turn."""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.contestants.ours import claimed, composed
from benchmarks.frame import Row, spread
from benchmarks.updates import Work, write_model
from klsweep.record.files import read_rows
from klsweep.tracking import Tracker
from klsweep.training.loop import train

LAG = 2
PAIRS = 3
NOT_TRAINING = ("seconds/eval", "seconds/checkpoint")


def rows(folder: Path) -> Iterator[Row]:
    """One update off policy (`sampling.async_level=2`), one thread for each process; `sampling.overlap` off and on take
    turns, three runs each. Means over the updates in which batches are both sampled and consumed."""
    write_model(folder / "model")
    yield from _compare(
        "0.2 M parameters, 32 × 8 responses of up to 8 tokens", Work("klsweep/tiny", 32, 8, 8), 60, folder
    )
    larger = Work(str(folder / "model"), 8, 8, 64)
    yield from _compare("10 M parameters, 8 × 8 responses of up to 64 tokens", larger, 14, folder)


def _compare(what: str, work: Work, updates: int, folder: Path) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pairs = []
    for number in range(PAIRS):
        runs = [folder / f"{updates}-{number}-{overlap}" for overlap in (False, True)]
        pairs.append([_update(work, updates, run, run.name.endswith("True")) for run in runs])
    torch.set_num_threads(threads)
    turn, beside = zip(*pairs, strict=True)
    yield Row(f"{what}: ms an update, in turn", spread([total * 1e3 for total, _ in turn], 0))
    yield Row(f"{what}: of which sampling", spread([sampling / total for total, sampling in turn]))
    yield Row(f"{what}: ms an update, beside", spread([total * 1e3 for total, _ in beside], 0))
    yield Row(f"{what}: of which waiting for a batch", spread([waiting / total for total, waiting in beside]))
    ratios = [one / other for (one, _), (other, _) in pairs]
    yield Row(f"{what}: in turn / beside (2 cores: at most 2)", spread(ratios))


def _update(work: Work, updates: int, folder: Path, overlap: bool) -> tuple[float, float]:
    """Mean seconds of an update, and of its rollout phase."""
    spec = composed(
        [
            "sampling=off_policy",
            f"sampling.async_level={LAG}",
            f"sampling.overlap={overlap}",
            f"model.path={work.model}",
            f"train.prompts_per_update={work.prompts}",
            f"algorithm.group_size={work.group}",
            f"task.max_response_tokens={work.tokens}",
            f"train.updates={updates}",
            "train.lr=1e-9",
            "train.base_check=off",  # random weights
            "eval.samples_per_prompt=1",
            "eval.pass_at=[1]",
            *(f"eval.suites.{suite}.eval_prompts=2" for suite in ("add", "subtract", "reverse", "max", "sort")),
        ]
    )
    attempt = claimed(folder)
    train(spec, attempt, folder / "artifacts", Tracker(None), lambda: None, lambda *_: None)
    timing = list(read_rows(attempt.folder.timing))[LAG + 2 : -LAG - 1]
    totals = [row["seconds/total"] - sum(row.get(name, 0.0) for name in NOT_TRAINING) for row in timing]
    return sum(totals) / len(timing), sum(row["seconds/rollout"] for row in timing) / len(timing)
