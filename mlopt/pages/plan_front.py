"""The chart of the packages that a plan considered: quality against bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlopt.pages.drawing import Canvas, chart, plain_axes, titled
from mlopt.pages.html import Markup
from mlopt.pages.losses import Unit
from mlopt.pages.plan_values import (
    PLAN,
    front_of,
    known_loss,
    points_of,
)
from mlopt.pages.svg import colour
from mlopt.planning.limits import decibels
from mlopt.planning.recipe import Point, Recipe
from mlopt.text.words import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKER, _LETTER = 5.0, 8.0
"""Pixels: half the width of the mark of a point, and the width of a digit or letter."""

_FAR = 4.0
"""How many times larger the largest package is where the axis of bytes shows ratios."""

_PLACES = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Where the number of a point may be: above, to the right, below, to the left."""


def front_chart(recipe: Recipe) -> Markup:
    """Return the packages that were considered: quality against bytes."""
    points, unit = points_of(recipe), Unit(recipe.loss)
    label = (
        f"{len(points)} packages: {unit.title} against size. The plan has "
        f"{human_bytes(recipe.nbytes)} and {unit.words(known_loss(_plan_of(points)))}. The table "
        "below has all numbers."
    )
    return chart("front", label, lambda on: _draw_front(on, recipe, points), wide=400, narrow=300)


def _plan_of(points: Sequence[Point]) -> Point:
    return next(point for point in points if point.label == PLAN)


def _draw_front(canvas: Canvas, recipe: Recipe, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit = Unit(recipe.loss)
    (axes,) = plain_axes(canvas)
    titled(axes, unit.axis)
    _scale_bytes(canvas, axes, [point.nbytes for point in points])
    heights = _Heights.of(points)
    front = [(p.nbytes, heights.of_loss(p.expected)) for p in front_of(points)]
    if front:
        axes.plot(*zip(*front, strict=True), color=colour("before"), linewidth=2, zorder=1)
    for number, point in enumerate(points, 1):
        _draw_point(canvas, axes, point, number, heights, unit)
    if recipe.limit is not None:
        axes.axvline(recipe.limit, color=colour("error"), linewidth=1, dashes=(4, 3), zorder=0.5)
    if recipe.most_loss is not None and heights.is_drawn(recipe.most_loss):
        most = heights.of_loss(recipe.most_loss)
        axes.axhline(most, color=colour("error"), linewidth=1, dashes=(4, 3), zorder=0.5)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: unit.tick(value)))
    axes.margins(x=0.06, y=0.12)
    _number(canvas, axes, points, heights)


def _scale_bytes(canvas: Canvas, axes: Axes, sizes: Sequence[int]) -> None:
    """Make the axis of bytes: one on which ratios are seen, where sizes differ much."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    few = 4 if canvas.is_narrow else 7
    ratio = max(sizes) / max(min(sizes), 1)
    if ratio > _FAR and min(sizes) > 0:
        axes.set_xscale("log")
        # two or three ticks for each factor of ten, unless these are too many
        subs = (1, 2, 5) if 3 * math.log10(ratio) <= few else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("bytes of the package, by ratios")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(few))
        axes.set_xlabel("bytes of the package")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(max(0, int(value)))))


@attrs.frozen
class _Heights:
    """Where losses are drawn, in dB: what is not finite there at the upper or lower end."""

    low: float
    high: float

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Heights:
        losses = [x for p in points for x in (p.expected, p.measured) if x is not None]
        finite = [y for y in map(_height, losses) if math.isfinite(y)] or [0.0]
        room = 0.15 * (max(finite) - min(finite)) or 1.0
        return cls(min(finite) - room, max(finite) + room)

    def is_drawn(self, loss: float) -> bool:
        return self.low <= _height(loss) <= self.high

    def of_loss(self, loss: float) -> float:
        return min(max(_height(loss), self.low), self.high)


def _height(loss: float) -> float:
    if math.isnan(loss):
        return -math.inf
    return -math.inf if loss == math.inf else decibels(loss)


def _draw_point(
    canvas: Canvas, axes: Axes, point: Point, number: int, heights: _Heights, unit: Unit
) -> None:
    is_plan, is_run = point.label == PLAN, point.measured is not None
    name = colour("error" if is_plan else "accent")
    height, expected = heights.of_loss(known_loss(point)), heights.of_loss(point.expected)
    if is_run:
        axes.plot([point.nbytes] * 2, [expected, height], color=name, linewidth=1, zorder=2)
        axes.plot([point.nbytes], [expected], "_", color=name, markersize=9, zorder=2)
    (marker,) = axes.plot(
        [point.nbytes],
        [height],
        marker="D" if is_plan else "o",
        color=name,
        markerfacecolor=name if is_run else colour("paper"),
        markersize=10 if is_plan else 8,
        markeredgewidth=1.5,
        zorder=4 if is_plan else 3,
    )
    measured = f", measured {unit.words(point.measured)}" if is_run else ", not run"
    canvas.hover(
        marker,
        f"{number}: {point.label}, {human_bytes(point.nbytes)}, expected "
        f"{unit.words(point.expected)}{measured}"
        + ("" if point.metric is None else f", metric {point.metric:.6g}"),
    )


def _number(canvas: Canvas, axes: Axes, points: Sequence[Point], heights: _Heights) -> None:
    """Write the numbers of points next to them, as many as have room: the plan, those that ran."""
    axes.get_xlim()  # limits are made when they are asked for
    axes.get_ylim()
    at = [(point.nbytes, heights.of_loss(known_loss(point))) for point in points]
    pixels = axes.transData.transform(at) * (72.0 / canvas.figure.dpi)
    taken = [(x, y, _MARKER, _MARKER) for x, y in pixels]
    order = [(point.label != PLAN, point.measured is None) for point in points]
    for place in sorted(range(len(points)), key=order.__getitem__):
        is_plan = points[place].label == PLAN
        text = PLAN if is_plan else str(place + 1)
        wide = _LETTER * len(text) / 2
        for right, up in _PLACES:
            away = (right * (wide + 9.0), up * 14.0)
            box = (pixels[place][0] + away[0], pixels[place][1] + away[1], wide, 6.0)
            if any(_overlap(box, other) for n, other in enumerate(taken) if n != place):
                continue
            axes.annotate(
                text,
                at[place],
                away,
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=12 if is_plan else 11,
                fontweight="bold" if is_plan else "normal",
                color=colour("ink" if is_plan else "muted"),
            )
            taken.append(box)
            break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether two boxes do: their middles, and half of their widths and heights."""
    return all(abs(one[i] - other[i]) < one[i + 2] + other[i + 2] for i in (0, 1))
