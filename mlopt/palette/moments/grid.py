"""``TableGrid``: which rows and columns of a weight's matrices share a table.

The solver works on *units*: single rows, or the d rows that vectors lie across. A table belongs to
some of the units (the ``table`` of a unit) and to some consecutive columns (a *segment*).
"""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.moments.arrangement import Arrangement


@attrs.frozen(eq=False)
class TableGrid:
    """Units and columns in the order of their tables.

    rows: int64[units * d], rows of the flattened matrices [blocks * rows, columns], those of one
    unit together; columns: int64[columns], so that segments are consecutive; table: int64[units],
    ascending; block: int64[units]; segment: int64[columns], ascending; flat: int64[tables,
    segments], the table's number in the order of ``Palettized.table``.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    table: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int64]
    flat: npt.NDArray[np.int64]


def table_grid(
    arrangement: Arrangement,
    table_shape: tuple[int, ...],
    cluster_dim: int,
    vector_axis: int | None,
) -> TableGrid | str:
    """Return the grid of a palette, or the reason why its matrices have none.

    table_shape: the number of groups along each axis of the weight; cluster_dim, vector_axis: as in
    :class:`mlopt.palette.Palettized`.
    """
    of_rows, of_columns = arrangement.positions()
    shape, d = arrangement.shape, cluster_dim
    row_table = np.zeros(of_rows.shape[1], np.int64)
    column_table = np.zeros(of_columns.shape[1], np.int64)
    for axis, groups in enumerate(table_shape):
        row_table *= groups
        column_table *= groups
        if groups == 1:
            continue
        size = shape[axis] // groups
        if of_rows[axis].any() and of_columns[axis].any():
            return f"groups on axis {axis}, which is partly rows and partly columns of the matrices"
        row_table += of_rows[axis] // size
        column_table += of_columns[axis] // size

    unit = np.zeros(of_rows.shape[1], np.int64)
    place = np.zeros(of_rows.shape[1], np.int64)
    for axis, length in enumerate(shape):
        position = of_rows[axis]
        if axis == vector_axis:
            if of_columns[axis].any():
                return f"vectors lie along axis {axis}, which is one of inputs"
            position, place = position // d, position % d
        unit = unit * length + position
    block = np.arange(len(unit)) // arrangement.rows
    tables, table = np.unique(row_table, return_inverse=True)
    segments, segment = np.unique(column_table, return_inverse=True)
    rows = np.lexsort((place, unit, block, table))
    columns = np.argsort(segment, kind="stable")
    # a unit's rows: the d places of one unit in one block
    first = rows[::d, None]
    together = rows.reshape(-1, d)
    is_unit = (unit[together] == unit[first]) & (block[together] == block[first])
    if not np.all(is_unit & (place[together] == np.arange(d))):
        return "vectors lie across blocks, whose inputs differ"
    return TableGrid(
        rows=rows,
        columns=columns,
        table=table.reshape(-1)[rows[::d]],
        block=block[rows[::d]],
        segment=segment.reshape(-1)[columns],
        flat=tables[:, None] + segments,
    )


def table_starts(grid: TableGrid) -> npt.NDArray[np.int64]:
    """Return the first unit of each table, and the number of units: int64[tables + 1]."""
    counts = np.bincount(grid.table, minlength=len(grid.flat))
    return np.concatenate([[0], np.cumsum(counts)])


def spans(count: int, step: int) -> list[slice]:
    """Return slices of ``step`` that cut ``count``; the last may be shorter."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
