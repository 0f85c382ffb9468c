"""k-means of many rows, each with a table of its own: every scalar palette except whole large ones.

A row is a group of channels, or the whole tensor. Rows are independent; threads take spans of them.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.scalar.distinct import is_coded, value_of_key
from mlopt.palette.scalar.row_kernels import (
    Coded,
    Ordered,
    RowOutput,
    Wanted,
    cluster_code_rows,
    cluster_float_rows,
    cluster_weighted_code_rows,
    rows_of,
)
from mlopt.palette.scalar.stored import rounding_of
from mlopt.threads import for_each

_ROWS_OF_WORK = 1 << 19
"""Elements that a thread takes at a time."""


@attrs.frozen(eq=False)
class RowTables:
    """Tables and labels of ``G`` rows of ``n`` elements.

    tables: float64[G, 2**nbits], ascending, storable in the weight's dtype; labels: uint8[G, n];
    noise, signal: the rows' sums of squared errors and squared elements (float64), weighted by
    importance; gap: how much the noise may be above the least, 0.0 where it is proven the least.
    """

    tables: npt.NDArray[np.float64]
    labels: npt.NDArray[np.uint8]
    noise: float
    signal: float
    gap: float = 0.0


def cluster_rows(
    rows: npt.NDArray[Any],
    nbits: int,
    *,
    table_dtype: np.dtype[Any],
    importance: npt.NDArray[Any] | None = None,
    uniform: bool = False,
    points: npt.NDArray[np.float64] | None = None,
    workers: int = 1,
) -> RowTables:
    """Cluster each row into an optimal table of ``2**nbits`` entries.

    Parameters
    ----------
    rows
        [G, n], C-contiguous, finite; float16 or bfloat16 (clustered through their codes), float32
        or float64.
    nbits
        Bits per index. A row of fewer distinct values is stored without loss, its table padded by
        repeating the last entry.
    table_dtype
        What the tables are stored in.
    importance
        [G, n], not negative, may be a broadcast view; None for 1. Summed in float64. A row without
        any importance is treated as uniformly important.
    uniform
        Make equal steps from the smallest to the largest value instead of optimal tables; for
        float16 and bfloat16 without importance.
    points
        float64[G, m], or [1, m] for all rows, each row distinct and ascending: the numbers that
        entries may be. The tables are the best choice of these, see
        :mod:`mlopt.palette.scalar.lattice`. None: any number that ``table_dtype`` can store.
    workers
        Threads. The result does not depend on it.
    """
    row_count, n = rows.shape
    out = RowOutput(
        tables=np.empty((row_count, 1 << nbits)),
        labels=np.empty((row_count, n), np.uint8),
        noise=np.empty(row_count),
        signal=np.empty(row_count),
        gap=np.zeros(row_count),
    )
    rounding = rounding_of(table_dtype.name)
    rows = _read_only(rows)
    choice = None if points is None else np.ascontiguousarray(points, np.float64)
    wanted = Wanted(1 << nbits, uniform, rounding)

    def cluster(span: slice) -> None:
        part = rows_of(out, span)
        some = choice if choice is None or len(choice) == 1 else choice[span]
        if is_coded(rows.dtype) and (importance is None or n >= 1 << 16):
            coded = Coded(rows[span].view(np.uint16), value_of_key(rows.dtype.name))
            if importance is None:
                cluster_code_rows(coded, wanted, some, part)
                return
            weights = _read_only(np.ascontiguousarray(importance[span], np.float64))
            cluster_weighted_code_rows(coded, weights, wanted, some, part)
            return
        values = _read_only(rows[span].astype(np.float32)) if is_coded(rows.dtype) else rows[span]
        if importance is None:
            ordered, weights = np.sort(values, axis=1), np.empty((len(values), 0))
        else:
            order = np.argsort(values, axis=1, kind="stable")
            ordered = np.take_along_axis(values, order, axis=1)
            weights = np.take_along_axis(
                np.broadcast_to(importance[span], values.shape), order, axis=1
            ).astype(np.float64, copy=False)
        cluster_float_rows(values, Ordered(ordered, weights), wanted, some, part)

    step = max(1, min(_ROWS_OF_WORK // max(n, 1), math.ceil(row_count / max(workers, 1))))
    spans = [slice(first, first + step) for first in range(0, row_count, step)]
    list(for_each(spans, cluster, workers if len(spans) > 1 else 1))
    return RowTables(out.tables, out.labels, _total(out.noise), _total(out.signal), _total(out.gap))


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only view: kernels are compiled for read-only arrays only."""
    view = array.view()
    view.flags.writeable = False
    return view


def _total(parts: npt.NDArray[np.float64]) -> float:
    """Return a sum in a fixed order: numpy's own varies with the width of the machine's vectors."""
    return float(np.cumsum(parts)[-1]) if parts.size else 0.0
