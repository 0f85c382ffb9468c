"""Metrics of a comparison: which of them are measured for two models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mlopt.errors import ConfigError
from mlopt.runtime.comparison.answers import probability_names, score_names
from mlopt.runtime.comparison.classes import BestClasses, plain_labels
from mlopt.runtime.comparison.indices import lengths_of_tables
from mlopt.runtime.comparison.next_token import NextToken
from mlopt.runtime.comparison.user_metrics import MetricFunction, UserMetrics, check_functions
from mlopt.runtime.pipeline import Pipeline
from mlopt.runtime.program import Program


def metrics_of(
    model: Program | Pipeline,
    *,
    samples: int,
    are_drawn: bool,
    tokens: str | None = None,
    logits: str | None = None,
    mask: str | None = None,
    classes: str | None = None,
    labels: Any = None,
    metrics: Mapping[str, MetricFunction] | None = None,
) -> list[NextToken | BestClasses | UserMetrics]:
    """Return the metrics of a model and another one with the same inputs and outputs.

    Those of next tokens are measured where tokens and logits are recognized or named, those of
    classes where an output of scores or labels are given. samples: how many there will be;
    are_drawn: whether they are random; all others as for :func:`mlopt.runtime.compare`.

    Raises
    ------
    ConfigError
        A name is not of an input or output, or metrics are not functions.
    InputError
        Labels are not an array of numbers or strings.
    """
    _check_names(model.inputs, "input", tokens=tokens, mask=mask)
    # a program in another model's message may describe nothing
    outputs: Collection[str] = model.outputs
    if isinstance(model, Program) and not model.outputs:
        outputs = model.plan.outputs
    _check_names(outputs, "output", logits=logits, classes=classes)
    vocabularies, probabilities = lengths_of_tables(model), probability_names(model)
    chosen: list[NextToken | BestClasses | UserMetrics] = [
        NextToken(tokens, logits, mask, vocabularies, probabilities, are_drawn)
    ]
    if classes is not None or labels is not None:
        given = None if labels is None else plain_labels(labels)
        chosen.append(BestClasses(classes, score_names(model), given, samples))
    if metrics is not None:
        check_functions(metrics)
        chosen.append(UserMetrics(metrics))
    return chosen


def _check_names(features: Collection[str], what: str, **given: str | None) -> None:
    for option, name in given.items():
        if name is not None and name not in features:
            raise ConfigError(
                f"{option}={name!r}: the reference has no such {what}; its {what}s are "
                f"{', '.join(map(repr, features)) or 'none'}"
            )
