"""Kernels of :mod:`mlopt.palette.scalar.groups`: rows are clustered one after the other."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.distinct import (
    NEGLIGIBLE,
    Distinct,
    collapse_sorted,
    distinct_of_codes,
    first_of,
    join_value,
    weigh_keys,
)
from mlopt.palette.scalar.kmeans1d import first_penalty, solve
from mlopt.palette.scalar.labels import fill_middles, fill_thresholds, label_codes, label_floats
from mlopt.palette.scalar.lattice import Choice, fill_from_points
from mlopt.palette.scalar.segments import Scratch, fill_sums, make_scratch
from mlopt.palette.scalar.stored import (
    Rounding,
    refine_for_storage,
    round_to_stored,
    stored_table,
)

TOLERANCE = 1e-9
"""Share of the error up to which what rounding costs is not searched for."""


class Wanted(NamedTuple):
    """The tables to make.

    uniform: with equal steps instead of the best.
    """

    entries: int
    uniform: bool
    rounding: Rounding


class Coded(NamedTuple):
    """Rows of 16-bit codes: uint16[rows, n]; value_of: ``value_of_key`` of their dtype."""

    codes: npt.NDArray[np.uint16]
    value_of: npt.NDArray[np.float64]


class Ordered(NamedTuple):
    """Rows of ascending values [rows, n] with the importance of each; float64[rows, 0] for 1."""

    values: npt.NDArray[Any]
    importance: npt.NDArray[np.float64]


class RowOutput(NamedTuple):
    """Output arrays of all rows: see :class:`mlopt.palette.scalar.groups.RowTables`.

    tables: float64[rows, entries]; labels: uint8[rows, n]; noise, signal, gap: float64[rows].
    """

    tables: npt.NDArray[np.float64]
    labels: npt.NDArray[np.uint8]
    noise: npt.NDArray[np.float64]
    signal: npt.NDArray[np.float64]
    gap: npt.NDArray[np.float64]


def rows_of(out: RowOutput, span: slice) -> RowOutput:
    """Return some of the rows, in the same memory."""
    return RowOutput(
        out.tables[span], out.labels[span], out.noise[span], out.signal[span], out.gap[span]
    )


class _Work(NamedTuple):
    """Scratch arrays for rows of at most ``n`` distinct values, one row after the other.

    distinct: of n elements; sums: float64[3, n + 1].
    """

    distinct: Distinct
    sums: npt.NDArray[np.float64]
    scratch: Scratch


@njit(cache=True, nogil=True)
def _make_work(n):  # type: ignore[no-untyped-def]
    return _Work(
        Distinct(np.empty(n), np.empty(n), np.empty(n, np.uint16)),
        np.empty((3, n + 1)),
        make_scratch(n),
    )


# Inlined by numba: LLVM compiles all that a function calls once more with every function above it.
@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _fill_table(distinct, wanted, points, work, table):  # type: ignore[no-untyped-def]
    """Fill ``table`` (float64[entries]) with the best centres of distinct values.

    points: float64[m], the numbers that entries may be; None for any that ``wanted.rounding``
    leaves unchanged. Returns how much the squared error may be above the least. Of ``work``,
    ``distinct`` is not used.
    """
    values, masses, _ = distinct
    entries, count = wanted.entries, values.size
    if wanted.uniform:
        _fill_uniform(values[0], values[count - 1], wanted.rounding, table)
        return 0.0
    if points is not None:
        prefix = fill_sums(values, masses, work.sums)
        pairs = np.empty((points.size, points.size))
        fill_from_points(values, prefix, Choice(points, pairs), table)
        return 0.0
    if count <= entries:
        for j in range(entries):
            table[j] = values[min(j, count - 1)]
        return 0.0
    prefix = fill_sums(values, masses, work.sums)
    scratch = work.scratch
    penalty = first_penalty(values, prefix, entries, scratch)
    penalty, _ = solve(prefix, entries, penalty, scratch)
    gap = refine_for_storage(prefix, entries, penalty, wanted.rounding, TOLERANCE, scratch)
    stored_table(prefix, scratch.bounds, wanted.rounding, table)
    return gap


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_uniform(low, high, rounding, table):  # type: ignore[no-untyped-def]
    """Repeat :func:`mlopt.palette.scalar.uniform.uniform_table`, operation by operation."""
    last = table.size - 1
    highest = low
    for j in range(last + 1):
        step = low * ((last - j) / last) + high * (j / last)
        step = min(max(step, low), high)
        if j == last:
            step = high
        highest = max(highest, step)
        table[j] = round_to_stored(highest, rounding)


@njit(cache=True, nogil=True, error_model="numpy")
def _distinct_errors(distinct, table, thresholds):  # type: ignore[no-untyped-def]
    """Summed squares of error and of value over distinct values."""
    values, masses, keys = distinct
    noise = 0.0
    signal = 0.0
    label = 0
    for u in range(values.size):
        while label < thresholds.size and thresholds[label] <= keys[u]:
            label += 1
        miss = values[u] - table[label]
        noise += masses[u] * miss * miss
        signal += masses[u] * values[u] * values[u]
    return noise, signal


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _finish_code_row(row, coded, distinct, wanted, points, work, out):  # type: ignore[no-untyped-def]
    """Write table, labels and errors of a row of codes whose distinct values are known."""
    table = out.tables[row]
    thresholds = np.empty(wanted.entries - 1, np.uint32)
    choice = None if points is None else points[min(row, len(points) - 1)]
    out.gap[row] = _fill_table(distinct, wanted, choice, work, table)
    fill_thresholds(distinct, coded.value_of, table, thresholds)
    label_codes(coded.codes[row], thresholds, out.labels[row])
    out.noise[row], out.signal[row] = _distinct_errors(distinct, table, thresholds)


@njit(cache=True, nogil=True, error_model="numpy")
def cluster_code_rows(coded, wanted, points, out):  # type: ignore[no-untyped-def]
    """Cluster rows of 16-bit codes; where a row is not finite only its noise is written, as NaN.

    points: float64[rows, m], or [1, m] for all rows, the numbers that entries may be; None for any
    that can be stored. The same in the kernels below.
    """
    rows, n = coded.codes.shape
    work = _make_work(min(n, 1 << 16))
    spare = np.empty((2, n), np.uint16)
    for row in range(rows):
        count = distinct_of_codes(coded.codes[row], coded.value_of, work.distinct, spare)
        if count < 0:
            out.noise[row] = np.nan
            continue
        distinct = first_of(work.distinct, count)
        _finish_code_row(row, coded, distinct, wanted, points, work, out)


@njit(cache=True, nogil=True)
def _find_keys(distinct, value_of):  # type: ignore[no-untyped-def]
    """Write the lowest key of each distinct value."""
    key = 0
    for u in range(distinct.values.size):
        while value_of[key] != distinct.values[u]:  # this is also true of NaN
            key += 1
        distinct.keys[u] = key


@njit(cache=True, nogil=True, error_model="numpy")
def cluster_weighted_code_rows(coded, importance, wanted, points, out):  # type: ignore[no-untyped-def]
    """Cluster long rows of 16-bit codes with importance float64[rows, n], added up by key."""
    codes, value_of = coded
    by_key = np.empty(1 << 16)
    work = _make_work(1 << 16)
    for row in range(codes.shape[0]):
        weigh_keys(codes[row], importance[row], by_key)
        if by_key.max() == 0.0:
            weigh_keys(codes[row], np.ones(codes.shape[1]), by_key)
        negligible = 0.0
        for key in range(1 << 16):
            negligible += by_key[key]
        by_key *= power_of_two(negligible)
        negligible *= power_of_two(negligible) * NEGLIGIBLE
        count = 0
        for key in range(1 << 16):
            if by_key[key] > 0.0:
                count = join_value(count, value_of[key], by_key[key], negligible, work.distinct)
        distinct = first_of(work.distinct, count)
        _find_keys(distinct, value_of)
        _finish_code_row(row, coded, distinct, wanted, points, work, out)


@njit(cache=True, nogil=True, error_model="numpy")
def cluster_float_rows(rows, ordered, wanted, points, out):  # type: ignore[no-untyped-def]
    """Cluster rows of floats [rows, n], given with the same rows sorted.

    1. Distinct values with their importance; 1 each where none has any.
    2. Where squares would leave the range of float64: values and masses times powers of two.
    3. The table, and the error of the distinct values, back in the units of the row.
    4. The label of each value.
    """
    row_count, n = rows.shape
    work = _make_work(n)
    middles = np.empty(wanted.entries - 1)
    for row in range(row_count):
        # 1
        values, importance = ordered.values[row], ordered.importance[row]
        count = collapse_sorted(values, importance, work.distinct)
        if count == 0:
            count = collapse_sorted(values, importance[:0], work.distinct)
        # 2
        distinct = first_of(work.distinct, count)
        factor = 1.0
        if count > wanted.entries:
            factor = power_of_two(max(-distinct.values[0], distinct.values[count - 1]))
        if factor != 1.0:
            distinct = first_of(distinct, _rescale(distinct, factor))
        rarity = power_of_two(distinct.masses.sum())
        if rarity != 1.0:
            distinct.masses[:] *= rarity
        # 3
        table = out.tables[row]
        choice = None if points is None else points[min(row, len(points) - 1)] * factor
        excess = _fill_table(distinct, wanted, choice, work, table)
        fill_middles(table, middles)
        noise, signal = _errors_by_middles(distinct, table, middles)
        out.noise[row] = noise / rarity / factor / factor
        out.signal[row] = signal / rarity / factor / factor
        out.gap[row] = excess / rarity / factor / factor
        if factor != 1.0:
            table /= factor
            fill_middles(table, middles)
        # 4
        label_floats(rows[row], middles, out.labels[row])


@njit(cache=True, nogil=True, error_model="numpy")
def _errors_by_middles(distinct, table, middles):  # type: ignore[no-untyped-def]
    """Summed squares of error and of value over distinct values."""
    values, masses, _ = distinct
    noise = 0.0
    signal = 0.0
    label = 0
    for u in range(values.size):
        while label < middles.size and middles[label] < values[u]:
            label += 1
        miss = values[u] - table[label]
        noise += masses[u] * miss * miss
        signal += masses[u] * values[u] * values[u]
    return noise, signal


RANGE = 2.0**400
"""Numbers between this and its inverse have squares, and sums of squares, within float64."""


@njit(cache=True, nogil=True)
def power_of_two(largest):  # type: ignore[no-untyped-def]
    """Return a power of two that brings numbers within ``RANGE``; 1.0 where they are.

    largest: the largest of their magnitudes. Only float64 can leave that range.
    """
    if largest == 0.0 or 1.0 / RANGE < largest < RANGE:
        return 1.0
    _, exponent = math.frexp(largest)
    return math.ldexp(1.0, min(-exponent, 1000))


@njit(cache=True, nogil=True)
def _rescale(distinct, factor):  # type: ignore[no-untyped-def]
    """Multiply ascending values, and join those that become equal; returns how many are left."""
    values, masses, _ = distinct
    kept = 0
    for u in range(values.size):
        value = values[u] * factor
        if kept and values[kept - 1] == value:
            masses[kept - 1] += masses[u]
            continue
        values[kept] = value
        masses[kept] = masses[u]
        kept += 1
    return kept
