"""Measurement of how far the outputs of two models are apart."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import ConfigError, InputError
from mlopt.runtime.comparison.answers import blamed, colours, is_image, is_one_row
from mlopt.runtime.comparison.content import Ends
from mlopt.runtime.comparison.measures import Agreement, Distance
from mlopt.runtime.comparison.results import Comparison
from mlopt.runtime.comparison.rows import LabelRow, MetricRow, OutputRow
from mlopt.text.names import shortlist

Outputs = Mapping[str, Any]
Paired = Callable[[Outputs, Outputs], tuple[Outputs, Outputs]]
Predict = Callable[[Mapping[str, Any]], Outputs]


class Metric(Protocol):
    """Numbers that models are judged by, accumulated over samples."""

    def add(self, sample: Mapping[str, Any], reference: Outputs, candidate: Outputs) -> None:
        """Add a sample: the inputs, and the outputs of both models."""

    def rows(self) -> Iterable[MetricRow]:
        """Return the numbers, after the last sample."""


def compare_outputs(
    reference: Predict,
    candidate: Predict,
    samples: Sequence[Mapping[str, Any]],
    *,
    paired: Paired = lambda first, second: (first, second),
    labels: Collection[str] = (),
    scores: Collection[str] = (),
    ends: Mapping[str, Ends] | None = None,
    metrics: Sequence[Metric] = (),
    roles: tuple[str, str] = ("reference", "candidate"),
) -> Comparison:
    """Measure how far the outputs of two functions of the inputs are apart.

    paired: turns the outputs of both, whose numbers of rows may differ, into those to measure;
    labels: names of outputs that are labels of classes (strings always are); scores: names of
    outputs whose best classes are compared if they have one row (dictionaries of probabilities
    always are); ends: the range of the elements of some outputs; metrics: what else is
    measured, of the outputs before they are paired; roles: names of the functions in errors.
    """
    if not samples:
        raise InputError("there are no samples to compare the models on")
    sums = _Sums(frozenset(labels), frozenset(scores), ends or {}, _are_all_the_same(samples))
    for sample in samples:
        with blamed(roles[0]):
            first = reference(sample)
        with blamed(roles[1]):
            second = candidate(sample)
        if first.keys() != second.keys():
            raise ConfigError(
                f"the models have different outputs: {', '.join(first)} and {', '.join(second)}"
            )
        sums.add(*paired(first, second))
        for metric in metrics:
            metric.add(sample, first, second)
    return Comparison(
        len(samples),
        sums.rows(),
        labels=sums.label_rows(len(samples)),
        metrics=tuple(row for metric in metrics for row in metric.rows()),
    )


@attrs.define(eq=False)
class _Sums:
    """Measurements of the outputs so far."""

    labels: frozenset[str]
    scores: frozenset[str]
    ends: Mapping[str, Ends]
    samples_are_the_same: bool
    firsts: dict[str, bytes] = attrs.Factory(dict)
    varying: set[str] = attrs.Factory(set)
    distances: dict[str, Distance] = attrs.Factory(dict)
    agreements: dict[str, Agreement] = attrs.Factory(dict)
    equal_labels: Counter[str] = attrs.Factory(Counter)

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        # the best of scores that include NaN means nothing
        is_known = not any(map(_holds_nan, (*reference.values(), *candidate.values())))
        for name, value in reference.items():
            if name in self.labels or isinstance(value, str):
                self.equal_labels[name] += is_known and value == candidate[name]
            else:
                self._measure(name, value, candidate[name])

    def _measure(self, name: str, reference: Any, candidate: Any) -> None:
        a, b = _comparable(name, reference, candidate)
        try:
            self._distance(name).add(a, b)
        except ValueError as error:
            raise ConfigError(f"output {name!r}: {error}") from error
        content = _digest(a)
        if self.firsts.setdefault(name, content) != content:
            self.varying.add(name)
        is_row = name in self.scores and is_one_row(reference)
        if is_row or (isinstance(reference, Mapping) and len(reference) > 1):
            self.agreements.setdefault(name, Agreement()).add(a.reshape(-1), b.reshape(-1))

    def _distance(self, name: str) -> Distance:
        if name not in self.distances:
            self.distances[name] = Distance.within(self.ends.get(name))
        return self.distances[name]

    def rows(self) -> tuple[OutputRow, ...]:
        return tuple(
            OutputRow(
                name,
                distance,
                self.agreements.get(name),
                None if self.samples_are_the_same else name in self.varying,
            )
            for name, distance in self.distances.items()
        )

    def label_rows(self, samples: int) -> tuple[LabelRow, ...]:
        return tuple(LabelRow(name, samples, equal) for name, equal in self.equal_labels.items())


def _are_all_the_same(samples: Sequence[Mapping[str, Any]]) -> bool:
    first, *others = samples
    return all(_is_same(first, other) for other in others)


def _is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if first is second:
        return True
    return first.keys() == second.keys() and all(
        np.array_equal(np.asarray(value), np.asarray(second[name])) for name, value in first.items()
    )


def _digest(values: Tensor) -> bytes:
    """Return a digest that tells outputs of samples apart without keeping them."""
    content = (values.double() + 0.0).contiguous().numpy()  # -0.0 and 0.0 are the same
    return hashlib.blake2b(content.data, digest_size=16).digest()


def _comparable(name: str, reference: Any, candidate: Any) -> tuple[Tensor, Tensor]:
    """Return two outputs as tensors; probabilities of classes in the order of the reference."""
    if isinstance(reference, Mapping) and isinstance(candidate, Mapping):
        _check_classes(name, reference, candidate)
        return _row([reference[key] for key in reference]), _row(
            [candidate[key] for key in reference]
        )
    return _tensor(name, reference), _tensor(name, candidate)


def _check_classes(name: str, reference: Mapping[Any, Any], candidate: Mapping[Any, Any]) -> None:
    if reference.keys() == candidate.keys():
        return
    only = {
        "reference": [label for label in reference if label not in candidate],
        "candidate": [label for label in candidate if label not in reference],
    }
    parts = [f"in the {role} only: {shortlist(labels)}" for role, labels in only.items() if labels]
    raise ConfigError(
        f"output {name!r}: the models have different classes; {'; '.join(parts)}. Compare models "
        "of the same classes"
    )


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.array(colours(value) if is_image(value) else value, np.float64))
    except (TypeError, ValueError):
        raise ConfigError(
            f"output {name!r} is {type(value).__name__}, which has no numbers to compare"
        ) from None


def _holds_nan(value: Any) -> bool:
    return isinstance(value, Mapping) and any(math.isnan(score) for score in value.values())
