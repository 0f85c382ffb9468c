"""Where the error of a compressed model enters: the chart and the table of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlopt.pages.drawing import Canvas, chart, plain_axes, titled
from mlopt.pages.html import Column, Markup, table
from mlopt.pages.svg import colour
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.comparison.rows import LayerRow
from mlopt.runtime.comparison.text import decibels


def layers_chart(layers: Sequence[LayerRow]) -> Markup:
    """Return the signal-to-noise ratios of layers in program order.

    Layers without error have no mark; those whose error is not finite, or that could not be
    measured, have a cross at the lower end.
    """
    label = (
        f"Signal-to-noise ratio of {len(layers)} layers in program order: of the error that enters "
        "at each, and of all errors up to it. The table of layers has the numbers."
    )
    return chart("layers-chart", label, lambda on: _draw(on, layers), wide=340, narrow=300)


def layers_table(layers: Sequence[LayerRow]) -> Markup:
    """Return the layers in program order."""
    columns = [
        Column("Weight"),
        Column("Operation"),
        Column("Enters here", is_number=True),
        Column("So far", is_number=True),
    ]
    rows = [(", ".join(row.weights), f"{row.op_type} {row.name}", *_words(row)) for row in layers]
    return table("layers-table", "Signal-to-noise ratio of each layer", columns, rows)


def _words(row: LayerRow) -> tuple[str, str]:
    entering = decibels(row.entering) if row.entering.samples else row.mismatch or "not measured"
    return entering, decibels(row.so_far) if row.so_far.samples else ""


def _draw(canvas: Canvas, layers: Sequence[LayerRow]) -> None:
    (axes,) = plain_axes(canvas, has_ticks=False)
    titled(axes, "signal-to-noise ratio, dB (higher is better)")
    count = len(layers)
    places = np.arange(count) + 0.5
    entering = np.array([_height(row.entering) for row in layers])
    so_far = np.array([_height(row.so_far) for row in layers])
    known = np.isfinite(so_far)
    axes.plot(places[known], so_far[known], color=colour("accent"), linewidth=2)
    size = 6 if count * 12 < canvas.width else 3
    axes.plot(places, entering, "o", color=colour("error"), markersize=size)
    broken = [p for p, row in zip(places, layers, strict=True) if is_broken(row)]
    finite = np.concatenate([entering, so_far])
    finite = finite[np.isfinite(finite)] if np.isfinite(finite).any() else np.zeros(1)
    room = 0.08 * float(np.ptp(finite)) or 1.0
    low, high = float(finite.min()) - room, float(finite.max()) + room
    axes.plot(broken, [low] * len(broken), "X", color=colour("ink"), markersize=8, clip_on=False)
    axes.set_xlim(0, max(count, 1))
    axes.set_ylim(low, high)
    axes.set_xticks([])
    axes.set_xlabel("weights in program order", labelpad=10)
    texts = [_text(row) for row in layers]
    canvas.columns(axes, np.arange(count + 1.0), texts)


def _text(row: LayerRow) -> str:
    entering, so_far = _words(row)
    return f"{', '.join(row.weights)} ({row.op_type}): {entering} enters here, {so_far} so far"


def is_broken(row: LayerRow) -> bool:
    """Return whether the error of a layer is not finite, or was not measured."""
    # if both are zero the ratio is NaN, but nothing is wrong
    return any(
        each.status in ("not finite", "unmeasured") or each.snr_db == -math.inf
        for each in (row.entering, row.so_far)
    )


def _height(distance: Distance) -> float:
    value = distance.snr_db
    return value if math.isfinite(value) else math.nan
