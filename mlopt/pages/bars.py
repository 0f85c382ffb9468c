"""Bars below each other, each with a name and a value above it: where bytes are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import attrs

from mlopt.mil.dtypes import BY_NAME
from mlopt.pages.drawing import Canvas, chart, filled
from mlopt.pages.html import Markup
from mlopt.pages.svg import colour
from mlopt.text.names import elided_apart, printable
from mlopt.text.words import counted, human_bytes

SHOWN = 12
"""Weights that have a bar of their own; what the others have is one more."""

_PITCH = 42.0
_THICK = 14.0
_EDGE = 4.0
_LETTER = 7.0  # pixels of a letter, on average


@attrs.frozen
class Bar:
    """A bar: its name, the words of its value, and two lengths from 0 to 1, or None for no bar."""

    name: str
    value: str
    length: float | None
    part: float | None


@attrs.frozen
class Bytes:
    """What a weight takes: as plain elements, and as it is stored."""

    name: str
    before: int
    after: int


def bytes_plain(size: int, dtype: str) -> int:
    """Return the bytes of elements that are stored as they are; dtype: by its name."""
    known = BY_NAME.get(dtype)
    digits = re.search(r"\d+$", dtype)
    bits = known.bits if known is not None else int(digits[0]) if digits else 0
    return math.ceil(size * bits / 8)


def bytes_chart(key: str, rows: Sequence[Bytes]) -> Markup:
    """Return the bytes of the largest weights, by their bytes before.

    What all others have is in words: next to their sum, bars of weights would not be seen.
    """
    largest = sorted(rows, key=lambda row: -row.before)
    shown, others = largest[:SHOWN], largest[SHOWN:]
    most = max([1, *(max(row.before, row.after) for row in shown)])
    bars = [_bar(row, most) for row in shown]
    if others:
        before, after = sum(row.before for row in others), sum(row.after for row in others)
        bars.append(_bar(Bytes(counted(len(others), "other weight"), before, after), None))
    label = (
        f"Bytes of the {counted(len(shown), 'largest weight')} as plain elements and "
        "as stored. The table of all weights has the numbers."
    )
    return bar_chart(key, label, bars)


def _bar(row: Bytes, most: int | None) -> Bar:
    value = human_bytes(row.after)
    if row.before != row.after:
        value = f"{human_bytes(row.before)} to {value}"
    if most is None:
        return Bar(row.name, value, None, None)
    return Bar(row.name, value, row.before / most, row.after / most)


def bar_chart(key: str, label: str, bars: Sequence[Bar]) -> Markup:
    """Return bars; key, label: as for :func:`chart`."""
    height = _PITCH * max(len(bars), 1)
    return chart(key, label, lambda on: _draw(on, bars), wide=height, narrow=height)


def _draw(canvas: Canvas, bars: Sequence[Bar]) -> None:
    axes = canvas.figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    right = canvas.width - _EDGE
    axes.set_xlim(0, canvas.width)
    axes.set_ylim(canvas.height, 0)
    words = max((len(bar.value) for bar in bars), default=0)
    letters = max(int((canvas.width - 4 * _EDGE) / _LETTER) - words, 12)
    names = elided_apart([printable(bar.name) for bar in bars], letters)
    wholes, parts = [], []
    for place, (bar, name) in enumerate(zip(bars, names, strict=True)):
        base = place * _PITCH
        axes.text(_EDGE, base + 13, canvas.name(name), color=colour("ink"), fontsize=12)
        axes.text(right, base + 13, bar.value, color=colour("muted"), fontsize=12, ha="right")
        top, room = base + 19, right - _EDGE
        if bar.length is not None:
            wholes.append((_EDGE, top, _EDGE + bar.length * room, top + _THICK))
        if bar.part is not None:
            end = _EDGE + max(bar.part * room, 1.0)
            parts.append((_EDGE, top + 3, end, top + _THICK - 3))
    filled(axes, wholes, name="before")
    filled(axes, parts, name="accent")
