"""The table of ``mlopt inspect``."""

from __future__ import annotations

from io import StringIO

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlopt.coreml.inspection import Inventory, StoredWeight
from mlopt.requests.report import human_bytes
from mlopt.text import elided_apart, middle_elided, printable

# Plain ASCII, so that the table can go to any terminal, log or file.
_BOX = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)
_GAP = 2  # blanks between two columns
_NARROWEST = 16  # characters of a name, at least
_FORM = 34  # characters of a form, at most


def inventory_table(inventory: Inventory, width: int) -> str:
    """The rows as plain text, ``width`` columns wide at most; long names are elided."""
    rows = inventory.rows
    names = [printable(row.name) for row in rows]
    users = [printable(_users(row)) for row in rows]
    columns = {
        "shape": ["x".join(map(str, row.shape)) or "scalar" for row in rows],
        "dtype": [row.dtype for row in rows],
        "bytes": [human_bytes(row.nbytes) for row in rows],
        "distinct": ["" if row.distinct is None else str(row.distinct) for row in rows],
        "zeros": ["" if row.sparsity is None else f"{100 * row.sparsity:.1f} %" for row in rows],
    }
    if any(row.distinct is None for row in rows):
        del columns["distinct"], columns["zeros"]
    if any(row.compression is not None for row in rows):
        columns["stored as"] = [
            "" if row.compression is None else middle_elided(row.compression.short, _FORM)
            for row in rows
        ]
    taken = sum(max(map(len, (title, *cells))) + _GAP for title, cells in columns.items())
    name_width, user_width = _shared(
        width - taken - _GAP, max(map(len, names), default=0), max(map(len, users), default=0)
    )

    table = Table(box=_BOX, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for title in ("weight", "read by", *columns):
        on_left = title in ("weight", "read by", "shape", "dtype", "stored as")
        table.add_column(title, justify="left" if on_left else "right", no_wrap=True)
    names, users = elided_apart(names, name_width), elided_apart(users, user_width)
    for texts in zip(names, users, *columns.values(), strict=True):
        # As Text: a string would be searched for markup such as "[0]".
        table.add_row(*map(Text, texts))
    out = StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def _users(row: StoredWeight) -> str:
    more = len(row.consumers) - 1
    if more < 1:
        return "".join(row.consumers)
    return f"{row.consumers[0]} and {more} more"


def _shared(width: int, left: int, right: int) -> tuple[int, int]:
    """Divide ``width`` between two columns that want ``left`` and ``right``."""
    if left + right <= width:
        return left, right
    half = max(width // 2, _NARROWEST)
    if left <= half:
        return left, max(width - left, _NARROWEST)
    if right <= half:
        return max(width - right, _NARROWEST), right
    return half, half
