"""Recipes that were edited by hand: another of the forms that were tried, and what goes with it."""

from __future__ import annotations

import math

import attrs

from mlopt.planning.recipe import Recipe, RecipeWeight
from mlopt.text.names import shortlist
from mlopt.text.words import counted


def with_edits(recipe: Recipe) -> Recipe:
    """Return a recipe whose bytes and losses are those of the forms that it has.

    Where the chosen form of a weight is one that was tried, and has the bytes or the loss of
    another, they are taken from what was tried. Those of the package are then sums, and nothing is
    known of it as a whole; a note says so. A form that was not tried keeps what is written there.
    """
    weights = tuple(map(_corrected, recipe.weights))
    pairs = [(a, b) for a, b in zip(recipe.weights, weights, strict=True) if a is not b]
    if not pairs:
        return recipe
    note = (
        f"{counted(len(pairs), 'weight')} got another of the forms that were tried after the plan "
        f"({shortlist([each.name for _, each in pairs])}): bytes and losses of the package are "
        "sums, and were not measured."
    )
    return attrs.evolve(
        recipe,
        weights=weights,
        nbytes=recipe.nbytes + sum(b.chosen.nbytes - a.chosen.nbytes for a, b in pairs),
        expected=math.fsum(each.chosen.loss for each in weights),
        measured=None,
        metric=None,
        gap=1.0,
        notes=(*recipe.notes, note),
    )


def _corrected(weight: RecipeWeight) -> RecipeWeight:
    chosen = weight.chosen
    tried = next((each for each in weight.tried if each.config == chosen.config), chosen)
    # as text, for numbers that are none are not equal to themselves
    if (tried.nbytes, repr(tried.loss)) == (chosen.nbytes, repr(chosen.loss)):
        return weight
    return attrs.evolve(weight, chosen=tried)
