"""Custom mode: the user's function makes the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.errors import ConfigError
from mlopt.palette.layout import Layout
from mlopt.palette.scalar.unique import padded_nbits, padded_table
from mlopt.palette.value.palettized import Palettized

Floats = npt.NDArray[Any]
LutFunction = Callable[[Any], Any]


def custom_palette(
    weight: Floats,
    lut_function: LutFunction,
    layout: Layout,
    *,
    allowed_nbits: tuple[int, ...] = NBITS,
) -> Palettized:
    """Palettize a weight with the tables and indices of a function.

    ``lut_function(group) -> (table, indices)`` is called once for each group of channels, with the
    layout that coremltools passes: a read-only view of the weight in its own dtype, the channel
    axis swapped with axis 0, cut to the group's channels. It returns

    - table: numbers [m], or [m, cluster_dim]; a list or an array, 1 <= m <= 256;
    - indices: whole numbers below m, of any shape; for scalars one for each weight of ``group`` in
      C order; for vectors one for each vector, in C order of ``[channels of a group // d, ...]``,
      the vectors being d consecutive weights along axis 0.

    Parameters
    ----------
    weight
        Of the layout's shape, float16, bfloat16, float32 or float64; or int8 or uint8, for which
        tables are rounded to integers.
    layout
        Its groups and vectors.
    allowed_nbits
        Widths that can be stored. Tables are padded to the smallest one that holds the longest of
        them by repeating their last entries.

    Returns
    -------
    Palettized, without a scale.

    Raises
    ------
    ConfigError
        What the function returned is none of the above, or no allowed width holds it.
    Exception
        Whatever the function raises, with a note on the weight (from Python 3.11 on).
    """
    axis, d = layout.axis, layout.cluster_dim
    swapped = weight.swapaxes(0, axis)
    of_swapped = attrs.evolve(layout, shape=swapped.shape, axis=0)
    size = len(swapped) // layout.groups
    tables, labels = [], []
    for start in range(0, len(swapped), size):
        group = swapped[start : start + size]
        group.flags.writeable = False
        table, indices = _called(lut_function, group, weight)
        what = f"lut_function's {{}} for a weight of shape {weight.shape}"
        tables.append(_checked_table(table, d, weight.dtype, what.format("table")))
        labels.append(
            _checked_indices(
                indices,
                count=group.size // d,
                entries=len(tables[-1]),
                what=what.format("indices"),
            )
        )
    longest = max(map(len, tables))
    nbits = padded_nbits(longest, allowed_nbits)
    if nbits is None:
        raise ConfigError(
            f"a table of {longest} entries for a weight of shape {weight.shape} fits none of the "
            f"index widths {allowed_nbits} that can be stored; return fewer entries"
        )
    table = np.stack([padded_table(each, nbits) for each in tables])
    indices = of_swapped.indices(np.stack(labels)).swapaxes(0, axis)
    return Palettized(layout.table(table), np.ascontiguousarray(indices), layout.vector_axis)


def _called(lut_function: LutFunction, group: Floats, weight: Floats) -> tuple[Any, Any]:
    """What the function returns, which has to be a pair."""
    try:
        result = lut_function(group)
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                f"raised by lut_function for a group of shape {group.shape} of a weight of shape "
                f"{weight.shape}, {weight.dtype}"
            )
        raise
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        got = f"{len(result)} of them" if isinstance(result, (tuple, list)) else type(result)
        raise ConfigError(
            f"lut_function has to return a pair (table, indices), got {got} for a weight of shape "
            f"{weight.shape}; return both"
        )
    return result[0], result[1]


def _checked_table(table: Any, d: int, dtype: np.dtype[Any], what: str) -> Floats:
    """The table as finite [m, d] of the weight's dtype."""
    array = _as_array(table, what)
    allowed = "[m] or [m, 1]" if d == 1 else f"[m, {d}]"
    if array.ndim == 1 and d == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != d or not 1 <= len(array) <= 256:
        raise ConfigError(
            f"{what} has to have the shape {allowed} with 1 <= m <= 256, got {np.shape(table)}; "
            "return one entry a row"
        )
    if dtype.kind in "iu":
        return _as_integers(array, dtype, what)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = array.astype(dtype)
    finite = np.isfinite(stored)
    if not finite.all():
        raise ConfigError(
            f"{what} has to be finite in {dtype}, got {array[~finite][0]}; clip it to the range "
            "of the weight"
        )
    return stored


def _as_integers(table: Floats, dtype: np.dtype[Any], what: str) -> Floats:
    """A table for a weight of integers, rounded to them."""
    bounds = np.iinfo(dtype)
    rounded = np.rint(table.astype(np.float64))
    # NaN compares false
    if not ((rounded >= bounds.min) & (rounded <= bounds.max)).all():
        raise ConfigError(
            f"{what} has to be from {bounds.min} to {bounds.max} like the weight's {dtype}, got "
            f"{table.min()} to {table.max()}; clip it"
        )
    return rounded.astype(dtype)


def _checked_indices(indices: Any, *, count: int, entries: int, what: str) -> npt.NDArray[np.uint8]:
    """The indices as uint8[count], below ``entries``."""
    array = _as_array(indices, what)
    if array.size != count:
        raise ConfigError(
            f"{what} have to be {count}, one for each weight or vector of the group, got "
            f"{array.size} (shape {array.shape}); return them in C order"
        )
    if array.dtype.kind not in "iu" and not np.array_equal(array, np.trunc(array)):
        raise ConfigError(f"{what} have to be whole numbers, got {array.dtype}; round them")
    if array.size and (array.min() < 0 or array.max() >= entries):
        raise ConfigError(
            f"{what} have to be from 0 to {entries - 1}, as the table has {entries} entries, got "
            f"{array.min()} to {array.max()}; correct them or extend the table"
        )
    return array.astype(np.uint8).reshape(-1)


def _as_array(values: Any, what: str) -> npt.NDArray[Any]:
    """A list or array of numbers as an array."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biufV":
            raise TypeError(f"elements of {array.dtype}")
        if array.dtype.kind == "V" and array.dtype.name != "bfloat16":
            raise TypeError(f"elements of {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} has to be a list or an array of numbers, got {type(values).__name__} "
            f"({error}); convert it with numpy.asarray"
        ) from error
    return array
