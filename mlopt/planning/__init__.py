"""Plans: which form each weight gets, so that a package is small and its answers stay.

Planning itself needs torch, and is loaded when it is asked for; recipes do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlopt.planning.applying import apply_recipe, preview_recipe
from mlopt.planning.candidates import candidates_over
from mlopt.planning.limits import decibels, loss_in_words
from mlopt.planning.matching import Matching, match
from mlopt.planning.metrics import metric_of_command
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, Tried
from mlopt.planning.recipe_files import load as load_recipe
from mlopt.planning.recipe_files import save as save_recipe

if TYPE_CHECKING:
    from mlopt.planning.single import plan
    from mlopt.planning.together import plan_together

__all__ = [
    "Matching",
    "Point",
    "Recipe",
    "RecipeWeight",
    "Tried",
    "apply_recipe",
    "candidates_over",
    "decibels",
    "load_recipe",
    "loss_in_words",
    "match",
    "metric_of_command",
    "plan",
    "plan_together",
    "preview_recipe",
    "save_recipe",
]

# no module has the name of a function: importing it would put it in the function's place
_LATER = {"plan": "single", "plan_together": "together"}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
