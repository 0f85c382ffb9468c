"""k-means of many rows, each with a table of its own: the kernels behind every scalar palette.

A row is a group of channels, or the whole tensor. Rows are independent; threads take spans of them.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from numba import njit

from mlopt.palette.scalar.buckets import label_floats
from mlopt.palette.scalar.distinct import (
    NEGLIGIBLE,
    collapse_sorted,
    distinct_of_codes,
    is_coded,
    join_value,
    key_of,
    value_of_key,
    weigh_keys,
)
from mlopt.palette.scalar.kmeans1d import first_penalty, solve
from mlopt.palette.scalar.lattice import fill_from_points
from mlopt.palette.scalar.segments import fill_sums
from mlopt.palette.scalar.stored import (
    refine_for_storage,
    round_to_stored,
    rounding_constants,
    stored_table,
)

_ROWS_OF_WORK = 1 << 19
"""Weights a thread takes at a time."""


@attrs.frozen(eq=False)
class RowTables:
    """Tables and labels of ``G`` rows of ``n`` weights.

    tables: float64[G, 2**nbits], ascending, storable in the weights' dtype; labels: uint8[G, n];
    noise, signal: the rows' summed squares of error and of weights (float64), in importance; gap:
    how much the noise may be above the least, 0.0 where it is proven the least.
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
    """Optimal tables of ``2**nbits`` entries for each row.

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
        [G, n], not negative, broadcastable views welcome; None for 1. Summed in float64. A row
        without any counts as uniform.
    uniform
        Equal steps from the smallest to the largest value instead of optimal tables; for float16
        and bfloat16 without importance.
    points
        float64[G, m], or [1, m] for all rows, each row distinct and ascending: the numbers that
        entries may be. The tables are the best of these, see
        :mod:`mlopt.palette.scalar.lattice`. None for whatever ``table_dtype`` can store.
    workers
        Threads. The result does not depend on it.
    """
    row_count, n = rows.shape
    entries = 1 << nbits
    tables = np.empty((row_count, entries))
    labels = np.empty((row_count, n), np.uint8)
    noise = np.empty(row_count)
    signal = np.empty(row_count)
    gap = np.zeros(row_count)
    constants = rounding_constants(table_dtype.name)
    rows = _read_only(rows)
    choice = np.empty((1, 0)) if points is None else np.ascontiguousarray(points, np.float64)

    def cluster(first: int, last: int) -> None:
        span = slice(first, last)
        out = (tables[span], labels[span], noise[span], signal[span], gap[span])
        of_span = choice[span] if len(choice) > 1 else choice
        if is_coded(rows.dtype) and importance is None:
            value_of = value_of_key(rows.dtype.name)
            _cluster_code_rows(
                rows[span].view(np.uint16), value_of, constants, entries, uniform, of_span, *out
            )
            return
        if is_coded(rows.dtype) and n >= 1 << 16:
            weights = _read_only(np.ascontiguousarray(importance[span], np.float64))  # type: ignore[index]
            value_of = value_of_key(rows.dtype.name)
            _cluster_weighted_code_rows(
                rows[span].view(np.uint16), weights, value_of, constants, entries, of_span, *out
            )
            return
        values = _read_only(rows[span].astype(np.float32)) if is_coded(rows.dtype) else rows[span]
        if importance is None:
            ordered, weights = np.sort(values, axis=1), np.empty((last - first, 0))
        else:
            order = np.argsort(values, axis=1, kind="stable")
            ordered = np.take_along_axis(values, order, axis=1)
            weights = np.take_along_axis(
                np.broadcast_to(importance[span], values.shape), order, axis=1
            ).astype(np.float64, copy=False)
        _cluster_float_rows(values, ordered, weights, constants, entries, of_span, *out)

    step = max(1, _ROWS_OF_WORK // max(n, 1))
    spans = [(first, min(first + step, row_count)) for first in range(0, row_count, step)]
    if workers > 1 and len(spans) > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda span: cluster(*span), spans))
    else:
        for span in spans:
            cluster(*span)
    return RowTables(tables, labels, _total(noise), _total(signal), _total(gap))


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view that cannot be written to: kernels are compiled for these, whatever comes in."""
    view = array.view()
    view.flags.writeable = False
    return view


def _total(parts: npt.NDArray[np.float64]) -> float:
    """A sum in a fixed order: numpy's own differs with the width of the machine's vectors."""
    return float(np.cumsum(parts)[-1]) if parts.size else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _table_of_values(  # type: ignore[no-untyped-def]
    values, masses, found, entries, uniform, points, constants, scratch, pairs, table
):
    """Fill ``table`` (float64[entries]) with the best centres of ``found`` distinct values.

    ``uniform``: with equal steps between the first and the last of them instead; ``points``: with
    the best of these, unless there are none (``pairs`` is the scratch for that). Returns how much
    the squared error may be above the least.

    scratch: sums float64[3, >= found + 1], bounds int64[>= found + 1], cost, offset float64, start,
    queue, since int32, all at least ``found + 1`` long.
    """
    sums, bounds, cost, offset, start, queue, since = scratch
    if uniform:
        _fill_uniform(values[0], values[found - 1], constants, table)
        return 0.0
    if points.size > 0:
        origin = fill_sums(values[:found], masses[:found], sums)
        fill_from_points(values, found, sums, origin, points, pairs, table)
        return 0.0
    if found <= entries:
        for j in range(entries):
            table[j] = values[min(j, found - 1)]
        return 0.0
    n = found
    values = values[:n]
    origin = fill_sums(values, masses[:n], sums)
    penalty = first_penalty(values, sums, origin, entries, bounds)
    penalty, _ = solve(sums, n, entries, penalty, bounds, cost, offset, start, queue, since)
    gap = refine_for_storage(
        sums, origin, n, entries, penalty, constants, bounds, cost, offset, start, queue, since
    )
    stored_table(sums, origin, bounds, entries, *constants, table)
    return gap


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_uniform(low, high, constants, table):  # type: ignore[no-untyped-def]
    """What :func:`mlopt.palette.scalar.uniform.uniform_table` gives, operation by operation."""
    splitter, smallest_normal, magic = constants
    last = table.size - 1
    highest = low
    for j in range(last + 1):
        step = low * ((last - j) / last) + high * (j / last)
        step = min(max(step, low), high)
        if j == last:
            step = high
        highest = max(highest, step)
        table[j] = round_to_stored(highest, splitter, smallest_normal, magic)


@njit(cache=True, nogil=True)
def _make_scratch(n):  # type: ignore[no-untyped-def]
    return (
        np.empty((3, n + 1)),
        np.empty(n + 1, np.int64),
        np.empty(n + 1),
        np.empty(n + 1),
        np.empty(n + 1, np.int32),
        np.empty(n + 1, np.int32),
        np.empty(n + 1, np.int32),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _threshold_keys(values, keys, found, value_of, table, thresholds):  # type: ignore[no-untyped-def]
    """The lowest key that belongs to each entry but the first; ties go to the lower entry.

    thresholds: uint32[entries - 1], ascending. An entry equal to its left neighbour takes nothing:
    it is padding at the end of a table (65536), or one of two centres that round alike.
    """
    position = 0
    for j in range(table.size - 1):
        middle = 0.5 * (table[j] + table[j + 1])
        if table[j + 1] == table[j]:
            thresholds[j] = 1 << 16
            continue
        step = 1
        while position < found and values[min(position + step, found) - 1] <= middle:
            position = min(position + step, found)
            step *= 2
        far = min(position + step, found)
        while position < far:
            probe = (position + far) >> 1
            if values[probe] <= middle:
                position = probe + 1
            else:
                far = probe
        if position == found or position == 0:
            thresholds[j] = 1 << 16 if position else 0
            continue
        # a key of no importance may lie between the values on either side
        lower = np.int64(keys[position - 1])
        upper = np.int64(keys[position])
        while upper - lower > 1:
            between = (lower + upper) >> 1
            if value_of[between] <= middle:
                lower = between
            else:
                upper = between
        thresholds[j] = upper
    for j in range(thresholds.size - 2, -1, -1):
        thresholds[j] = min(thresholds[j], thresholds[j + 1])


@njit(cache=True, nogil=True)
def _label_codes(codes, thresholds, labels):  # type: ignore[no-untyped-def]
    """``labels[i]``: how many thresholds the key of ``codes[i]`` has reached."""
    n = codes.size
    if n >= 1 << 16:
        label_of = np.empty(1 << 16, np.uint8)
        label = 0
        for key in range(1 << 16):
            while label < thresholds.size and thresholds[label] <= key:
                label += 1
            code = key ^ 0x8000 if key & 0x8000 else key ^ 0xFFFF
            label_of[code] = label
        for i in range(n):
            labels[i] = label_of[codes[i]]
    elif thresholds.size <= 15:
        reached = np.empty(thresholds.size, np.int32)
        for j in range(thresholds.size):
            reached[j] = thresholds[j]
        for i in range(n):
            key = np.int32(key_of(codes[i]))  # type: ignore[assignment]
            label = np.int32(0)  # type: ignore[assignment]
            for j in range(reached.size):
                label += np.int32(reached[j] <= key)  # type: ignore[assignment]
            labels[i] = label
    else:
        # a search of fixed depth over thresholds padded to a power of two less one
        for i in range(n):
            key = key_of(codes[i])
            label = 0
            step = (thresholds.size + 1) >> 1
            while step > 0:
                if thresholds[label + step - 1] <= key:
                    label += step
                step >>= 1
            labels[i] = label


@njit(cache=True, nogil=True, error_model="numpy")
def _distinct_errors(values, masses, keys, found, table, thresholds):  # type: ignore[no-untyped-def]
    """Summed squares of error and of value over distinct values."""
    noise = 0.0
    signal = 0.0
    label = 0
    for u in range(found):
        while label < thresholds.size and thresholds[label] <= keys[u]:
            label += 1
        miss = values[u] - table[label]
        noise += masses[u] * miss * miss
        signal += masses[u] * values[u] * values[u]
    return noise, signal


@njit(cache=True, nogil=True, error_model="numpy")
def _finish_code_row(  # type: ignore[no-untyped-def]
    codes,
    value_of,
    keys,
    values,
    masses,
    found,
    entries,
    uniform,
    points,
    constants,
    scratch,
    pairs,
    table,
    labels,
    thresholds,
):
    gap = _table_of_values(
        values, masses, found, entries, uniform, points, constants, scratch, pairs, table
    )
    _threshold_keys(values, keys, found, value_of, table, thresholds)
    _label_codes(codes, thresholds, labels)
    noise, signal = _distinct_errors(values, masses, keys, found, table, thresholds)
    return noise, signal, gap


@njit(cache=True, nogil=True, error_model="numpy")
def _cluster_code_rows(  # type: ignore[no-untyped-def]
    codes, value_of, constants, entries, uniform, points, tables, labels, noise, signal, gap
):
    rows, n = codes.shape
    most = min(n, 1 << 16)
    keys = np.empty(most, np.uint16)
    values = np.empty(most)
    masses = np.empty(most)
    spare = np.empty(most, np.uint16)
    spare2 = np.empty(most, np.uint16)
    scratch = _make_scratch(most)
    pairs = np.empty((points.shape[1], points.shape[1]))
    thresholds = np.empty(entries - 1, np.uint32)
    for row in range(rows):
        found = distinct_of_codes(codes[row], value_of, keys, values, masses, spare, spare2)
        if found < 0:
            noise[row] = np.nan
            continue
        noise[row], signal[row], gap[row] = _finish_code_row(
            codes[row],
            value_of,
            keys,
            values,
            masses,
            found,
            entries,
            uniform,
            points[min(row, len(points) - 1)],
            constants,
            scratch,
            pairs,
            tables[row],
            labels[row],
            thresholds,
        )


@njit(cache=True, nogil=True)
def _find_keys(values, found, value_of, keys):  # type: ignore[no-untyped-def]
    """The lowest key of each of ``found`` ascending values."""
    key = 0
    for u in range(found):
        while value_of[key] != values[u]:  # NaN is not equal either
            key += 1
        keys[u] = key


@njit(cache=True, nogil=True, error_model="numpy")
def _cluster_weighted_code_rows(  # type: ignore[no-untyped-def]
    codes, importance, value_of, constants, entries, points, tables, labels, noise, signal, gap
):
    by_key = np.empty(1 << 16)
    keys = np.empty(1 << 16, np.uint16)
    values = np.empty(1 << 16)
    masses = np.empty(1 << 16)
    scratch = _make_scratch(1 << 16)
    pairs = np.empty((points.shape[1], points.shape[1]))
    thresholds = np.empty(entries - 1, np.uint32)
    for row in range(codes.shape[0]):
        weigh_keys(codes[row], importance[row], by_key)
        if by_key.max() == 0.0:
            weigh_keys(codes[row], np.ones(codes.shape[1]), by_key)
        negligible = 0.0
        for key in range(1 << 16):
            negligible += by_key[key]
        by_key *= power_of_two(negligible)
        negligible *= power_of_two(negligible) * NEGLIGIBLE
        found = 0
        for key in range(1 << 16):
            if by_key[key] > 0.0:
                found = join_value(found, value_of[key], by_key[key], negligible, values, masses)
        _find_keys(values, found, value_of, keys)
        noise[row], signal[row], gap[row] = _finish_code_row(
            codes[row],
            value_of,
            keys,
            values,
            masses,
            found,
            entries,
            False,
            points[min(row, len(points) - 1)],
            constants,
            scratch,
            pairs,
            tables[row],
            labels[row],
            thresholds,
        )


@njit(cache=True, nogil=True)
def fill_middles(table, middles):  # type: ignore[no-untyped-def]
    """Middles between neighbours of an ascending table: float64[entries - 1], ascending.

    Infinity where an entry equals its left neighbour and all after it do: padding takes nothing.
    """
    for j in range(middles.size):
        middle = 0.5 * (table[j] + table[j + 1])
        if not np.isfinite(middle):
            middle = 0.5 * table[j] + 0.5 * table[j + 1]
        middles[j] = np.inf if table[j] == table[j + 1] else middle
    for j in range(middles.size - 2, -1, -1):
        middles[j] = min(middles[j], middles[j + 1])


@njit(cache=True, nogil=True, error_model="numpy")
def _cluster_float_rows(  # type: ignore[no-untyped-def]
    rows, ordered, importance, constants, entries, points, tables, labels, noise, signal, gap
):
    count, n = rows.shape
    values = np.empty(n)
    masses = np.empty(n)
    scratch = _make_scratch(n)
    pairs = np.empty((points.shape[1], points.shape[1]))
    middles = np.empty(entries - 1)
    for row in range(count):
        found = collapse_sorted(ordered[row], importance[row], values, masses)
        if found == 0:
            found = collapse_sorted(ordered[row], importance[row][:0], values, masses)
        table = tables[row]
        allowed = points[min(row, len(points) - 1)]
        factor = 1.0
        if found > entries:
            factor = power_of_two(max(-values[0], values[found - 1]))
        if factor != 1.0:
            found = _rescale(values, masses, found, factor)
            allowed = allowed * factor
        rarity = power_of_two(masses[:found].sum())
        if rarity != 1.0:
            masses[:found] *= rarity
        excess = _table_of_values(
            values, masses, found, entries, False, allowed, constants, scratch, pairs, table
        )
        fill_middles(table, middles)
        label = 0
        error = 0.0
        power = 0.0
        for u in range(found):
            while label < entries - 1 and middles[label] < values[u]:
                label += 1
            miss = values[u] - table[label]
            error += masses[u] * miss * miss
            power += masses[u] * values[u] * values[u]
        noise[row] = error / rarity / factor / factor
        signal[row] = power / rarity / factor / factor
        gap[row] = excess / rarity / factor / factor
        if factor != 1.0:
            table /= factor
            fill_middles(table, middles)
        label_floats(rows[row], middles, labels[row])


RANGE = 2.0**400
"""Squares of numbers between this and its inverse, and sums of them, stay within float64."""


@njit(cache=True, nogil=True)
def power_of_two(largest):  # type: ignore[no-untyped-def]
    """A factor, a power of two, that brings numbers within ``RANGE``; 1.0 where they are.

    largest: the largest of their magnitudes. Only float64 leaves that range.
    """
    if largest == 0.0 or 1.0 / RANGE < largest < RANGE:
        return 1.0
    _, exponent = math.frexp(largest)
    return math.ldexp(1.0, min(-exponent, 1000))


@njit(cache=True, nogil=True)
def _rescale(values, masses, found, factor):  # type: ignore[no-untyped-def]
    """Multiply ascending values, and join those that become equal; returns how many are left."""
    kept = 0
    for u in range(found):
        value = values[u] * factor
        if kept and values[kept - 1] == value:
            masses[kept - 1] += masses[u]
            continue
        values[kept] = value
        masses[kept] = masses[u]
        kept += 1
    return kept
