"""What every result refuses, in one line each. A ValueError here is the user's to mend."""

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def check_delta(delta: float) -> None:
    """The bound may fail with probability δ, and confidence is 1 − δ."""
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: expected a number between 0 and 1, both excluded (confidence is 1 − delta)")


def check_count(name: str, value: int, least: int = 1) -> None:
    """A whole number of prompts, rollouts, …"""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value}: expected a whole number, at least {least}")


def check_positive(name: str, value: float) -> None:
    """A finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: expected a finite number above 0")


def check_not_negative(name: str, value: float) -> None:
    """A finite number, at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value}: expected a finite number, at least 0")


def finite_array(name: str, values: ArrayLike, dimensions: tuple[int, ...] = (1,)) -> Floats:
    """The values as float64. ValueError if they are none, not finite, or have another number of dimensions."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers in a rectangular array ({error})") from error
    if array.ndim not in dimensions:
        expected = " or ".join(map(str, dimensions))
        raise ValueError(f"{name}: expected {expected} dimensions, got shape {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name}: empty")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name}: {bad} of {array.size} values are not finite (NaN or infinite)")
    return array


def groups_of(name: str, values: Any) -> list[Floats]:
    """An array ``[n, K]``, or n sequences of different lengths, as n arrays."""
    if isinstance(values, np.ndarray):
        return list(finite_array(name, values, (2,)))
    if len(values) == 0:
        raise ValueError(f"{name}: empty")
    return [finite_array(f"{name}[{i}]", group) for i, group in enumerate(values)]
