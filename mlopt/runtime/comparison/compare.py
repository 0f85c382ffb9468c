"""Comparison of two models on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from mlopt.choices import Precision
from mlopt.coreml.models import ModelSource
from mlopt.errors import ConfigError
from mlopt.runtime.comparison.answers import answer, blamed, label_names, score_names
from mlopt.runtime.comparison.ends import ends_of_outputs
from mlopt.runtime.comparison.layers import compare_layers
from mlopt.runtime.comparison.outputs import compare_outputs
from mlopt.runtime.comparison.paired_boxes import detections_of
from mlopt.runtime.comparison.random_samples import checked_seed, random_samples
from mlopt.runtime.comparison.results import Comparison
from mlopt.runtime.comparison.samples import checked_samples
from mlopt.runtime.loading import load
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program


def compare(
    reference: ModelSource | Program | Pipeline,
    candidate: ModelSource | Program | Pipeline,
    samples: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    *,
    random: int = 8,
    seed: int = 0,
    layers: bool = False,
    function: str | None = None,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> Comparison:
    """Run two models on the same inputs, and measure how far their outputs are apart.

    Images are measured before they become pixels (those of a pipeline: as pixels, without alpha).
    The best classes are compared for the probabilities of a classifier, and for outputs of one row
    of floats that come out of a softmax, a sigmoid or a layer's sums. Boxes of a detector, whose
    number may differ between the models, are compared in pairs.

    Parameters
    ----------
    reference, candidate
        Paths, ``MLModel`` or results of ``load``: the original model, and the compressed one.
        Inputs and outputs must have the same names and shapes.
    samples
        Dictionaries of inputs, as for ``predict``, or a single one. None: ``random`` samples are
        drawn with ``seed``.
    layers
        Whether to measure where the error enters, weight by weight: ML programs only.
    function, precision, device
        As for :func:`mlopt.runtime.load`, for models that are not loaded yet.

    Raises
    ------
    ConfigError
        The models have different outputs or classes, or ``layers`` is requested for a pipeline.
    InputError
        Samples are not dictionaries of the models' inputs, there are none, or ``random`` or
        ``seed`` is out of range.

    Errors of one of the models name it.
    """
    seed = checked_seed(seed)
    checked = None if samples is None else checked_samples(samples)
    first, second = _loaded(reference, candidate, function, precision, device)
    given = random_samples(first, random, seed) if checked is None else checked
    boxes = detections_of(first)
    comparison = compare_outputs(
        lambda data: answer(first, data, seed),
        lambda data: answer(second, data, seed),
        given,
        paired=boxes.paired,
        labels=label_names(first),
        scores=score_names(first),
        ends=ends_of_outputs(first),
    )
    comparison = attrs.evolve(comparison, detections=boxes.rows())
    if not layers:
        return comparison
    if not (isinstance(first, Program) and isinstance(second, Program)):
        raise ConfigError("layers can be compared for ML programs only, got a pipeline")
    rows, unmatched = compare_layers(first, second, given, seed)
    return attrs.evolve(comparison, layers=rows, unmatched=unmatched)


def _loaded(
    reference: ModelSource | Program | Pipeline,
    candidate: ModelSource | Program | Pipeline,
    function: str | None,
    precision: Precision,
    device: str | torch.device,
) -> tuple[Program | Pipeline, Program | Pipeline]:
    models = {"reference": reference, "candidate": candidate}
    are_loaded = all(isinstance(model, Program | Pipeline) for model in models.values())
    if are_loaded and (function, precision, str(device)) != (None, "float32", "cpu"):
        raise ConfigError(
            "function, precision and device are for models that compare loads, and both are loaded "
            "already; give them to load"
        )
    loaded = []
    for role, model in models.items():
        if not isinstance(model, Program | Pipeline):
            with blamed(role):
                model = load(model, function, precision=precision, device=device)
        loaded.append(model)
    return loaded[0], loaded[1]
