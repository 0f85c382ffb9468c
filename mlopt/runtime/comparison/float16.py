"""Losses in float16: a program in float32 and as declared, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mlopt.coreml.models import ModelSource
from mlopt.errors import ConfigError
from mlopt.runtime.comparison.answers import answer, label_names, score_names
from mlopt.runtime.comparison.ends import ends_of_outputs
from mlopt.runtime.comparison.float16_effects import measure_effects
from mlopt.runtime.comparison.float16_results import Float16Comparison
from mlopt.runtime.comparison.float16_watch import Watch, declares_narrow
from mlopt.runtime.comparison.outputs import compare_outputs
from mlopt.runtime.comparison.random_samples import checked_seed, random_samples
from mlopt.runtime.comparison.results import Comparison
from mlopt.runtime.comparison.samples import checked_samples
from mlopt.runtime.loading import load
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program


def compare_float16(
    model: ModelSource,
    samples: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    *,
    random: int = 8,
    seed: int = 0,
    function: str | None = None,
    device: str | torch.device = "cpu",
    effects: int = 16,
) -> Float16Comparison:
    """Find the operations at which float16 overflows, vanishes or loses what float32 keeps.

    The program runs in float32 and as it declares its values, step by step side by side, so that
    memory holds what is live in both. Each result in float32 is rounded to its declared type: what
    is lost then enters at this operation. For operations that lose something, the effect is also
    measured: the outputs when all is float32 but this one result.

    Parameters
    ----------
    model
        A path or an ``MLModel``: an ML program.
    samples, random, seed
        As for :func:`compare`.
    function, device
        As for :func:`mlopt.runtime.load`.
    effects
        The most operations whose effect is measured; each takes one run.

    Raises
    ------
    ConfigError
        The model is a pipeline, or loaded already.
    InputError
        As for :func:`compare`.
    """
    seed = checked_seed(seed)
    checked = None if samples is None else checked_samples(samples)
    wide, narrow = _loaded(model, function, device)
    given = random_samples(wide, random, seed) if checked is None else checked
    if not declares_narrow(wide.plan.body):
        return Float16Comparison(Comparison(0, ()), (), 0)
    outputs = compare_outputs(
        lambda data: answer(wide, data, seed),
        lambda data: answer(narrow, data, seed),
        given,
        labels=label_names(wide),
        scores=score_names(wide),
        ends=ends_of_outputs(wide),
        roles=("model in float32", "model as declared"),
    )
    watch = Watch(wide, narrow)
    for number, sample in enumerate(given):
        watch.run(sample, number, seed)
    suspects = [watched for watched in watch.watched.values() if watched.row.kinds]
    unmeasured = measure_effects(wide, given, suspects, seed, effects)
    rows = sorted((watched.row for watched in suspects), key=lambda row: row.badness)
    return Float16Comparison(outputs, tuple(rows), len(watch.watched), unmeasured)


def _loaded(
    model: ModelSource, function: str | None, device: str | torch.device
) -> tuple[Program, Program]:
    if isinstance(model, Program | Pipeline):
        raise ConfigError(
            "a model that is loaded has one precision; give its path or MLModel, which is then "
            "loaded in float32 and as declared"
        )
    wide = load(model, function, device=device)
    narrow = load(model, function, precision="as_declared", device=device)
    if not (isinstance(wide, Program) and isinstance(narrow, Program)):
        raise ConfigError(
            "float16 is compared in an ML program, but the model is a pipeline; give one of the "
            "models that it is made of"
        )
    return wide, narrow
