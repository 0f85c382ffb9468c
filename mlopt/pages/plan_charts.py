"""The charts of a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mlopt.choices import NBITS
from mlopt.pages.drawing import Canvas, chart, colour, filled, plain_axes, titled
from mlopt.pages.html import Markup
from mlopt.pages.losses import Unit, share
from mlopt.pages.plan_values import (
    PLAN,
    edges_of,
    front_of,
    known_loss,
    losses_of,
    points_of,
    shade_of,
)
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, decibels
from mlopt.text.words import human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKER, _LETTER = 5.0, 8.0
"""Pixels: half the width of the mark of a point, and the width of a digit or letter."""

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


def bits_chart(recipe: Recipe) -> Markup:
    """Return the bits of every weight as a strip in program order."""
    label = (
        f"Stored bits of an element for each of {len(recipe.weights)} weights in program order. "
        "The table of all weights has the numbers."
    )
    return chart("bits", label, lambda on: _draw_bits(on, recipe), wide=250, narrow=220)


def error_chart(recipe: Recipe) -> Markup:
    """Return the loss of every weight in program order, and their sum so far."""
    label = (
        f"The loss that each of {len(recipe.weights)} weights adds, in program order, and the sum "
        "up to it. The table of all weights has the numbers."
    )
    return chart("error", label, lambda on: _draw_error(on, recipe), wide=380, narrow=340)


def has_losses(recipe: Recipe) -> bool:
    """Return whether there is a sum of losses of which each weight has a share."""
    total = float(losses_of(recipe).sum())
    return 0.0 < total < math.inf


def _plan_of(points: Sequence[Point]) -> Point:
    return next(point for point in points if point.label == PLAN)


def _draw_front(canvas: Canvas, recipe: Recipe, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit = Unit(recipe.loss)
    (axes,) = plain_axes(canvas)
    titled(axes, unit.axis)
    heights = _Heights.of(points)
    front = [(p.nbytes, heights.of_loss(known_loss(p))) for p in front_of(points)]
    axes.plot(*zip(*front, strict=True), color=colour("before"), linewidth=2, zorder=1)
    for number, point in enumerate(points, 1):
        _draw_point(canvas, axes, point, number, heights, unit)
    if recipe.limit is not None:
        axes.axvline(recipe.limit, color=colour("error"), linewidth=1, dashes=(4, 3), zorder=0.5)
    if recipe.most_loss is not None and heights.is_drawn(recipe.most_loss):
        most = heights.of_loss(recipe.most_loss)
        axes.axhline(most, color=colour("error"), linewidth=1, dashes=(4, 3), zorder=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4 if canvas.is_narrow else 7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(max(0, int(value)))))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: unit.tick(value)))
    axes.margins(x=0.06, y=0.12)
    axes.set_xlabel("bytes of the package")
    _number(canvas, axes, points, heights)


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
        f"{unit.words(point.expected)}{measured}",
    )


def _number(canvas: Canvas, axes: Axes, points: Sequence[Point], heights: _Heights) -> None:
    """Write the numbers of points next to them, as many as have room, the plan first."""
    axes.get_xlim()  # limits are made when they are asked for
    axes.get_ylim()
    at = [(point.nbytes, heights.of_loss(known_loss(point))) for point in points]
    pixels = axes.transData.transform(at) * (72.0 / canvas.figure.dpi)
    taken = [(x, y, _MARKER, _MARKER) for x, y in pixels]
    for place in sorted(range(len(points)), key=lambda n: points[n].label != PLAN):
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


def _draw_bits(canvas: Canvas, recipe: Recipe) -> None:
    weights, edges = recipe.weights, edges_of(recipe)
    (axes,) = plain_axes(canvas, has_ticks=False)
    titled(axes, "bits of an element")
    palettized = [weight.bits for weight in weights if weight.chosen.config is not None]
    top = max([4.0, *(bits for bits in palettized if bits <= 2 * NBITS[-1])]) * 1.05
    gap = min(1.0 / canvas.width, 0.15 / max(len(weights), 1))
    for shade in (0, *NBITS):
        boxes = [
            (left, 0.0, right - gap, top if shade == 0 else min(weight.bits, top))
            for (left, right), weight in zip(pairwise(edges), weights, strict=True)
            if shade_of(weight) == shade
        ]
        filled(axes, boxes, name=f"b{shade}")
    unit = Unit(recipe.loss)
    canvas.columns(axes, edges, [weight_words(weight, unit) for weight in weights])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top)
    axes.set_yticks([bits for bits in (1, 2, 3, 4, 6, 8, 12, 16) if bits <= top])
    axes.set_xticks([])
    axes.set_xlabel("weights in program order", labelpad=10)


def weight_words(weight: RecipeWeight, unit: Unit) -> str:
    """Return a weight and its form in a line."""
    return (
        f"{weight.name}: {weight.chosen.words}, {weight.bits:.2f} bits of an element, "
        f"{human_bytes(weight.chosen.nbytes)}, {unit.words(weight.chosen.loss)}"
    )


def _draw_error(canvas: Canvas, recipe: Recipe) -> None:
    losses = losses_of(recipe)
    total, count = float(losses.sum()), len(losses)
    sums, unit = np.cumsum(losses), Unit(recipe.loss)
    upper, lower = plain_axes(canvas, ratios=(1, 1.3), has_ticks=False)
    edges = np.arange(count + 1.0)
    titled(upper, "sum so far, % of the sum of all losses")
    filled(upper, _boxes(edges, 100 * sums / total, gap=0.0), name="before")
    titled(lower, "loss of the weight alone, % of the sum")
    gap = 0.2 if count * 4 < canvas.width else 0.0
    filled(lower, _boxes(edges, 100 * losses / total, gap=gap), name="error")
    texts = [
        f"{weight.name}: {weight.chosen.words}, {unit.words(weight.chosen.loss)}, "
        f"{share(weight.chosen.loss, total)} of the sum; {share(so_far, total)} up to here"
        for weight, so_far in zip(recipe.weights, sums, strict=True)
    ]
    for axes in (upper, lower):
        canvas.columns(axes, edges, texts)
        axes.set_xlim(0, count)
        axes.set_xticks([])
        axes.locator_params(axis="y", nbins=4)
    upper.set_ylim(0, 105)
    lower.set_ylim(0, 105 * float(losses.max()) / total)
    lower.set_xlabel("weights in program order", labelpad=10)


def _boxes(edges: Any, heights: Any, *, gap: float) -> list[tuple[float, float, float, float]]:
    spans = zip(pairwise(edges), heights, strict=True)
    return [(left, 0.0, right - gap, height) for (left, right), height in spans]
