"""Tables in the form that the labelling kernels of mlopt take, and labels by them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from mlopt.palette.scalar.distinct import Distinct, is_coded, value_of_key
from mlopt.palette.scalar.labels import fill_middles, fill_thresholds, label_codes, label_floats


@dataclass(frozen=True)
class KnownTables:
    """``ends`` [groups, entries - 1]: of 16-bit codes uint32 thresholds, else float64 midpoints."""

    ends: np.ndarray

    @property
    def groups(self) -> int:
        return len(self.ends)

    def labels(self, rows: np.ndarray, groups: slice) -> np.ndarray:
        """Labels uint8[G, n] of rows [G, n], C-contiguous, of these groups: nearest entries."""
        labels = np.empty(rows.shape, np.uint8)
        if self.ends.dtype == np.uint32:
            _label_rows_of_codes(rows.view(np.uint16), self.ends[groups], labels)
        else:
            _label_rows_of_floats(rows, self.ends[groups], labels)
        return labels


def known_tables(tables: np.ndarray, *, coded: bool) -> KnownTables:
    """Of ascending tables [groups, entries]; ``coded``: 16-bit floats are labelled by codes."""
    wide = tables.astype(np.float64)
    if coded and is_coded(tables.dtype):
        value_of = value_of_key(tables.dtype.name)
        thresholds = np.empty((len(tables), tables.shape[1] - 1), np.uint32)
        for table, row in zip(wide, thresholds, strict=True):
            fill_thresholds(_every_value(tables.dtype.name), value_of, table, row)
        return KnownTables(thresholds)
    middles = np.empty((len(tables), tables.shape[1] - 1))
    for table, ends in zip(wide, middles, strict=True):
        fill_middles(table, ends)
    return KnownTables(middles)


@cache
def _every_value(dtype_name: str) -> Distinct:
    """All finite values of a 16-bit format, with the lowest key of each."""
    value_of = value_of_key(dtype_name)
    finite = np.flatnonzero(np.isfinite(value_of))
    values, first = np.unique(value_of[finite], return_index=True)
    return Distinct(values, np.ones(len(values)), finite[first].astype(np.uint16))


# Not cached: a cached kernel would not notice that one of mlopt's, compiled into it, has changed.
@njit(nogil=True)
def _label_rows_of_codes(codes, thresholds, labels):  # type: ignore[no-untyped-def]
    for row in range(len(codes)):
        label_codes(codes[row], thresholds[row], labels[row])


@njit(nogil=True)
def _label_rows_of_floats(rows, middles, labels):  # type: ignore[no-untyped-def]
    for row in range(len(rows)):
        label_floats(rows[row], middles[row], labels[row])
