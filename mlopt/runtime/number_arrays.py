"""Conversion of users' numbers to arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mlopt.errors import InputError


def array_of_numbers(value: Any, what: str) -> np.ndarray:
    """Return an array of booleans, integers or floats; ``what`` names it in messages.

    Raises
    ------
    InputError
        It cannot be an array, or holds no numbers.
    """
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} must be an array of numbers, got dtype {array.dtype}")
    return array
