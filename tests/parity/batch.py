"""One recorded batch: prompts, sampled tokens and rewards, and the three policies that score them."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from klsweep.model.policy import Policy, Scores, load_base, score, states
from klsweep.rollout.engine import Generation
from klsweep.rollout.hf import HF
from klsweep.rollout.random import Stream, uniforms
from klsweep.training.collect import repeated
from tests.conftest import small_spec

GROUP, TEMPERATURE = 4, 0.8
LENGTH = 5  # some of the responses are longer, and cut
KEEP = ("add", "reverse", "sort")  # prompts of different lengths


@dataclass(frozen=True)
class Batch:
    """`folder` holds what the libraries read; the rest is the same for klsweep.

    The reference is the shipped base, `old` a policy near it, from which the tokens were sampled, and `new` one a step
    further.
    """

    folder: Path
    base: Policy
    old: Policy
    new: Policy
    generation: Generation
    rewards: torch.Tensor
    scores: Scores


def record(folder: Path) -> Batch:
    """Sample and grade three prompts of each of three tasks, and write everything to `folder`."""
    tasks = [small_spec(f"task={name}").task for name in KEEP]
    asked = [(task, item) for task in tasks for item in task.train_items()[:3]]
    base = load_base(small_spec().model)
    old = _moved(base, 0.015, seed=1)
    new = _moved(old, 0.01, seed=2)
    prompts = old.encode([item.prompt for _, item in asked])
    draws = uniforms(0, Stream.ROLLOUT, 1, range(len(prompts)), GROUP, LENGTH)
    generation = (
        HF(temperature=TEMPERATURE, top_p=1.0, batch_size=64, ignore_stop=False)
        .bind(old, 64)
        .generate(prompts, GROUP, draws, TEMPERATURE, 1.0)
    )
    answers = zip(repeated(asked, GROUP), old.decode(generation.tokens.response_ids), strict=True)
    rewards = torch.tensor([float(task.grade(item, text).correct) for (task, item), text in answers])
    scores = score(old, partial(states, base), generation.tokens, TEMPERATURE, 64)
    for name, policy in {"base": base, "old": old, "new": new}.items():
        policy.network.save_pretrained(folder / name)
        policy.tokenizer.save_pretrained(folder / name)
    lengths = generation.tokens.lengths.int().tolist()
    rows = zip(generation.tokens.response_ids.tolist(), lengths, strict=True)
    (folder / "batch.json").write_text(
        json.dumps(
            {
                "group": GROUP,
                "temperature": TEMPERATURE,
                "length": LENGTH,
                "prompts": [item.prompt for _, item in repeated(asked, GROUP)],
                "completions": [ids[:length] for ids, length in rows],
                "rewards": rewards.tolist(),
            }
        )
    )
    return Batch(folder, base, old, new, generation, rewards, scores)


def _moved(policy: Policy, scale: float, seed: int) -> Policy:
    """The same policy with Gaussian noise of standard deviation `scale` on every weight."""
    moved, generator = policy.trainable_copy(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moved.network.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return moved
