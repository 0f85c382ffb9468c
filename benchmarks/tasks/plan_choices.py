"""Recipes as the rules see them, and what the rules choose as recipes."""

from __future__ import annotations

import attrs

from benchmarks.tasks.plan_rules import AS_IT_IS, RULES, Numbers, Weight, loss, nbytes
from mlopt.planning.choice import Option
from mlopt.planning.recipe import Recipe, RecipeWeight, Tried


def choose(rule: str, recipe: Recipe, budget: int) -> Recipe | None:
    """What a rule chooses for a package of so many bytes, by what a recipe knows; None: nothing."""
    numbers = RULES[rule](known_weights(recipe), budget - base_bytes(recipe))
    return None if numbers is None else with_choice(recipe, numbers)


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


def of_one_width(recipe: Recipe, width: int) -> Recipe:
    """The recipe with one width for all weights that have it."""
    return with_choice(recipe, tuple(weight.at(width) for weight in known_weights(recipe)))


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
