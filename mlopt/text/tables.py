"""Tables of plain text, for a terminal, a log or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

import attrs
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between two columns."""

_UNLIMITED = 1_000_000
# Plain ASCII: a rule of dashes below the titles, and nothing else.
_BOX = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


@attrs.frozen
class Column:
    """One column of a table.

    Parameters
    ----------
    title
        The text above the rule.
    cells
        A text for each row, printable and on one line.
    is_number
        Whether the cells are right-aligned.
    wraps
        Whether long cells are broken into lines; others are as wide as their widest cell.
    """

    title: str
    cells: Sequence[str]
    is_number: bool = attrs.field(default=False, kw_only=True)
    wraps: bool = attrs.field(default=False, kw_only=True)

    @property
    def width(self) -> int:
        """Characters of the widest cell, including the title, and of the gap to the next column."""
        return max(map(cell_len, (self.title, *self.cells))) + GAP


def width_left(width: int, columns: Iterable[Column], *, more: int = 1) -> int:
    """Return the characters left for the cells of `more` columns next to `columns`, of `width`."""
    return width - sum(column.width for column in columns) - (more - 1) * GAP


def text_table(
    columns: Sequence[Column], *, width: int | None = None, has_titles: bool = True
) -> str:
    """Return columns as lines of text without trailing spaces.

    Parameters
    ----------
    columns
        One or more, with as many cells each.
    width
        Characters of a line, at most; None for as many as the cells take.
    has_titles
        Whether the titles and the rule below them are shown.
    """
    if sum(column.width for column in columns) - GAP <= (width or _UNLIMITED):
        lines: Iterable[str] = _unbroken(columns, has_titles=has_titles)
    else:
        lines = _broken(columns, width or _UNLIMITED, has_titles=has_titles)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _unbroken(columns: Sequence[Column], *, has_titles: bool) -> Iterator[str]:
    """Yield the lines of columns that are as wide as their widest cells.

    As those of rich, which takes milliseconds for a line; models have thousands of weights.
    """
    widths = [column.width - GAP for column in columns]
    titles = [tuple(column.title for column in columns)] if has_titles else []
    for number, cells in enumerate(
        (*titles, *zip(*(column.cells for column in columns), strict=True))
    ):
        padded = []
        for column, cell, cell_width in zip(columns, cells, widths, strict=True):
            gap = " " * (cell_width - cell_len(cell))
            padded.append(gap + cell if column.is_number else cell + gap)
        yield (" " * GAP).join(padded)
        if has_titles and number == 0:
            yield "-" * (sum(widths) + GAP * (len(widths) - 1))


def _broken(columns: Sequence[Column], width: int, *, has_titles: bool) -> list[str]:
    """Return the lines of columns of which some are narrower than their cells."""
    table = Table(
        box=_BOX,
        padding=(0, GAP - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_header=has_titles,
    )
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        # As Text: a string would be searched for markup such as "[0]".
        table.add_row(*map(Text, cells))
    out = StringIO()
    console = Console(file=out, width=width, color_system=None, legacy_windows=False)
    console.print(table)
    return out.getvalue().splitlines()
