"""Checks of a weight's dtype, size and values, before it is palettized."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.errors import ConfigError
from mlopt.palette.scalar.distinct import is_coded
from mlopt.palette.value.palettized import INTEGER_TABLE_DTYPES, TABLE_DTYPES

Floats = npt.NDArray[Any]


def check_dtype_and_size(weight: Floats) -> None:
    """Check that a weight has a dtype that a palette can have, and is not empty.

    Raises
    ------
    ConfigError
        The dtype is not one of those, or there are no elements.
    """
    allowed = TABLE_DTYPES + INTEGER_TABLE_DTYPES
    if weight.dtype.name not in allowed:
        raise ConfigError(f"a weight to palettize must be one of {allowed}, got {weight.dtype}")
    if weight.ndim < 1 or not weight.size:
        raise ConfigError(f"a weight to palettize must not be empty, got shape {weight.shape}")


def check_finite(weight: Floats) -> None:
    """Check that a weight has no infinity and no NaN.

    Raises
    ------
    ConfigError
        It has one.
    """
    if not is_finite(weight):
        raise ConfigError(
            f"a weight to palettize must be finite; one of shape {weight.shape} has an infinity "
            "or a NaN; leave it as it is"
        )


def is_finite(weight: Floats) -> bool:
    """Whether all elements are finite. Reads the weight once, copies nothing."""
    if is_coded(weight.dtype):
        exponent = np.uint16(0x7C00 if weight.dtype == np.float16 else 0x7F80)
        codes = np.ascontiguousarray(weight).reshape(-1).view(np.uint16)
        return not _has_exponent(codes, exponent)
    # min and max propagate NaN, and an infinity is one of the two
    return bool(np.isfinite(weight.min()) and np.isfinite(weight.max()))


@njit(cache=True, nogil=True)
def _has_exponent(codes, exponent):  # type: ignore[no-untyped-def]
    """Whether any code has all bits of ``exponent`` set; no early exit, so that it vectorizes."""
    is_there = False
    for i in range(codes.size):
        is_there |= (codes[i] & exponent) == exponent
    return is_there
