"""Kernels between points and the nodes of their grid, for :mod:`mlopt.torch.soft_kmeans.grid`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

LEVELS = 8
"""Steps of a grid: the finest, twice it, and so on."""

_SHARES = 2.0 ** -np.arange(LEVELS, dtype=np.float32)
"""The finest step over each of them."""


class Cells(NamedTuple):
    """Where the points of a group have their nodes.

    Cells are as wide as the finest step. per_step: float32, one over that; first: int, the number
    of the first cell, counted from zero; node_of: int32[cells], the first of the four nodes of the
    points in a cell; level: uint8[cells], the logarithm of their distance in finest steps.
    """

    per_step: np.float32
    first: int
    node_of: npt.NDArray[np.int32]
    level: npt.NDArray[np.uint8]


@njit(cache=True, nogil=True, error_model="numpy")
def mark_used(points, per_step, first, used):  # type: ignore[no-untyped-def]
    """Write 1 to uint8[cells] for each cell that has a point."""
    for i in range(points.size):
        used[np.uint64(np.int64(np.floor(points[i] * per_step)) - first)] = 1


@njit(cache=True, nogil=True, error_model="numpy")
def find_nodes(used, borders, levels, cells, most):  # type: ignore[no-untyped-def]
    """Find the nodes that points need: int64, in finest steps from zero. Fills ``cells``.

    A stretch of cells as wide as the distance of nodes there has four nodes, one before it, one at
    each end, one beyond, and shares them with the next stretch where that is near.

    Parameters
    ----------
    used
        uint8[cells], whether a cell has points.
    borders
        int64[Z - 1], the numbers of the cells at which zones of one level end, ascending.
    levels
        uint8[Z].
    cells
        With ``node_of`` and ``level`` to be filled.
    most
        Nodes after which there is no use in more of them: some four more may come out then.
    """
    numbers = np.empty(most + 12, np.int64)
    # as if there had been a stretch long before the first one, whose four nodes are not returned
    position = 0
    level = np.int64(levels[0])
    start = (cells.first >> level << level) - (8 << level)
    end = 0
    for zone in range(levels.size):
        first = end
        end = used.size
        if zone < borders.size:
            end = min(max(borders[zone] - cells.first, first), used.size)
        here = np.int64(levels[zone])
        cells.level[first:end] = here
        for c in range(first, end):
            # without branches on `used`, which nobody can foresee: where it is 0, all stays
            start_here = (cells.first + c) >> here << here
            away = min((start_here - start) >> here, 4) if here == level else 4
            position += away if used[c] else 0
            start = start_here if used[c] else start
            level = here if used[c] else level
            if position > most + 4:
                return numbers[4 : position + 4]
            for i in range(4):
                numbers[np.uint64(position + i)] = start + (i - 1) * (1 << level)
            cells.node_of[c] = position - 4
    return numbers[4 : position + 4]


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _find(point, cells):  # type: ignore[no-untyped-def]
    """Return the first of the four nodes of a point, and its place between the two in the middle.

    In float32, where factors that are powers of two round nothing.
    """
    place = point * cells.per_step
    number = np.int64(np.floor(place))
    cell = np.uint64(number - cells.first)
    level = np.int64(cells.level[cell])
    stretch = np.float32(number >> level)
    return np.uint64(cells.node_of[cell]), place * _SHARES[level] - stretch


@njit(cache=True, nogil=True, error_model="numpy")
def add_moments(points, cells, terms, moments):  # type: ignore[no-untyped-def]
    """Add ``terms`` times the powers of the places of their points to float64[U, 4]."""
    for i in range(points.size):
        node, f = _find(points[i], cells)
        x, term = np.float64(f), np.float64(terms[i])
        moments[node, 0] += term
        term *= x
        moments[node, 1] += term
        term *= x
        moments[node, 2] += term
        moments[node, 3] += term * x


@njit(cache=True, nogil=True, error_model="numpy")
def divide_moments(moments, sums):  # type: ignore[no-untyped-def]
    """Turn float64[U, 4] into what the nodes get, float64[U]. The last three have no points."""
    sums[:] = 0.0
    for u in range(sums.size - 3):
        m0, m1, m2, m3 = moments[u, 0], moments[u, 1], moments[u, 2], moments[u, 3]
        sums[u] -= (m3 - 3.0 * m2 + 2.0 * m1) / 6.0
        sums[u + 1] += (m3 - 2.0 * m2 - m1 + 2.0 * m0) / 2.0
        sums[u + 2] -= (m3 - m2 - 2.0 * m1) / 2.0
        sums[u + 3] += (m3 - m1) / 6.0


@njit(cache=True, nogil=True, error_model="numpy")
def fill_cubics(numbers, cubics):  # type: ignore[no-untyped-def]
    """Write the cubic through each node and the next three: [U - 3, 4] of [U], both float32.

    Coefficients by the place between the second and the third of them, that of power 0 first.
    """
    for u in range(numbers.size - 3):
        y0, y1 = np.float64(numbers[u]), np.float64(numbers[u + 1])
        y2, y3 = np.float64(numbers[u + 2]), np.float64(numbers[u + 3])
        cubics[u, 0] = y1
        cubics[u, 1] = y2 - y0 / 3.0 - y1 / 2.0 - y3 / 6.0
        cubics[u, 2] = (y0 + y2) / 2.0 - y1
        cubics[u, 3] = (y3 - y0) / 6.0 + (y1 - y2) / 2.0


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate(points, cells, cubics, out):  # type: ignore[no-untyped-def]
    """Write the values of cubics, float32[U - 3, 4], at their points to float32[n]."""
    for i in range(points.size):
        node, f = _find(points[i], cells)
        c0, c1, c2, c3 = cubics[node, 0], cubics[node, 1], cubics[node, 2], cubics[node, 3]
        out[i] = c0 + f * (c1 + f * (c2 + f * c3))


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate_line(points, cells, cubics, pull, mass, out):  # type: ignore[no-untyped-def]
    """Write ``slope pull + share mass`` of each point.

    cubics: float32[U - 3, 8], those of slopes and those of shares; mass: empty for 1.
    """
    for i in range(points.size):
        node, f = _find(points[i], cells)
        s0, s1, s2, s3 = cubics[node, 0], cubics[node, 1], cubics[node, 2], cubics[node, 3]
        h0, h1, h2, h3 = cubics[node, 4], cubics[node, 5], cubics[node, 6], cubics[node, 7]
        slope = s0 + f * (s1 + f * (s2 + f * s3))
        share = h0 + f * (h1 + f * (h2 + f * h3))
        if mass.size:
            share *= mass[i]
        out[i] = slope * pull[i] + share
