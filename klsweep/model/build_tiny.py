"""Rebuild the tiny base model that ships with klsweep (`python -m klsweep.model.build_tiny FOLDER`).

A Qwen2 model of 0.2 M parameters over bytes, supervised on the five arithmetic tasks with answers that are, in the
end, misspelt more than half of the time. It therefore *knows* the answers (greedy decoding is nearly always right) but
samples them only a quarter to a half of the time, which leaves RL something to gain, and a KL penalty something to hold
back, within a minute on two cores. The evaluation prompts of the shipped task files are left out of its training data.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from klsweep.tasks.arithmetic import LETTERS, OPERATIONS, Arithmetic
from klsweep.tasks.base import Item

PAD, EOS = "<pad>", "<eos>"
EVAL_PROMPTS, TRAIN_PROMPTS, DATA_SEED = 64, 4096, 0
CLEAN_SHARE = 0.8  # of the steps imitate right answers only: the skill is learned first, the doubt afterwards
WRONG_SHARE = 0.6


def build_tokenizer() -> Qwen2Tokenizer:
    """One token per byte (byte-level BPE without merges), plus padding and end of sequence.

    It is the tokenizer class that transformers and vLLM pick for a Qwen2 model whatever the folder says.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *alphabet])}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=PAD, pad_token=PAD, eos_token=EOS)


def build_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised two-layer Qwen2 of width 96."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.get_vocab()[PAD],
        eos_token_id=tokenizer.get_vocab()[EOS],
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def _held_out() -> set[str]:
    return {
        item.prompt
        for operation in OPERATIONS
        for item in Arithmetic(
            operation=operation,  # pyright: ignore[reportArgumentType]
            train_prompts=TRAIN_PROMPTS,
            eval_prompts=EVAL_PROMPTS,
            seed=DATA_SEED,
            max_response_tokens=8,
        ).eval_items()
    }


def _misspelt(rng: np.random.Generator, answer: str) -> str:
    """The answer with one character replaced by another of its kind."""
    position = rng.integers(len(answer))
    kind = "0123456789" if answer[position].isdigit() else LETTERS
    others = kind.replace(answer[position], "")
    return answer[:position] + others[rng.integers(len(others))] + answer[position + 1 :]


def _draw(rng: np.random.Generator, held_out: set[str], wrong_share: float) -> tuple[Item, str]:
    """An item and the response to imitate: its answer, with probability `wrong_share` misspelt."""
    draw = list(OPERATIONS.values())[rng.integers(len(OPERATIONS))]
    while (item := draw(rng)).prompt in held_out:
        pass
    return item, _misspelt(rng, item.answer) if rng.random() < wrong_share else item.answer


def _batch(tokenizer: Qwen2Tokenizer, rng: np.random.Generator, held_out: set[str], size: int, wrong_share: float):
    """Token ids and labels [size, L], right-padded; only the response is learned."""
    ids, labels = [], []
    for _ in range(size):
        item, response = _draw(rng, held_out, wrong_share)
        prompt = tokenizer.encode(item.prompt)
        target = [*tokenizer.encode(response), tokenizer.eos_token_id]
        ids.append(torch.tensor(prompt + target))
        labels.append(torch.tensor([-100] * len(prompt) + target))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=0), pad(labels, batch_first=True, padding_value=-100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer, rng, held_out = build_tokenizer(), np.random.default_rng(args.seed), _held_out()
    model = build_model(tokenizer, args.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=args.lr, total_steps=args.steps, pct_start=0.05)
    start = time.monotonic()
    for step in range(1, args.steps + 1):
        wrong_share = WRONG_SHARE if step > args.steps * CLEAN_SHARE else 0.0
        ids, labels = _batch(tokenizer, rng, held_out, args.batch, wrong_share)
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}/{args.steps}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s", flush=True)
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"wrote {args.folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
