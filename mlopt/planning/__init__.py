"""Plans: which form each weight gets, so that a package is small and its answers stay."""

from mlopt.calibration.answers.losses import decibels
from mlopt.planning.applying import apply_recipe, preview_recipe
from mlopt.planning.candidates import candidates_over
from mlopt.planning.matching import Matching, match
from mlopt.planning.metrics import metric_of_command
from mlopt.planning.plan import plan
from mlopt.planning.recipe import Point, Recipe, RecipeWeight, Tried
from mlopt.planning.recipe_files import load as load_recipe
from mlopt.planning.recipe_files import save as save_recipe
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
    "match",
    "metric_of_command",
    "plan",
    "plan_together",
    "preview_recipe",
    "save_recipe",
]
