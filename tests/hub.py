"""A hub's cache with small invented stand-ins of what the shipped configurations name: no network is needed."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from klsweep.tasks.source import Row, Source, hub_folder, split_file

DATA = Path(__file__).parent / "data"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELS = ("Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-4B-Instruct-2507")
CHAT = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def source(path: Path | str, answer: str = "answer", **fields: Any) -> Source:
    """A source with everything plain that is not given."""
    rest = {"subsets": (), "split": "train", "revision": None, "where": None, **fields}
    return Source(path=str(path), answer=answer, **rest)


def rows_of(name: str) -> list[Row]:
    """The rows of a file in tests/data."""
    return list(source(DATA / name, answer="Solution" if name.endswith(".csv") else _some_column(name)).rows())


def _some_column(name: str) -> str:
    return next(iter(json.loads((DATA / name).read_text().splitlines()[0])))


def puzzles(count: int) -> list[Row]:
    """Countdown puzzles a + b − c and the like, all distinct."""
    return [{"target": 11 + i, "nums": [10 + i, 4, 3]} for i in range(count)]


def store(name: str, subset: str | None, split: str, rows: list[Row]) -> None:
    """Put rows where `klsweep fetch` puts a split."""
    file = split_file(name, COMMIT, subset, split)
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    references = hub_folder(name) / "refs"
    references.mkdir(exist_ok=True)
    (references / "main").write_text(COMMIT)


def use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `home` the Hugging Face cache of a machine without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def fill(home: Path) -> None:
    """Put every dataset and model (without weights) that `conf/` names into the cache at `home`, which is in use."""
    for subject in ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"):
        store("EleutherAI/hendrycks_math", subject, "train", rows_of("math_train.jsonl")[2:4])
    for subject in ("prealgebra", "precalculus"):
        store("EleutherAI/hendrycks_math", subject, "train", rows_of("math_train.jsonl"))
    store("HuggingFaceH4/MATH-500", None, "test", rows_of("math500.jsonl"))
    store("veds12/math-squared", None, "train", rows_of("math_squared.csv"))
    for subject in ("college_physics", "college_chemistry", "college_biology"):
        rows = [row for row in rows_of("mmlu_college.jsonl") if row["subject"] == subject]
        store("cais/mmlu", subject, "test", rows)
    store("Jiayi-Pan/Countdown-Tasks-3to4", None, "train", puzzles(17_000))
    for name in MODELS:
        folder = home / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
