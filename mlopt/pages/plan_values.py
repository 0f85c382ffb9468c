"""What the page of a plan shows of a recipe: numbers that several of its parts use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.planning.recipe import Point, Recipe, RecipeWeight

PLAN = "plan"
"""The label of the point that stands for the package of a recipe itself."""


def points_of(recipe: Recipe) -> list[Point]:
    """Return the packages that were considered by their bytes, that of the recipe among them."""
    points = list(recipe.points)
    if all(point.label != PLAN for point in points):
        points.append(
            Point(
                label=PLAN,
                nbytes=recipe.nbytes,
                expected=recipe.expected,
                measured=recipe.measured,
            )
        )
    return sorted(points, key=lambda point: (point.nbytes, point.label != PLAN))


def known_loss(point: Point) -> float:
    """Return the loss of a package: as it ran, or else as it is expected."""
    return point.expected if point.measured is None else point.measured


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the points, by their bytes, to which no other is at least equal in both."""
    front: list[Point] = []
    for point in points:
        if math.isnan(known_loss(point)):
            continue
        if not front or known_loss(point) < known_loss(front[-1]):
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


def edges_of(recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return where each weight begins and ends in a strip from 0 to 1, float64 [weights + 1].

    Widths are in proportion to elements, but for a fifth of the strip that all share equally:
    biases would not be seen next to an embedding.
    """
    sizes = np.array([weight.size for weight in recipe.weights], np.float64)
    widths = 0.8 * sizes / max(sizes.sum(), 1.0) + 0.2 / max(len(sizes), 1)
    return np.concatenate([[0.0], np.cumsum(widths / widths.sum())]) if len(sizes) else np.zeros(1)
