"""What the page of a plan shows of a recipe: numbers that several of its parts use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.pages.bars import bytes_plain
from mlopt.planning.recipe import Point, Recipe, RecipeWeight

PLAN = "plan"
"""The label of the point that stands for the package of a recipe itself."""


def points_of(recipe: Recipe) -> list[Point]:
    """Return the packages that were considered by their bytes, each once, the plan among them."""
    points = list(dict.fromkeys(recipe.points))
    if all(point.label != PLAN for point in points):
        points.append(
            Point(
                label=PLAN,
                nbytes=recipe.nbytes,
                expected=recipe.expected,
                measured=recipe.measured,
                metric=recipe.metric,
            )
        )
    return sorted(points, key=lambda point: (point.nbytes, point.label != PLAN))


def known_loss(point: Point) -> float:
    """Return the loss of a package: as it ran, or else as it is expected."""
    return point.expected if point.measured is None else point.measured


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the points, by their bytes, to which no other is at least equal in both.

    Counted are the expected losses, which all of them have.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.nbytes, point.expected)):
        if not math.isnan(point.expected) and (not front or point.expected < front[-1].expected):
            front.append(point)
    return front


def shade_of(weight: RecipeWeight) -> int:
    """Return which of the colours of bits a weight has, 0 for one that is left as it is."""
    config = weight.chosen.config
    if config is None:
        return 0
    bits = weight.bits if config.nbits is None else config.nbits
    return min(NBITS, key=lambda nbits: abs(nbits - bits))


def losses_of(recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return the loss of each weight in the form that it gets, float64 [weights]."""
    return np.array([weight.chosen.loss for weight in recipe.weights], np.float64)


def plain_bytes_of(weight: RecipeWeight) -> int:
    """Return what a package has with a weight as it is: as that was counted, or its elements."""
    for each in (weight.chosen, *weight.tried):
        if each.config is None:
            return each.nbytes
    return bytes_plain(weight.size, weight.dtype)


def edges_of(recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return where each weight begins and ends in a strip from 0 to 1, float64 [weights + 1].

    Widths are in proportion to elements, but for a part of the strip that all share equally, at
    most a fifth: biases would not be seen next to an embedding.
    """
    sizes = np.array([weight.size for weight in recipe.weights], np.float64)
    count = len(sizes)
    shared = min(0.2, 0.003 * count)
    widths = (1.0 - shared) * sizes / max(sizes.sum(), 1.0) + shared / max(count, 1)
    return np.concatenate([[0.0], np.cumsum(widths / widths.sum())]) if count else np.zeros(1)
