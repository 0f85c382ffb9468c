"""One table for a whole large float weight, by zooming in: without sorting or copying it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.palette.scalar.cells import Part
from mlopt.palette.scalar.distinct import is_coded
from mlopt.palette.scalar.labels import fill_middles, label_floats
from mlopt.palette.scalar.lattice import choose_table_of_parts
from mlopt.palette.scalar.stored import rounding_of
from mlopt.palette.scalar.zoom import table_by_zooming
from mlopt.threads import for_each

Floats = npt.NDArray[Any]

_PART = 1 << 20
"""Elements that a pass takes at a time."""


def is_worth_zooming(weight: Floats, entries: int, *, weighted: bool = False) -> bool:
    """Whether zooming beats sorting for this many centres.

    The more centres, the fewer values are far from a bound: with 256 centres it pays where memory
    is scarce, as values that are sorted may turn out to be few distinct ones. Sorting takes twice
    as long where the values are weighted by importance.
    """
    if is_coded(weight.dtype):
        return False
    enough = (entries << 11) >> weighted if entries <= 64 else 1 << 23
    return weight.size >= max(1 << 14, enough)


def cluster_whole(
    weight: Floats,
    nbits: int,
    *,
    table_dtype: np.dtype[Any],
    importance: npt.NDArray[np.float64] | None = None,
    points: npt.NDArray[np.float64] | None = None,
    workers: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8], float] | None:
    """Return the best table of ``2**nbits`` entries for a whole weight, and its labels.

    Parameters
    ----------
    weight
        float32 or float64, of any shape, C-contiguous, finite.
    table_dtype
        The dtype in which the table is stored.
    importance
        float64 of the weight's shape, not negative (that of whole rows is not expanded); None for
        1.
    points
        float64[m], distinct and ascending: the numbers that entries may be. None: any number that
        ``table_dtype`` can store.
    workers
        Threads. The result does not depend on it.

    Returns
    -------
    (float64[2**nbits] ascending, uint8 of the weight's shape, how much the error may be above the
    least as a share of it), or None where the values are not suited: see
    :func:`mlopt.palette.scalar.zoom.table_by_zooming`.
    """
    step = max(1, _PART // max(1, weight.size // weight.shape[0]))
    spans = [slice(first, first + step) for first in range(0, weight.shape[0], step)]

    masses = np.empty(0)
    if importance is not None:
        masses = importance
        if not any(importance.strides[1:]):
            masses = importance[(slice(None),) + (0,) * (importance.ndim - 1)]

    def parts() -> Iterator[Part]:
        for span in spans:
            important = np.ascontiguousarray(masses[span], np.float64).reshape(-1)
            yield weight[span].reshape(-1), important

    if points is None:
        zoomed = table_by_zooming(parts, 1 << nbits, rounding_of(table_dtype.name), workers)
        if zoomed is None:
            return None
        table = zoomed.table
        within = zoomed.gap / zoomed.plain if zoomed.gap > 0.0 else 0.0
    else:
        chosen = choose_table_of_parts(parts, points, 1 << nbits)
        if chosen is None:
            return None
        table, within = chosen, 0.0
    middles = np.empty(table.size - 1)
    fill_middles(table, middles)
    labels = np.empty(weight.shape, np.uint8)

    def label(span: slice) -> None:
        label_floats(weight[span].reshape(-1), middles, labels[span].reshape(-1))

    list(for_each(spans, label, workers))
    return table, labels, within
