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
from mlopt.runtime.comparison.metrics import metrics_of
from mlopt.runtime.comparison.outputs import compare_outputs
from mlopt.runtime.comparison.paired_boxes import detections_of
from mlopt.runtime.comparison.random_samples import checked_seed, random_samples
from mlopt.runtime.comparison.results import Comparison
from mlopt.runtime.comparison.samples import checked_samples
from mlopt.runtime.comparison.user_metrics import MetricFunction
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
    tokens: str | None = None,
    logits: str | None = None,
    mask: str | None = None,
    classes: str | None = None,
    labels: Any = None,
    metrics: Mapping[str, MetricFunction] | None = None,
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
    tokens, logits
        The input of token ids, [..., T], and the output of logits, [..., T, V] (or [..., V]: of the
        last position), of models that predict the next token. None: recognized where the tokens
        look up rows of a table of V words. Their ``metrics`` are the perplexity of each model, the
        share of positions with the same best token, and the mean Kullback-Leibler divergence of
        the candidate's distribution from the reference's, in nats.
    mask
        An input [..., T] with zeros for the tokens to leave out. None: all count.
    classes
        An output with scores of classes, [..., C] or a dictionary, each row of which is counted:
        the share with the same best class, and the mean share of the best five that are in both.
    labels
        The right class of each sample (of each row of scores): positions in an array of scores, or
        keys of a dictionary of probabilities. Gives the accuracy of both models.
    metrics
        Functions by name of three lists with a dictionary for each sample: the reference's outputs,
        the candidate's (images of programs as tensors, not yet rounded to pixels) and the inputs.
        They return a number about both models, or a tuple of two: one for each. All outputs are
        held in memory until they are called; nothing else holds more than those of one sample.

    Raises
    ------
    ConfigError
        The models have different outputs or classes, ``layers`` is requested for a pipeline, a name
        is not of an input or output that fits, or a function of ``metrics`` returns something else.
    InputError
        Samples are not dictionaries of the models' inputs, there are none, or ``random`` or
        ``seed`` is out of range. Tokens, mask or labels do not fit the outputs.
    RunError
        A model or a function of ``metrics`` failed; the message names it.

    Errors of one of the models name it.
    """
    seed = checked_seed(seed)
    checked = None if samples is None else checked_samples(samples)
    first, second = _loaded(reference, candidate, function, precision, device)
    given = random_samples(first, random, seed) if checked is None else checked
    measured = metrics_of(
        first,
        samples=len(given),
        are_drawn=checked is None,
        tokens=tokens,
        logits=logits,
        mask=mask,
        classes=classes,
        labels=labels,
        metrics=metrics,
    )
    boxes = detections_of(first)
    comparison = compare_outputs(
        lambda data: answer(first, data, seed),
        lambda data: answer(second, data, seed),
        given,
        paired=boxes.paired,
        labels=label_names(first),
        scores=score_names(first),
        ends=ends_of_outputs(first),
        metrics=measured,
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
