"""TRL's `GRPOTrainer`, paced from outside: `.venv-parity/bin/python -m benchmarks.contestants.theirs WORK`.

Defaults of GRPOConfig but for the work to be done, float32 and gradient checkpointing, which trades time for memory.
"""

import json
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.contestants.turns import Turns


class Paced(TrainerCallback):
    """Waits for a turn between steps."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_begin(self, args, state, control, **_):
        self._turns.wait()

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = not self._turns.wait()


def correct(completions, answer, **_):
    """The verifier's reward."""
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]


def main(work: dict, folder: str) -> None:
    torch.set_num_threads(1)
    turns = Turns()
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_steps=100_000,
        learning_rate=1e-9,
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=work["prompts"] * work["group"],
        num_generations=work["group"],
        max_completion_length=work["tokens"],
        beta=0.1,
    )
    trainer = GRPOTrainer(
        model=work["model_folder"],
        reward_funcs=correct,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in work["items"]]),
        processing_class=AutoTokenizer.from_pretrained(work["model_folder"], padding_side="left"),
        callbacks=[Paced(turns)],
    )
    trainer.train()
    turns.answer()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(json.loads(sys.argv[1]), name)
