"""The two forms of a result: a table on stdout and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from benchmarks.lib.environment import environment

WIDEST = 1000
MEGABYTE = 1e6


def print_table(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a table; every column but the first two is right-aligned.

    A cell is never cut or wrapped: the table is wider than the terminal where it has to be.
    """
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def write_json(path: Path | None, subject: str, rows: Any) -> None:
    """Write ``{"subject", "environment", "rows"}`` to ``path``; None: nowhere."""
    if path is not None:
        result = {"subject": subject, "environment": environment(), "rows": rows}
        path.write_text(json.dumps(result, indent=2) + "\n")


def seconds(value: float | None) -> str:
    """``value`` seconds with three significant digits, in s or ms; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def megabytes(value: float | None) -> str:
    """``value`` bytes in MB (1e6 bytes); a dash for None."""
    return "-" if value is None else f"{value / MEGABYTE:,.1f}"


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with so many significant digits; a dash for None."""
    return "-" if value is None else f"{value:.{digits}g}"
