"""Samples: which of those that are given are run, and how they are told apart."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.errors import ConfigError, InputError, RunError


class NoSamplesError(InputError):
    """No sample is given, or none is in the part of a process."""

    def __init__(self) -> None:
        super().__init__("there are no samples; give one or more, a few dozen are useful")


@contextlib.contextmanager
def errors_of_sample(number: int) -> Iterator[None]:
    """Have errors of inputs and of runs in the block say which sample they are about."""
    try:
        yield
    except (InputError, RunError) as error:
        raise type(error)(f"sample {number}: {error}") from error


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
    if isinstance(samples, Mapping | Tensor):
        samples = [samples]
    try:
        iterator = enumerate(samples)
    except TypeError:
        raise InputError(
            f"samples must be an iterable of samples, got {type(samples).__name__}; give a list"
        ) from None
    total = len(range(first - 1, len(samples), every)) if isinstance(samples, Sized) else None
    return itertools.islice(iterator, first - 1, None, every), total


def digest_after(digest: bytes, inputs: Mapping[Any, Any]) -> bytes:
    """Return the digest, 32 bytes, of samples and one more."""
    hashed = hashlib.blake2b(digest, digest_size=32)
    for name, value in _leaves(inputs):
        hashed.update(f"{name} {value.dtype} {value.shape} ".encode())
        content = repr(value.tolist()).encode() if value.dtype.kind in "OUS" else value.tobytes()
        hashed.update(content)
    return hashed.digest()


def mark_of(inputs: Mapping[Any, Any]) -> str:
    """Return what a sample is recognized by: the beginning of its digest, 8 digits."""
    return digest_after(b"", inputs)[:4].hex()


def _leaves(inputs: Mapping[Any, Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the arrays in inputs by name; modules may have tensors nested in lists and so on."""
    for name in sorted(inputs, key=str):
        given = inputs[name]
        if isinstance(given, Mapping) or _has_tensors(given):
            nested = given if isinstance(given, Mapping) else dict(enumerate(given))
            for inner, value in _leaves(nested):
                yield f"{name}.{inner}", value
            continue
        if isinstance(given, Tensor):
            given = given.detach().cpu()
            # which numpy does not know
            given = given.view(torch.int16) if given.dtype is torch.bfloat16 else given
        yield str(name), np.asarray(given)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, tuple | list) and any(
        isinstance(each, Tensor | Mapping) or _has_tensors(each) for each in value
    )
