"""Recipes carried out: on the model that was planned, a fine-tuned copy, or for another target."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mlopt.choices import Method
from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.palettize import PalettizationResult, palettize, prepare, preview
from mlopt.coreml.progress import Progress
from mlopt.errors import ConfigError
from mlopt.palette.value.spec import PaletteSpec
from mlopt.planning.cache import Cache
from mlopt.planning.matching import match
from mlopt.planning.recipe import Recipe
from mlopt.requests.report import Report
from mlopt.statistics import Calibration
from mlopt.statistics.guidance import CalibrationSource, calibration_of

_ALL_UNGUIDED = (
    "No weight that the recipe palettizes has statistics in the calibration: tables are fitted to "
    "the weights alone, and no samples are run."
)


def apply_recipe(  # noqa: PLR0913 - those of palettize, the recipe and samples
    recipe: Recipe,
    model: ModelSource,
    *,
    output: str | os.PathLike[str] | None = None,
    minimum_deployment_target: TargetName | None = None,
    strict: bool = False,
    joint_compression: bool | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    calibration: CalibrationSource | None = None,
    samples: Iterable[Mapping[str, Any]] | None = None,
    method: Method = "auto",
    correct_biases: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> PalettizationResult:
    """Palettize a model as a recipe says.

    Parameters
    ----------
    model
        The model of the recipe, or one with weights of the same names and shapes: see
        :func:`mlopt.planning.match`.
    minimum_deployment_target
        As for :func:`mlopt.coreml.palettize`. None: the target of the recipe.
    joint_compression
        As for :func:`mlopt.coreml.palettize`. None: as the recipe was planned.
    strict
        Whether every difference between the model and that of the recipe is an error.
    calibration, method
        As for :func:`mlopt.coreml.palettize`: give what the plan was made with.
    samples
        With a calibration: palettize in sequence, see
        :func:`mlopt.calibration.palettize_sequentially`. None, or where the calibration of the
        recipe knows none of the weights: all weights at once.
    cache
        The folder that the plan was made with: what is in it is not clustered again. Not with
        samples.
    output, workers, progress, correct_biases
        As for :func:`mlopt.coreml.palettize`.

    Returns
    -------
    PalettizationResult
        The notes of its report list what is different from the model and the calibration of the
        recipe.

    Raises
    ------
    ConfigError
        The recipe is for another model, or samples come without a calibration.
    TargetError
        Forms that the target cannot express; all are listed.
    ModelFormatError, InputError, RunError
        As for the functions that do the work.
    """
    if samples is not None and calibration is None:
        raise ConfigError(
            "samples need the calibration that was made with them, got None; give calibration=, or "
            "leave the samples out"
        )
    known = None if calibration is None else calibration_of(calibration)
    matching = match(recipe, model, strict=strict)
    different = _notes_on_calibration(recipe, known)
    if not _is_of_use(known, recipe):
        known, method = None, "auto"
        if samples is not None:
            samples, different = None, (*different, _ALL_UNGUIDED)
    options: dict[str, Any] = {
        "output": output,
        "minimum_deployment_target": minimum_deployment_target or recipe.target,
        "joint_compression": _is_joint(recipe, joint_compression),
        "workers": workers,
        "progress": progress,
        "calibration": known,
        "method": method,
        "correct_biases": correct_biases,
    }
    if samples is None:
        result = _at_once(model, matching.config, cache, options)
    else:
        from mlopt.calibration import palettize_sequentially

        result = palettize_sequentially(model, matching.config, samples, **options)
    notes = (*matching.notes, *different)
    result.report = _with_notes(result.report, notes)
    return result


def preview_recipe(
    recipe: Recipe,
    model: ModelSource,
    *,
    minimum_deployment_target: TargetName | None = None,
    strict: bool = False,
    joint_compression: bool | None = None,
) -> Report:
    """Return the report of :func:`apply_recipe` without clustering; nothing is written.

    Parameters and errors as there; see :func:`mlopt.coreml.preview`.
    """
    matching = match(recipe, model, strict=strict)
    report = preview(
        model,
        matching.config,
        minimum_deployment_target=minimum_deployment_target or recipe.target,
        joint_compression=_is_joint(recipe, joint_compression),
    )
    return _with_notes(report, matching.notes)


def _is_joint(recipe: Recipe, asked: bool | None) -> bool:
    return recipe.joint_compression if asked is None else asked


def _is_of_use(calibration: Calibration | None, recipe: Recipe) -> bool:
    """Whether it is not that of the recipe, or has statistics of weights that are palettized.

    Without such it would be taken for that of another model.
    """
    if calibration is None or calibration.identity != recipe.calibration:
        return True
    chosen = [weight for weight in recipe.weights if weight.chosen.config is not None]
    return any(calibration.find(each.name, each.shape, each.content) for each in chosen)


def _at_once(
    model: ModelSource,
    config: OptimizationConfig,
    cache: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> PalettizationResult:
    """Palettize all weights, with what a cache has of them."""
    if cache is None:
        return palettize(model, config, **options)
    progress = options.pop("progress")
    job, kept = prepare(model, config, strict=False, **options), Cache(cache)
    computed = {}
    for decision in job.plan.decisions:
        if isinstance(decision.result, PaletteSpec):
            guidance = job.guides.of(decision.weight)
            found = kept.palette(kept.key(decision, guidance), guidance)
            if found is not None:
                computed[id(decision.weight)] = found
    return job.finish(computed=computed, progress=progress)


def _with_notes(report: Report, notes: tuple[str, ...]) -> Report:
    return attrs.evolve(report, notes=(*notes, *report.notes))


def _notes_on_calibration(recipe: Recipe, calibration: Calibration | None) -> tuple[str, ...]:
    """Return a note if tables are fitted to something else than those of the plan."""
    given = None if calibration is None else calibration.identity
    if given == recipe.calibration:
        return ()
    if given is None:
        return ("The recipe was planned with a calibration, and is applied without one.",)
    if recipe.calibration is None:
        return ("The recipe was planned without a calibration, and is applied with one.",)
    return ("The recipe was planned with another calibration than the one that is given.",)
