"""The table of ``mlopt inspect``."""

from __future__ import annotations

from mlopt.coreml.inspection import Inventory, StoredWeight
from mlopt.text.names import elided_apart, middle_elided, printable
from mlopt.text.tables import Column, text_table, width_left
from mlopt.text.words import human_bytes

_NARROWEST = 16  # characters of a name, at least
_FORM = 34  # characters of a form, at most


def inventory_table(inventory: Inventory, width: int) -> str:
    """Return the rows as text, at most ``width`` columns wide; long names are elided."""
    rows = inventory.rows
    names = [printable(row.name) for row in rows]
    users = [printable(_users(row)) for row in rows]
    columns = [
        Column("shape", ["x".join(map(str, row.shape)) or "scalar" for row in rows]),
        Column("dtype", [row.dtype for row in rows]),
        Column("bytes", [human_bytes(row.nbytes) for row in rows], is_number=True),
    ]
    if all(row.distinct is not None for row in rows):
        columns += [
            Column("distinct", [str(row.distinct) for row in rows], is_number=True),
            Column("zeros", [_share(row.sparsity) for row in rows], is_number=True),
        ]
    if any(row.compression is not None for row in rows):
        columns.append(Column("stored as", [_form(row) for row in rows]))
    name_width, user_width = _shared(
        width_left(width, columns, more=2),
        max(map(len, names), default=0),
        max(map(len, users), default=0),
    )
    names, users = elided_apart(names, name_width), elided_apart(users, user_width)
    return text_table([Column("weight", names), Column("read by", users), *columns], width=width)


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _form(row: StoredWeight) -> str:
    return "" if row.compression is None else middle_elided(row.compression.short, _FORM)


def _users(row: StoredWeight) -> str:
    more = len(row.consumers) - 1
    if more < 1:
        return "".join(row.consumers)
    return f"{row.consumers[0]} and {more} more"


def _shared(width: int, left: int, right: int) -> tuple[int, int]:
    """Divide ``width`` between two columns that need ``left`` and ``right``."""
    if left + right <= width:
        return left, right
    half = max(width // 2, _NARROWEST)
    if left <= half:
        return left, max(width - left, _NARROWEST)
    if right <= half:
        return max(width - right, _NARROWEST), right
    return half, half
