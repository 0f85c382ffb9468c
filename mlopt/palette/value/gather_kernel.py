"""The kernel of ``gather``."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def gather_rows(table, indices, weight, first, geometry):  # type: ignore[no-untyped-def]
    """Gather a weight row by row.

    table [G * entries, d]; indices [R, g, m]: rows, groups in a row, positions in a group;
    weight [R * g * m * d]; first int64[R].
    """
    entries, across, row_stride, vector_length = geometry
    d = table.shape[1]
    rows, row_groups, m = indices.shape
    length = row_groups * m
    for row in range(rows):
        if across:
            upper, low = divmod(row, row_stride)
            outer, vector = divmod(upper, vector_length)
            start = ((outer * vector_length + vector) * d * row_stride + low) * length
        else:
            start = row * length * d
        for group in range(row_groups):
            entry = first[row] + group * entries
            if d == 1:
                for j in range(m):
                    weight[start + j] = table[entry + indices[row, group, j], 0]
                start += m
            elif across:
                for c in range(d):
                    there = start + c * row_stride * length
                    for j in range(m):
                        weight[there + j] = table[entry + indices[row, group, j], c]
                start += m
            else:
                for j in range(m):
                    source = entry + indices[row, group, j]
                    for c in range(d):
                        weight[start + c] = table[source, c]
                    start += d
