"""What each axis of a grid does: main effects and two-way interactions by least squares on run-level values.

Grids are unbalanced: an effect that the runs there are cannot tell from others is said to be so, with the combinations
of levels that no run has.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from klsweep.analysis.paired import holm

SMALL = 1e-8
DIGITS = 10
MOST_CONTRASTS = 40


@dataclass(frozen=True)
class Observation:
    """A run's value, and its level on every axis."""

    levels: Mapping[str, str]
    seed: int
    value: float


class Effect(NamedTuple):
    """A contrast of levels with its interval.

    `levels` rather than `references`: of one axis for a main effect; of two for an interaction, which is how much more
    the one level does at the other level than at its reference. `adjusted`: p by Holm over all effects. `mean` is None
    if the runs cannot tell it, `ci_low` and what follows None if there is nothing to judge its error by, `p` too where
    values do not spread at all.
    """

    axes: tuple[str, ...]
    levels: tuple[str, ...]
    references: tuple[str, ...]
    mean: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    freedom: float | None = None
    p: float | None = None
    adjusted: float | None = None


@dataclass(frozen=True)
class Effects:
    """Effects over `runs` runs. `missing`: pairs of levels that no run has, as (axis, level, axis, level).

    `blocked`: seeds are a block, so what the runs of a seed have in common is no error. `skipped`: pairs of axes with
    more than MOST_CONTRASTS interactions, which nobody would read.
    """

    main: list[Effect]
    interactions: list[Effect]
    missing: list[tuple[str, str, str, str]]
    runs: int
    blocked: bool
    skipped: list[tuple[str, str]] = field(default_factory=list)


def effects(
    observations: Sequence[Observation], references: Mapping[str, str] | None = None, confidence: float = 0.95
) -> Effects:
    """Main effects in a model without interactions; the interaction of each two axes in one with that besides.

    y = μ + Σ_axes a_level (+ seed) + ε, and the same + (ab)_levels. Axes with one level have no effect. `references`
    names the level of an axis that others are held against; by default the first to appear.

    Error: the heteroscedasticity-consistent HC2, V = Σ_i a_i² e_i²/(1 − h_i) for a contrast Σ a_i y_i, with the degrees
    of freedom ν = (tr GM)² / tr GMGM, G = diag(a_i²/(1 − h_i)), M = I − H. Two levels, seeds as blocks: the paired t
    test; without, Welch's V. A run that alone decides a contrast leaves it without an interval, and so does a
    grid of one seed. Source: Bell and McCaffrey 2002, "Bias reduction in standard errors for linear regression".
    """
    axes = _levels(observations, references or {})
    if not axes:
        return Effects([], [], [], len(observations), blocked=False)
    y = np.array([o.value for o in observations], float)  # [N]
    additive = _design(observations, axes, [])
    blocks = _blocks(observations, additive)
    repeated = len({tuple(o.levels[axis] for axis in axes) for o in observations}) < len(observations)
    main = _Fit(additive, blocks, y, confidence, repeated)
    found = []
    for axis, (reference, *others) in axes.items():
        found += [main.effect((axis,), (level,), (reference,)) for level in others]
    pairs, missing, skipped = list[Effect](), list[tuple[str, str, str, str]](), list[tuple[str, str]]()
    for first, second in combinations(axes, 2):
        there = {(o.levels[first], o.levels[second]) for o in observations}
        if (len(axes[first]) - 1) * (len(axes[second]) - 1) > MOST_CONTRASTS:
            skipped.append((first, second))
            continue
        missing += [(first, a, second, b) for a, b in product(axes[first], axes[second]) if (a, b) not in there]
        fit = _Fit(_design(observations, axes, [(first, second)]), blocks, y, confidence, repeated)
        for a, b in product(axes[first][1:], axes[second][1:]):
            pairs.append(fit.effect((first, second), (a, b), (axes[first][0], axes[second][0])))
    adjusted = holm([effect.p for effect in (*found, *pairs)])
    all_effects = [e._replace(adjusted=p) for e, p in zip((*found, *pairs), adjusted, strict=True)]
    return Effects(all_effects[: len(found)], all_effects[len(found) :], missing, len(y), blocks.shape[1] > 0, skipped)


def _levels(observations: Sequence[Observation], references: Mapping[str, str]) -> dict[str, list[str]]:
    """The levels of each axis that has several, its reference first."""
    axes = {}
    for axis in observations[0].levels if observations else ():
        levels = list(dict.fromkeys(o.levels[axis] for o in observations))
        levels.sort(key=lambda level, axis=axis: level != references.get(axis))
        if len(levels) > 1:
            axes[axis] = levels
    return axes


Term = tuple[tuple[str, str], ...]  # the levels whose indicator a column is


def _design(
    observations: Sequence[Observation], axes: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]]
) -> dict[Term, np.ndarray]:
    """Columns of indicators [N]: 1, each level but the references, and products of levels for `pairs` of axes."""
    columns: dict[Term, np.ndarray] = {(): np.ones(len(observations))}
    for axis, levels in axes.items():
        for level in levels[1:]:
            columns[((axis, level),)] = np.array([o.levels[axis] == level for o in observations], float)
    for first, second in pairs:
        for a, b in product(axes[first][1:], axes[second][1:]):
            columns[(first, a), (second, b)] = columns[((first, a),)] * columns[((second, b),)]
    return columns


def _blocks(observations: Sequence[Observation], design: Mapping[Term, np.ndarray]) -> np.ndarray:
    """Indicators of all seeds but one [N, S − 1]; none if seeds cannot be told from the axes."""
    seeds = sorted({o.seed for o in observations})
    blocks = np.array([[o.seed == seed for seed in seeds[1:]] for o in observations], float).reshape(
        len(observations), max(0, len(seeds) - 1)
    )
    plain = np.column_stack(list(design.values()))
    both = np.column_stack([plain, blocks])
    gained = np.linalg.matrix_rank(both) - np.linalg.matrix_rank(plain) if blocks.size else 0
    return blocks if gained == blocks.shape[1] else blocks[:, :0]


class _Fit:
    """Least squares of y on indicators and blocks, by way of the singular values of the design."""

    def __init__(
        self, design: Mapping[Term, np.ndarray], blocks: np.ndarray, y: np.ndarray, confidence: float, repeated: bool
    ) -> None:
        self._terms = list(design)
        x = np.column_stack([*design.values(), blocks])
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        kept = s > SMALL * s[0]
        self._basis, self._right, self._scale = u[:, kept], vt[kept], s[kept]  # [N, r], [r, P], [r]
        self._leverage = (self._basis**2).sum(1)
        self._y, self._residual = y, y - self._basis @ (self._basis.T @ y)
        largest = float(np.abs(y).max())
        self._rounding = SMALL * largest  # what is smaller is zero
        self._decimals = DIGITS - (math.floor(math.log10(largest)) if largest > 0 else 0)
        self._confidence, self._has_error = confidence, repeated

    def effect(self, axes: tuple[str, ...], levels: tuple[str, ...], references: tuple[str, ...]) -> Effect:
        """The coefficient of a term: the contrast of its level with the reference, or of two such contrasts."""
        wanted = np.zeros(self._right.shape[1])
        wanted[self._terms.index(tuple(zip(axes, levels, strict=True)))] = 1.0
        inside = self._right @ wanted
        if np.linalg.norm(self._right.T @ inside - wanted) > SMALL**0.5:
            return Effect(axes, levels, references, None)
        weights = self._basis @ (inside / self._scale)  # [N]: the contrast is weights · y
        mean = self._rounded(float(weights @ self._y))
        mean = 0.0 if abs(mean) < self._rounding else mean
        spread = self._spread(weights)
        if spread is None:
            return Effect(axes, levels, references, mean)
        error, freedom = self._rounded(spread[0]), round(spread[1], DIGITS)
        error = 0.0 if error < self._rounding else error
        half = float(stdtrit(freedom, 0.5 + self._confidence / 2)) * error
        p = float(2 * stdtr(freedom, -abs(mean) / error)) if error > 0 else None
        return Effect(axes, levels, references, mean, mean - half, mean + half, freedom, p)

    def _rounded(self, value: float) -> float:
        """To DIGITS decimals of the largest value: LAPACK's last digits depend on the processor, tables must not."""
        return round(value, self._decimals)

    def _spread(self, weights: np.ndarray) -> tuple[float, float] | None:
        """Standard error and degrees of freedom of a contrast, None if nothing is left to judge them by."""
        free = 1 - self._leverage
        if not self._has_error or (np.abs(weights[free < SMALL]) > SMALL).any():
            return None
        squares = np.where(free < SMALL, 0.0, weights**2 / np.maximum(free, SMALL))
        variance = float(squares @ self._residual**2)
        middle = self._basis.T @ (squares[:, None] * self._basis)  # [r, r]
        norm = float(squares**2 @ (1 - 2 * self._leverage) + (middle**2).sum())
        return (variance**0.5, float(squares @ free) ** 2 / norm) if norm > 0 else None
