"""A comparison as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlopt.runtime.comparison import Comparison
    from mlopt.runtime.measures import Distance

_WIDEST = 48


def comparison_text(comparison: Comparison) -> str:
    """Tables of the outputs and, if they were compared, of the layers, the worst first."""
    header = ["output", "SNR", "cosine", "max error", "of largest", "top 1", "top 5"]
    rows = []
    for output in comparison.outputs:
        agreement = output.agreement
        agree = ["", ""]
        if agreement is not None:
            shares = (agreement.top1 / agreement.samples, agreement.top5 / agreement.samples)
            agree = [f"{share:.1%}" for share in shares]
        rows.append([_short(output.name), *_numbers(output.distance), *agree])
    parts = [_table(header, rows)]
    if comparison.layers:
        header = ["operation", "weight", "SNR entering", "SNR so far"]
        ascending = sorted(comparison.layers, key=lambda row: row.entering.snr_db)
        layers = [
            [
                row.op_type,
                _short(", ".join(row.weights)),
                decibels(row.entering.snr_db),
                decibels(row.so_far.snr_db),
            ]
            for row in ascending
        ]
        parts.append(_table(header, layers))
    if comparison.unmatched:
        names = ", ".join(map(_short, comparison.unmatched))
        parts.append(f"Not in the candidate, so not compared: {names}")
    parts.append(f"{comparison.samples} samples.")
    return "\n\n".join(parts)


def decibels(value: float) -> str:
    """A ratio for a reader: ``"23.4 dB"``, ``"equal"``, ``"not finite"``."""
    if math.isnan(value):
        return "not finite"
    return "equal" if value == math.inf else f"{value:.1f} dB"


def _numbers(distance: Distance) -> list[str]:
    return [
        decibels(distance.snr_db),
        f"{distance.cosine:.6f}",
        f"{distance.max_absolute:.3g}",
        f"{distance.max_relative:.2%}",
    ]


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST else f"...{name[3 - _WIDEST :]}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; the first ones to the left, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    texts = [i for i, name in enumerate(header) if name in ("output", "operation", "weight")]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "-" * len(line([" " * w for w in widths]) or "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join([line(header), rule, *map(line, rows)])
