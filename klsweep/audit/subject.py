"""Which real policy to audit: a run's last checkpoint, or a model and a reference by path; and its samples."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from klsweep.audit.transformer import Subject, check_memory
from klsweep.config.build import Builder, RunSpec
from klsweep.errors import BadInput
from klsweep.model.masters import Masters
from klsweep.model.policy import load_policy, states
from klsweep.record.folder import RunFolder
from klsweep.rollout.random import Stream, uniforms
from klsweep.training.checkpoint import newest_sound
from klsweep.training.collect import longest_sequence
from klsweep.training.shards import load_weights

SAMPLES = 4  # per prompt


def of_run(path: Path, batches: int, prompts: int, seed: int) -> Subject:
    """The policy of a run folder's newest checkpoint, against the base it started from. BadInput if there is none.

    Its samples are the policy's own, without the top-p truncation that the run may have sampled with.
    """
    folder = RunFolder(path)
    if not folder.config.exists():
        raise BadInput(f"--run={str(path)!r}: no run folder (one holds config.yaml)")
    spec = Builder().run_spec(yaml.safe_load(folder.config.read_text()))
    checkpoint = newest_sound(folder)
    if checkpoint is None:
        raise BadInput(f"--run={str(path)!r}: no checkpoint in it")
    return _subject(spec, spec, checkpoint, batches, prompts, seed)


def of_models(spec: RunSpec, reference: str, batches: int, prompts: int, seed: int) -> Subject:
    """`spec`'s model against another one of the same tokenizer."""
    base = dataclasses.replace(spec, model=dataclasses.replace(spec.model, path=reference, revision=None))
    base.model.content()
    return _subject(spec, base, None, batches, prompts, seed)


def _subject(spec: RunSpec, base: RunSpec, checkpoint: Path | None, batches: int, prompts: int, seed: int) -> Subject:
    policy = load_policy(spec.model)
    policy = policy.adapted(policy.network, spec.adapter, spec.root.seed)
    network, reference = policy.network, load_policy(base.model)
    sizes = network.config.vocab_size, reference.network.config.vocab_size
    if sizes[0] != sizes[1]:
        raise BadInput(f"--reference: its vocabulary has {sizes[1]} entries, the model's {sizes[0]}")
    if checkpoint is not None:
        load_weights(checkpoint, Masters(network))
    check_memory(network, batches)
    sampler = spec.rollout.bind(policy, longest_sequence(spec, policy))
    items = spec.task.train_items()
    drawn = []
    for index in range(batches):
        order = np.random.default_rng([seed, index]).integers(0, len(items), prompts)  # with replacement: independent
        draws = uniforms(seed, Stream.AUDIT, index, range(prompts), SAMPLES, spec.task.max_response_tokens)
        texts = [items[p].prompt for p in order]
        drawn.append(sampler.generate(policy.encode(texts), SAMPLES, draws, spec.rollout.temperature, 1.0).tokens)
    longest = spec.task.max_response_tokens
    return Subject(policy, partial(states, reference), spec.rollout.temperature, longest, drawn)
