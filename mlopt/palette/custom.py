"""Custom mode: tables and indices from a function of the user's."""

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
    """Palettize a weight with the tables and indices that a function returns.

    ``lut_function(group) -> (table, indices)`` is called once for each group of channels, with the
    layout that coremltools passes: a read-only view of the weight in its own dtype, the channel
    axis swapped with axis 0, cut to the group's channels. It returns

    - table: numbers [m], or [m, cluster_dim]; a list or an array, 1 <= m <= 256;
    - indices: whole numbers below m, of any shape; for scalars one per element of ``group`` in
      C order; for vectors one per vector, in C order of ``[channels of a group // d, ...]``,
      the vectors being d consecutive elements along axis 0.

    Parameters
    ----------
    weight
        Of the layout's shape, float16, bfloat16, float32 or float64; or int8 or uint8, for which
        tables are rounded to integers.
    layout
        Its groups and vectors.
    allowed_nbits
        Widths that can be stored. All tables are padded, by repeating their last entry, to the
        smallest width that holds the longest of them.

    Returns
    -------
    Palettized, without a scale.

    Raises
    ------
    ConfigError
        What the function returned is not as above, or no allowed width holds it.
    Exception
        Any exception of the function, with a note on the weight (from Python 3.11 on).
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
    """Call the function, and return its pair of table and indices."""
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
            f"lut_function must return a pair (table, indices), got {got} for a weight of shape "
            f"{weight.shape}; return both"
        )
    return result[0], result[1]


def _checked_table(table: Any, d: int, dtype: np.dtype[Any], what: str) -> Floats:
    """Return the table as a finite [m, d] of the weight's dtype, or raise ``ConfigError``."""
    array = _as_array(table, what)
    allowed = "[m] or [m, 1]" if d == 1 else f"[m, {d}]"
    if array.ndim == 1 and d == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != d or not 1 <= len(array) <= 256:
        raise ConfigError(
            f"{what} must have the shape {allowed} with 1 <= m <= 256, got {np.shape(table)}; "
            "return one entry per row"
        )
    if dtype.kind in "iu":
        return _as_integers(array, dtype, what)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = array.astype(dtype)
    finite = np.isfinite(stored)
    if not finite.all():
        raise ConfigError(
            f"{what} must be finite in {dtype}, got {array[~finite][0]}; clip it to the range "
            "of the weight"
        )
    return stored


def _as_integers(table: Floats, dtype: np.dtype[Any], what: str) -> Floats:
    """Return the table rounded to integers, for a weight of integers."""
    bounds = np.iinfo(dtype)
    rounded = np.rint(table.astype(np.float64))
    # comparisons with NaN are false
    if not ((rounded >= bounds.min) & (rounded <= bounds.max)).all():
        raise ConfigError(
            f"{what} must be from {bounds.min} to {bounds.max} like the weight's {dtype}, got "
            f"{table.min()} to {table.max()}; clip it"
        )
    return rounded.astype(dtype)


def _checked_indices(indices: Any, *, count: int, entries: int, what: str) -> npt.NDArray[np.uint8]:
    """Return the indices as uint8[count], below ``entries``, or raise ``ConfigError``."""
    array = _as_array(indices, what)
    if array.size != count:
        raise ConfigError(
            f"{what} must be {count} in number, one per element or vector of the group, got "
            f"{array.size} (shape {array.shape}); return them in C order"
        )
    if array.dtype.kind not in "iu" and not np.array_equal(array, np.trunc(array)):
        raise ConfigError(f"{what} must be whole numbers, got {array.dtype}; round them")
    if array.size and (array.min() < 0 or array.max() >= entries):
        raise ConfigError(
            f"{what} must be from 0 to {entries - 1}, as the table has {entries} entries, got "
            f"{array.min()} to {array.max()}; correct them or extend the table"
        )
    return array.astype(np.uint8).reshape(-1)


def _as_array(values: Any, what: str) -> npt.NDArray[Any]:
    """Return a list or array of numbers as an array."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biufV":
            raise TypeError(f"elements of {array.dtype}")
        if array.dtype.kind == "V" and array.dtype.name != "bfloat16":
            raise TypeError(f"elements of {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} must be a list or an array of numbers, got {type(values).__name__} "
            f"({error}); convert it with numpy.asarray"
        ) from error
    return array
