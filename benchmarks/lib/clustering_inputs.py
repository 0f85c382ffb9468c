"""Weights of many kinds, as they occur: each a function of a generator and a shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
COLUMNS = 1024
BLOCK = 32
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
LARGEST = 6e4
"""Every dtype holds it; heavier tails are cut there."""


@dataclass(frozen=True)
class Kind:
    """What the weights are, and how they are made: ``make(rng, (rows, columns))``."""

    what: str
    make: Callable[[np.random.Generator, tuple[int, int]], Floats]
    decades: int = 0
    """Of importance; 0: all weights matter alike."""


def _gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.standard_normal(shape, np.float32) * np.float32(0.02)


def _lattice(bits: int) -> Callable[[np.random.Generator, tuple[int, int]], Floats]:
    """Codes times a float16 step for each block of 32, the rows of different size."""

    def make(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        most = (1 << (bits - 1)) - 1
        x = _gaussian(rng, shape) * np.exp(rng.normal(0, 0.4, (shape[0], 1))).astype(np.float32)
        blocks = x.reshape(shape[0], -1, BLOCK)
        step = np.abs(blocks).max(-1, keepdims=True) / np.float32(most)
        step = step.astype(np.float16).astype(np.float32)
        return np.asarray((np.round(blocks / step) * step).reshape(shape))

    return make


def _ties(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Gaussian, but half of the weights take one of three values."""
    atoms = np.array([0.0, 0.01, -0.03], np.float32)[rng.integers(0, 3, shape)]
    return np.where(rng.random(shape, np.float32) < 0.5, atoms, _gaussian(rng, shape))


def _bimodal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    sides = np.where(rng.random(shape, np.float32) < 0.4, np.float32(0.5), np.float32(-0.5))
    return np.asarray(sides + _gaussian(rng, shape))


def _two_scales(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """One row in a hundred is a thousand times larger than the others."""
    large = np.where(rng.random((shape[0], 1)) < 0.01, 1000, 1).astype(np.float32)
    return np.asarray(_gaussian(rng, shape) * large)


def _single(numbers: npt.NDArray[np.float64], factor: float = 0.02) -> Floats:
    return np.clip(numbers * factor, -LARGEST, LARGEST).astype(np.float32)


KINDS = {
    "gaussian": Kind("standard deviation 0.02; what the others are compared with", _gaussian),
    "laplace": Kind("Laplace", lambda rng, shape: _single(rng.laplace(size=shape))),
    "student": Kind("Student's t, 3 degrees", lambda rng, shape: _single(rng.standard_t(3, shape))),
    "cauchy": Kind("Cauchy", lambda rng, shape: _single(rng.standard_cauchy(shape))),
    "two-scales": Kind("one row in a hundred 1000 times the others", _two_scales),
    "bimodal": Kind("two narrow bells far apart", _bimodal),
    "lattice8": Kind("dequantized from 8-bit blocks of 32", _lattice(8)),
    "lattice4": Kind("dequantized from 4-bit blocks of 32", _lattice(4)),
    "decimals": Kind("rounded to 3 decimals", lambda r, s: np.round(_gaussian(r, s), 3)),
    "few": Kind("300 values", lambda r, s: (r.integers(-150, 150, s) * 1e-3).astype(np.float32)),
    "ties": Kind("Gaussian, half of it at three values", _ties),
    "importance": Kind("Gaussian, importance over 12 decades", _gaussian, decades=12),
}


def make_input(
    kind: str, dtype: str, n: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64] | None]:
    """About ``n`` weights [rows, 1024], and their importance or None; the same in every run."""
    rng = np.random.default_rng(list(KINDS).index(kind))
    made = KINDS[kind]
    shape = (max(1, n // COLUMNS), COLUMNS)
    # part by part: some generators need eight bytes and more a weight
    weight = np.empty(shape, DTYPES[dtype])
    step = 1 << 12
    for first in range(0, shape[0], step):
        part = weight[first : first + step]
        part[...] = made.make(rng, part.shape).astype(DTYPES[dtype])
    if not made.decades:
        return weight, None
    return weight, 10.0 ** rng.uniform(-made.decades, 0, shape)
