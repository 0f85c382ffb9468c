"""Samples that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlopt.errors import InputError


def checked_samples(samples: Any) -> list[Mapping[str, Any]]:
    """Return samples as a list: a dictionary is one sample."""
    wanted = "samples must be a list of dictionaries of inputs by name, as for predict"
    if isinstance(samples, Mapping):
        return [samples]
    try:
        given = list(samples)
    except TypeError:
        raise InputError(f"{wanted}; got {type(samples).__name__}") from None
    for number, sample in enumerate(given):
        if not isinstance(sample, Mapping):
            raise InputError(f"{wanted}; sample {number} is {type(sample).__name__}")
    return given
