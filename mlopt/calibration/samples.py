"""Samples: which of those that are given are run, and how they are told apart."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
from torch import Tensor

from mlopt.errors import ConfigError, InputError

_WANTED = "samples must be dictionaries of inputs by name, as for predict"


def numbered_samples(
    samples: Any, part: tuple[int, int] | None
) -> tuple[Iterator[tuple[int, Any]], int | None]:
    """Return samples with their numbers from 0, and how many there are, if that is known.

    samples: an iterable of them, or a single one; part: (i, n) takes every n-th, from the i-th on.

    Raises
    ------
    ConfigError
        ``part`` is not one of n parts.
    InputError
        ``samples`` cannot be iterated.
    """
    first, every = (1, 1) if part is None else part
    if not 1 <= first <= every:
        raise ConfigError(f"part must be (i, n) with i from 1 to n, got {part}")
    if isinstance(samples, Mapping):
        samples = [samples]
    try:
        iterator = enumerate(samples)
    except TypeError:
        raise InputError(f"{_WANTED}; got {type(samples).__name__}") from None
    total = len(range(first - 1, len(samples), every)) if isinstance(samples, Sized) else None
    return itertools.islice(iterator, first - 1, None, every), total


def check_sample(sample: Any, number: int) -> None:
    """Refuse a sample that is not a dictionary, with an InputError."""
    if not isinstance(sample, Mapping):
        raise InputError(f"{_WANTED}; sample {number} is {type(sample).__name__}")


def digest_after(digest: bytes, sample: Mapping[str, Any]) -> bytes:
    """Return the digest, 32 bytes, of samples and one more."""
    hashed = hashlib.blake2b(digest, digest_size=32)
    for name in sorted(sample, key=str):
        given = sample[name]
        value = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        hashed.update(f"{name} {value.dtype} {value.shape} ".encode())
        content = repr(value.tolist()).encode() if value.dtype.kind in "OUS" else value.tobytes()
        hashed.update(content)
    return hashed.digest()
