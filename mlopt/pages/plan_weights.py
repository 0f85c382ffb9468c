"""The charts of a plan that have a place for every weight, in program order."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from mlopt.choices import NBITS
from mlopt.pages.drawing import Canvas, chart, filled, plain_axes, titled
from mlopt.pages.html import Markup
from mlopt.pages.losses import Unit, share
from mlopt.pages.plan_values import (
    edges_of,
    losses_of,
    shade_of,
)
from mlopt.pages.svg import colour
from mlopt.planning.recipe import Recipe, RecipeWeight
from mlopt.text.words import human_bytes


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
    upper.stairs(100 * sums / total, edges, color=colour("accent"), linewidth=1.5, baseline=None)
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
