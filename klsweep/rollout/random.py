"""Counter-based randomness: a draw depends on what it is for, never on what was drawn before.

Nothing needs to be saved to resume, and a sequence's tokens do not depend on its neighbours in a batch.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for; streams never overlap."""

    ROLLOUT = 1
    PROMPT_ORDER = 2
    EVALUATION = 3
    AUDIT = 4
    PROBE = 5
    PREFERENCES = 6
    LABELS = 7


def uniforms(seed: int, stream: Stream, update: int, prompts: Sequence[int], samples: int, length: int) -> np.ndarray:
    """One uniform in [0, 1) per token of each of `samples` responses to each prompt.

    Philox with key (seed, stream) and counter (·, update, prompt, sample); `prompts` are places in a batch or suite, so
    that a prompt that comes twice in a batch is answered anew. Returns ``[prompts × samples, length]``
    float64, a prompt's samples adjacent.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, update, prompt, sample])).random(
            length
        )
        for prompt in prompts
        for sample in range(samples)
    ]
    return np.stack(rows)


def draws(seed: int, stream: Stream, count: int) -> np.ndarray:
    """`count` uniforms in [0, 1) of a stream, float64."""
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)])).random(count)


def prompt_order(seed: int, update: int, count: int, pool: int) -> list[int]:
    """Which prompts update 1, 2, … trains on: seeded passes over the pool, each in an order of its own.

    Depends on the seed alone, so cells that share a seed see the same prompts. Returns `count` indices below `pool`.
    """
    first = (update - 1) * count
    chosen = []
    for position in range(first, first + count):
        epoch, place = divmod(position, pool)
        chosen.append(int(_permutation(seed, epoch, pool)[place]))
    return chosen


_permutations: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, pool: int) -> np.ndarray:
    key = (seed, epoch, pool)
    if key not in _permutations:
        philox = np.random.Philox(key=[seed, int(Stream.PROMPT_ORDER)], counter=[0, epoch, 0, 0])
        _permutations.clear()
        _permutations[key] = np.random.Generator(philox).permutation(pool)
    return _permutations[key]
