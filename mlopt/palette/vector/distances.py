"""Kernels for squared distances of many vectors to one centre after the other.

``columns`` [d, n] and centres are of one float dtype, float32 or float64. Loops run over vectors,
so that they run in SIMD registers; the order of every sum is explicit, without fast-math.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def distances(columns, start, stop, center, out):  # type: ignore[no-untyped-def]
    """Write squared distances of vectors start .. stop to one centre [d] to out[0 .. stop-start].

    Up to four components at a time.
    """
    d = columns.shape[0]
    m = stop - start
    if d >= 4:
        x0, x1 = columns[0, start:stop], columns[1, start:stop]
        x2, x3 = columns[2, start:stop], columns[3, start:stop]
        c0, c1, c2, c3 = center[0], center[1], center[2], center[3]
        for i in range(m):
            a, b, c, e = x0[i] - c0, x1[i] - c1, x2[i] - c2, x3[i] - c3
            out[i] = (a * a + b * b) + (c * c + e * e)
        done = 4
    elif d >= 2:
        x0, x1 = columns[0, start:stop], columns[1, start:stop]
        c0, c1 = center[0], center[1]
        for i in range(m):
            a, b = x0[i] - c0, x1[i] - c1
            out[i] = a * a + b * b
        done = 2
    else:
        x0, c0 = columns[0, start:stop], center[0]
        for i in range(m):
            a = x0[i] - c0
            out[i] = a * a
        done = 1
    for j in range(4, d - d % 4, 4):
        x0, x1 = columns[j, start:stop], columns[j + 1, start:stop]
        x2, x3 = columns[j + 2, start:stop], columns[j + 3, start:stop]
        c0, c1, c2, c3 = center[j], center[j + 1], center[j + 2], center[j + 3]
        for i in range(m):
            a, b, c, e = x0[i] - c0, x1[i] - c1, x2[i] - c2, x3[i] - c3
            out[i] += (a * a + b * b) + (c * c + e * e)
        done = j + 4
    for j in range(done, d):
        x0, c0 = columns[j, start:stop], center[j]
        for i in range(m):
            a = x0[i] - c0
            out[i] += a * a
