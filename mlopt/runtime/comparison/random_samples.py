"""Random inputs to compare models on, drawn as the model describes them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlopt.errors import InputError
from mlopt.runtime.comparison.indices import lengths_of_tables
from mlopt.runtime.features.arrays import ArrayFeature
from mlopt.runtime.features.described import PlainFeature
from mlopt.runtime.features.images import ImageFeature
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program

_OTHER_INTEGERS = 2
"""Upper end (excluded) of integers that index nothing: flags and masks."""

_SEEDS = 1 << 64
"""Number of seeds that torch accepts."""


def random_samples(model: Program | Pipeline, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw inputs at their default shapes, the same for the same seed.

    Floats are normal, images uniform. An input that looks up rows of a table is a whole number
    below its length, other integers are 0 or 1. Optional numbers and strings are left out.
    """
    try:
        count = operator.index(count)
    except TypeError:
        raise InputError(
            f"the number of samples to draw must be an integer, got {count!r}"
        ) from None
    if count < 1:
        raise InputError(f"at least one sample must be drawn, got {count}")
    random = np.random.default_rng(checked_seed(seed))
    limits = lengths_of_tables(model)
    return [
        {
            name: _drawn(feature, random, limits)
            for name, feature in model.inputs.items()
            # an optional number, such as a threshold, has a meaning of its own
            if not (isinstance(feature, PlainFeature) and feature.is_optional)
        }
        for _ in range(count)
    ]


def checked_seed(seed: int) -> int:
    """Return a seed that both numpy and torch accept; InputError for another."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < _SEEDS:
        raise InputError(f"seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
    return number


def _drawn(feature: Any, random: np.random.Generator, limits: Mapping[str, int]) -> Any:
    if isinstance(feature, ImageFeature):
        shape = (1, feature.channels, feature.height, feature.width)
        return random.integers(0, 256, shape).astype(np.float32)
    if not isinstance(feature, ArrayFeature):
        return "" if feature.kind == "stringType" else 0
    if np.dtype(feature.dtype).kind in "iu" or feature.name in limits:
        limit = min(limits.get(feature.name, _OTHER_INTEGERS), _whole_numbers(feature.dtype))
        return random.integers(0, limit, feature.shape).astype(feature.dtype)
    return random.standard_normal(feature.shape).astype(feature.dtype)


def _whole_numbers(dtype: Any) -> int:
    """Return the end of the integers from 0 on that a dtype holds exactly."""
    if np.dtype(dtype).kind == "f":
        return int(1 << (np.finfo(dtype).nmant + 1)) + 1
    return int(np.iinfo(dtype).max) + 1
