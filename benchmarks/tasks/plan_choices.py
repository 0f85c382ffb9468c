"""Recipes as the rules see them, and what the rules choose as recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from benchmarks.tasks.plan_rules import AS_IT_IS, RULES, Numbers, Weight, loss, nbytes
from mlopt.planning import Recipe, RecipeWeight, Tried
from mlopt.planning.choice import Option

Size: TypeAlias = "Callable[[Recipe], int]"

_ATTEMPTS = 6


def choose(rule: str, recipe: Recipe, budget: int, size_of: Size) -> Recipe | None:
    """What a rule chooses for a package of so many bytes, by what a recipe knows; None: nothing.

    size_of: the exact bytes of the package; those of weights add up but for a few of the program.
    """
    known = known_weights(recipe)
    allowed = budget - base_bytes(recipe)
    for _ in range(_ATTEMPTS):
        numbers = RULES[rule](known, allowed)
        if numbers is None:
            return None
        chosen = with_choice(recipe, numbers)
        exact = size_of(chosen)
        if exact <= budget:
            return attrs.evolve(chosen, nbytes=exact)
        allowed -= exact - budget
    return None


def known_weights(recipe: Recipe) -> list[Weight]:
    """What a recipe knows of its weights, as the rules want it."""
    return [
        Weight(
            tuple(Option(each.nbytes, each.loss) for each in _tried(weight)),
            tuple(width_of(each) for each in _tried(weight)),
        )
        for weight in recipe.weights
    ]


def width_of(tried: Tried) -> int | None:
    """The width of a form, ``AS_IT_IS`` without a palette, None unless it is one plain table."""
    config = tried.config
    if config is None:
        return AS_IT_IS
    plain = type(config)(nbits=config.nbits, weight_threshold=config.weight_threshold)
    return config.nbits if config == plain else None


def with_choice(recipe: Recipe, numbers: Numbers) -> Recipe:
    """The recipe with these forms of its weights instead, their bytes and the sum of losses."""
    known = known_weights(recipe)
    weights = tuple(
        attrs.evolve(weight, chosen=_tried(weight)[number])
        for weight, number in zip(recipe.weights, numbers, strict=True)
    )
    return attrs.evolve(
        recipe,
        weights=weights,
        nbytes=base_bytes(recipe) + nbytes(known, numbers),
        expected=loss(known, numbers),
        measured=None,
        gap=1.0,  # nothing is proven
    )


def of_one_width(recipe: Recipe, width: int, size_of: Size) -> Recipe:
    """The recipe with one width for all weights that have it, and the exact bytes of that."""
    chosen = with_choice(recipe, tuple(weight.at(width) for weight in known_weights(recipe)))
    return attrs.evolve(chosen, nbytes=size_of(chosen))


def base_bytes(recipe: Recipe) -> int:
    """The bytes of the package besides what its weights take."""
    return recipe.nbytes - sum(weight.chosen.nbytes for weight in recipe.weights)


def measured_share(recipe: Recipe) -> float:
    """The share of the forms whose losses were measured, and not predicted."""
    palettes = [
        tried for weight in recipe.weights for tried in weight.tried if tried.config is not None
    ]
    return sum(tried.known == "measured" for tried in palettes) / max(len(palettes), 1)


def _tried(weight: RecipeWeight) -> tuple[Tried, ...]:
    return weight.tried or (weight.chosen,)
