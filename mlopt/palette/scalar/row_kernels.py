"""Kernels of :mod:`mlopt.palette.scalar.groups`: rows one after the other, each by itself."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mlopt.palette.scalar.distinct import (
    NEGLIGIBLE,
    collapse_sorted,
    distinct_of_codes,
    join_value,
    weigh_keys,
)
from mlopt.palette.scalar.kmeans1d import first_penalty, solve
from mlopt.palette.scalar.labels import fill_middles, fill_thresholds, label_codes, label_floats
from mlopt.palette.scalar.lattice import fill_from_points
from mlopt.palette.scalar.segments import fill_sums
from mlopt.palette.scalar.stored import refine_for_storage, round_to_stored, stored_table


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
def _finish_code_row(  # type: ignore[no-untyped-def]  # noqa: PLR0913 - a kernel writes to arrays of its caller
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
    fill_thresholds(values, keys, found, value_of, table, thresholds)
    label_codes(codes, thresholds, labels)
    noise, signal = _distinct_errors(values, masses, keys, found, table, thresholds)
    return noise, signal, gap


@njit(cache=True, nogil=True, error_model="numpy")
def cluster_code_rows(  # type: ignore[no-untyped-def]
    codes, value_of, constants, entries, uniform, points, tables, labels, noise, signal, gap
):
    """Rows of 16-bit codes uint16[rows, n]; the rest as for ``cluster_rows``."""
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
def cluster_weighted_code_rows(  # type: ignore[no-untyped-def]
    codes, importance, value_of, constants, entries, points, tables, labels, noise, signal, gap
):
    """The same with importance float64[rows, n], for long rows."""
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


@njit(cache=True, nogil=True, error_model="numpy")
def cluster_float_rows(  # type: ignore[no-untyped-def]
    rows, ordered, importance, constants, entries, points, tables, labels, noise, signal, gap
):
    """Rows of floats [rows, n]; ``ordered``, ``importance``: each row sorted, for 1 [rows, 0]."""
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
