"""One update of klsweep against TRL's trainer and against a bare loop of the same calls, taking turns."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants.ours import spec_of
from benchmarks.frame import Row, spread

ROOT = Path(__file__).parents[1]
PARITY = ROOT / ".venv-parity/bin/python"
OURS, FLOOR, PLAIN, TRL = "klsweep", "bare loop", "bare loop, `generate`", "TRL"

Round = dict[str, list[tuple[float, float]]]  # each contestant's updates: seconds on the wall, and of the processor


@dataclass(frozen=True)
class Work:
    """What an update is: `prompts` × `group` responses of up to `tokens` tokens, by the model `model`."""

    model: str
    prompts: int
    group: int
    tokens: int


class Contestant:
    """The parent's side of `contestants.turns`."""

    def __init__(self, interpreter: Path, module: str, work: dict) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            [interpreter, "-m", f"benchmarks.contestants.{module}", json.dumps(work)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.loaded_mib: float = self._answer()["peak_mib"]

    def turn(self, updates: int) -> dict:
        """Do so many updates; 0 ends it, and its last answer is about the whole."""
        assert self._process.stdin is not None
        print(updates, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{self._process.args} ended without an answer:\n{said}")
        return json.loads(line)


def small(folder: Path) -> Iterator[Row]:
    """One update of the shipped model (0.2 M parameters), 32 prompts × 8 responses of up to 8 tokens, one thread.
    Medians over all updates; ratios of medians turn by turn, with their median and range. The bare loop generates,
    scores with the reference, and takes one step, and that is all."""
    yield from contest(Work("klsweep/tiny", 32, 8, 8), turns=12, updates=5)


def larger(folder: Path) -> Iterator[Row]:
    """The same for a random Qwen2 of 10 M parameters, 8 prompts × 8 responses of up to 64 tokens."""
    write_model(folder / "model")
    yield from contest(Work(str(folder / "model"), 8, 8, 64), turns=4, updates=1)


def contest(work: Work, turns: int, updates: int) -> Iterator[Row]:
    """Let the contestants take turns, the first one turn each that does not count."""
    everyone = start(work)
    rounds = []
    for number in range(turns + 1):
        order = list(everyone)[number % len(everyone) :] + list(everyone)[: number % len(everyone)]
        rounds.append({name: everyone[name].turn(updates)["times"] for name in order})
    whole = {name: contestant.turn(0) for name, contestant in everyone.items()}
    yield from _rows(work, rounds[1:], whole, {name: each.loaded_mib for name, each in everyone.items()})
    yield from _phases(whole[OURS]["timing"][updates:])
    if TRL not in everyone:
        yield Row(TRL, f"left out: {PARITY.relative_to(ROOT)} not found (make install-parity)")


def start(work: Work) -> dict[str, Contestant]:
    """The contestants that there are here, ready for their first turn."""
    ours, here = asdict(work), Path(sys.executable)
    spec = spec_of(ours)
    theirs = {**ours, "model_folder": str(spec.model.location), "items": spec.task.train_items()[:1024]}
    found = {
        OURS: Contestant(here, "ours", ours),
        FLOOR: Contestant(here, "bare", {**ours, "generate": "klsweep"}),
        PLAIN: Contestant(here, "bare", {**ours, "generate": "transformers"}),
    }
    return found | ({TRL: Contestant(PARITY, "theirs", theirs)} if PARITY.exists() else {})


def _rows(work: Work, rounds: Sequence[Round], whole: dict, loaded: dict[str, float]) -> Iterator[Row]:
    for name, last in whole.items():
        median = statistics.median(wall for turn in rounds for wall, _ in turn[name])
        rate = work.prompts * work.group / median
        memory = f"peak memory {last['peak_mib']:.0f} MiB, {loaded[name]:.0f} before the first update"
        yield Row(
            f"{name}: samples per second",
            f"{rate:,.{1 if rate < 100 else 0}f} ({median * 1e3:,.0f} ms an update; {memory})",
        )
    for other in (name for name in whole if name != OURS):
        aim = {FLOOR: " (aim: at most 1.15)", TRL: " (aim: at most 1)"}.get(other, "")
        wall, processor = (spread(_ratios(rounds, other, clock)) for clock in (0, 1))
        yield Row(f"time of an update, klsweep / {other}{aim}", f"{wall}; processor time {processor}")


def _ratios(rounds: Sequence[Round], other: str, clock: int) -> list[float]:
    """Of klsweep's and another's median update, turn by turn."""
    medians = [
        {name: statistics.median(times[clock] for times in turn[name]) for name in (OURS, other)} for turn in rounds
    ]
    return [median[OURS] / median[other] for median in medians]


def _phases(timing: Sequence[dict]) -> Iterator[Row]:
    """Where klsweep's time goes, and its generated tokens per second."""
    total = sum(row["seconds/total"] for row in timing)
    parts = {name: sum(row[f"seconds/{name}"] for row in timing) / total for name in ("rollout", "score", "step")}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
    yield Row("phases of klsweep's update", f"{shares}, metrics and record {1 - sum(parts.values()):.0%}")
    tokens = statistics.median(row["tokens_per_second"] for row in timing)
    yield Row("generated tokens per second of training", f"{tokens:,.0f}")


def write_model(folder: Path) -> None:
    """A random Qwen2 of 10 M parameters with the shipped model's tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from klsweep.model.build_tiny import build_tokenizer

    tokenizer: Any = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
