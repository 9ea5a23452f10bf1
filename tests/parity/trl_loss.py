"""Runs where TRL is installed: its own advantages, loss and gradient on the recorded batch.

    python trl_loss.py FOLDER CASES

FOLDER/batch.json holds the tokens, FOLDER/{base,old,new} the policies. CASES is JSON, a list of
[name, "grpo" | "rloo", policy to differentiate, settings]; FOLDER/name.safetensors is written for each. Of TRL only the
generation is replaced, by the recorded tokens.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

KINDS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def make_trainer(kind: str, folder: Path, batch: dict, settings: dict):
    trainer_class, config_class = KINDS[kind]
    arguments = config_class(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=len(batch["prompts"]),
        num_generations=batch["group"],
        max_completion_length=batch["length"],
        temperature=batch["temperature"],
        num_iterations=2,  # so that GRPOTrainer, too, computes old log-probabilities
        **settings,
    )
    return trainer_class(
        model=str(folder / "base"),
        reward_funcs=lambda completions, **_: batch["rewards"],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": sorted(set(batch["prompts"]))}),
        processing_class=AutoTokenizer.from_pretrained(folder / "base", padding_side="left"),
    )


def set_weights(trainer, folder: Path) -> None:
    trainer.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    trainer.model.tie_weights()


def main(folder: Path, cases: list) -> None:
    torch.set_num_threads(1)
    batch = json.loads((folder / "batch.json").read_text())
    for name, kind, policy, settings in cases:
        trainer = make_trainer(kind, folder, batch, settings)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # what Trainer.train sets before its first step
        ids = batch["completions"]
        trainer._generate_single_turn = lambda *_, ids=ids, kind=kind: (ids, None) if kind == "grpo" else ids
        set_weights(trainer, folder / "old")
        inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in batch["prompts"]])
        set_weights(trainer, folder / policy)
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        found = {f"grad/{key}": parameter.grad for key, parameter in trainer.model.named_parameters()}
        found |= {key: value.contiguous() for key, value in inputs.items() if torch.is_tensor(value)}
        save_file(found | {"loss": loss.detach()}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
