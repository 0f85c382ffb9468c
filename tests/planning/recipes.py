"""Recipes made by hand, for tests of what is done with them."""

from __future__ import annotations

import itertools

from mlopt.coreml import OpPalettizerConfig
from mlopt.coreml.weights import weights_of
from mlopt.mil.opening import open_package
from mlopt.planning import Recipe, RecipeWeight, Tried
from mlopt.statistics import content_of


def tried(config=None, *, nbytes=100, loss=0.25, known="measured"):
    return Tried(config=config, nbytes=nbytes, loss=loss, known=known)


def weight(name="w", shape=(4, 8), *, config=None, **options):
    chosen = tried(config)
    defaults = {"dtype": "float16", "content": "0" * 40, "chosen": chosen, "tried": (chosen,)}
    return RecipeWeight(name=name, shape=shape, **{**defaults, **options})


def recipe(*weights, **options):
    defaults = {"target": "iOS18", "loss": "squared", "samples": 8, "are_random": False}
    sizes = {"nbytes": 1000, "nbytes_before": 4000, "expected": 0.5}
    return Recipe(weights=weights, **{**defaults, **sizes, **options})


def recipe_of(package, forms=(2, 4), **options):
    """A recipe for a package: the forms in turn for its matrices, and all else left alone.

    forms: configs, or bits of one table.
    """
    made: list[RecipeWeight] = []
    in_turn = itertools.cycle(forms)
    for each in weights_of(open_package(package))[0]:
        form = next(in_turn) if len(each.shape) > 1 else None
        if isinstance(form, int):
            form = OpPalettizerConfig(nbits=form, weight_threshold=0)
        content = content_of(each.value())
        made.append(weight(each.name, each.shape, config=form, dtype=each.dtype, content=content))
    return recipe(*made, **options)
