"""How far the outputs of two models are apart, and which weights are to blame."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import ConfigError, InputError
from mlopt.runtime.answers import (
    answer,
    blamed,
    colours,
    is_image,
    is_one_row,
    label_names,
    pixels_of_anything,
    score_names,
)
from mlopt.runtime.element_types import Precision
from mlopt.runtime.execution import Execution
from mlopt.runtime.measures import Agreement, Distance
from mlopt.runtime.plan import Lazy, Source, Step
from mlopt.runtime.program import Pipeline, Program, load
from mlopt.runtime.samples import checked_seed, random_samples

Predict = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_LISTED = 10
"""Labels of classes that a message lists; it counts the others."""


@attrs.frozen
class OutputRow:
    """One output: its distance, and for scores of classes how often the answers agree."""

    name: str
    distance: Distance
    agreement: Agreement | None


@attrs.frozen
class LabelRow:
    """A label of a class, which is no number to measure: of ``samples``, how many are ``equal``.

    Labels of scores that hold NaN are not.
    """

    name: str
    samples: int
    equal: int


@attrs.frozen
class LayerRow:
    """One operation with a weight.

    entering: the error of its outputs by its own weight, with the reference's activations in front;
    so_far: that of its outputs in the candidate, all errors before it included; mismatch: why one
    of them or both could not be measured, such as other shapes, None where they could.
    """

    name: str
    op_type: str
    weights: tuple[str, ...]
    entering: Distance
    so_far: Distance
    mismatch: str | None = None


@attrs.frozen
class Comparison:
    """What :func:`compare` found.

    unmatched: outputs of weighted operations of the reference that the candidate does not have.
    """

    samples: int
    outputs: tuple[OutputRow, ...]
    layers: tuple[LayerRow, ...] = ()
    unmatched: tuple[str, ...] = ()
    labels: tuple[LabelRow, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as text."""
        return {
            "samples": self.samples,
            "outputs": [
                {"name": row.name, **_plain(row.distance), **_agreement(row.agreement)}
                for row in self.outputs
            ],
            "labels": [attrs.asdict(row) for row in self.labels],
            "layers": [
                {
                    "name": row.name,
                    "op_type": row.op_type,
                    "weights": list(row.weights),
                    "entering": _plain(row.entering),
                    "so_far": _plain(row.so_far),
                    "mismatch": row.mismatch,
                }
                for row in self.layers
            ],
            "unmatched": list(self.unmatched),
        }

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def __str__(self) -> str:
        from mlopt.runtime.comparison_text import comparison_text

        return comparison_text(self)


def compare(
    reference: Any,
    candidate: Any,
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

    Images are measured as they are before they become pixels (those of a pipeline: as pixels,
    without alpha). The best classes are compared of the probabilities of a classifier, and of
    outputs of one row of floats that come out of a softmax, a sigmoid or a layer's sums.

    Parameters
    ----------
    reference, candidate
        Paths or ``MLModel``, or what ``load`` gave: a model as it was, and what compression has
        made of it. Inputs and outputs have the same names and shapes.
    samples
        Dictionaries of inputs, as for ``predict``, or one of them. None: ``random`` ones, drawn
        with ``seed``.
    layers
        Whether to look for where the error enters, weight by weight: ML programs only.
    function, precision, device
        As for :func:`mlopt.runtime.load`, of models that are not loaded yet.

    Raises
    ------
    ConfigError
        The models have different outputs or classes, or ``layers`` is asked of a pipeline.
    InputError
        Samples are no dictionaries of the models' inputs, there are none, or ``random`` or ``seed``
        are not what they can be.

    Errors of one of the models say which.
    """
    seed = checked_seed(seed)
    checked = None if samples is None else _checked_samples(samples)
    first, second = _loaded(reference, candidate, function, precision, device)
    given = random_samples(first, random, seed) if checked is None else checked
    found = compare_outputs(
        lambda data: answer(first, data, seed),
        lambda data: answer(second, data, seed),
        given,
        labels=label_names(first),
        scores=score_names(first),
    )
    if not layers:
        return found
    if not (isinstance(first, Program) and isinstance(second, Program)):
        raise ConfigError("layers can be compared of ML programs, got a pipeline")
    rows, unmatched = compare_layers(first, second, given, seed)
    return attrs.evolve(found, layers=rows, unmatched=unmatched)


def compare_outputs(
    reference: Predict,
    candidate: Predict,
    samples: Sequence[Mapping[str, Any]],
    *,
    labels: Collection[str] = (),
    scores: Collection[str] = (),
) -> Comparison:
    """Measure how far the outputs of two functions of inputs are apart.

    labels: names of outputs that are labels of classes (texts always are); scores: of those whose
    best classes are compared where they have one row (dictionaries of probabilities always are).
    """
    if not samples:
        raise InputError("there are no samples to compare the models on")
    sums = _Sums(frozenset(labels), frozenset(scores))
    for sample in samples:
        with blamed("reference"):
            wanted = reference(sample)
        with blamed("candidate"):
            found = candidate(sample)
        if wanted.keys() != found.keys():
            raise ConfigError(
                f"the models have different outputs: {', '.join(wanted)} and {', '.join(found)}"
            )
        sums.add(wanted, found)
    return Comparison(len(samples), sums.rows(), labels=sums.label_rows(len(samples)))


def compare_layers(
    reference: Program, candidate: Program, samples: Iterable[Mapping[str, Any]], seed: int = 0
) -> tuple[tuple[LayerRow, ...], tuple[str, ...]]:
    """Measure each weighted operation of the reference against the candidate's of the same name.

    Operations in nested blocks are left out.
    """
    counterparts = {_output(step): step for step in candidate.plan.body.steps}
    weighted = [step for step in reference.plan.body.steps if _weights(step)]
    layers = {
        id(step): _Layer(step, counterparts[_output(step)])
        for step in weighted
        if _output(step) in counterparts
    }
    names = [_output(layer.step) for layer in layers.values()]

    for sample in samples:
        with pixels_of_anything():
            in_candidate = candidate.run(sample, candidate.make_state(), taps=names, seed=seed).taps
        shadow = candidate.execution(seed)

        def watch(
            execution: Execution,
            step: Step,
            arguments: Mapping[str, Any],
            results: tuple[Any, ...],
            in_candidate: Mapping[str, Any] = in_candidate,
            shadow: Execution = shadow,
        ) -> None:
            if id(step) in layers:
                theirs = in_candidate[_output(step)]
                layers[id(step)].add(arguments, results[0], theirs, shadow)

        with pixels_of_anything():
            reference.run(sample, reference.make_state(), observer=watch, seed=seed)
    rows = tuple(layer.row() for layer in layers.values())
    return rows, tuple(_output(step) for step in weighted if _output(step) not in counterparts)


@attrs.define(eq=False)
class _Sums:
    """What is known of the outputs so far."""

    labels: frozenset[str]
    scores: frozenset[str]
    distances: dict[str, Distance] = attrs.Factory(dict)
    agreements: dict[str, Agreement] = attrs.Factory(dict)
    equal_labels: Counter[str] = attrs.Factory(Counter)

    def add(self, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        # the best of scores among which is NaN means nothing
        is_known = not any(map(_holds_nan, (*wanted.values(), *found.values())))
        for name, value in wanted.items():
            if name in self.labels or isinstance(value, str):
                self.equal_labels[name] += is_known and value == found[name]
            else:
                self._measure(name, value, found[name])

    def _measure(self, name: str, wanted: Any, found: Any) -> None:
        a, b = _comparable(name, wanted, found)
        try:
            self.distances.setdefault(name, Distance()).add(a, b)
        except ValueError as error:
            raise ConfigError(f"output {name!r}: {error}") from error
        is_row = name in self.scores and is_one_row(wanted)
        if is_row or (isinstance(wanted, Mapping) and len(wanted) > 1):
            self.agreements.setdefault(name, Agreement()).add(a.reshape(-1), b.reshape(-1))

    def rows(self) -> tuple[OutputRow, ...]:
        return tuple(
            OutputRow(name, distance, self.agreements.get(name))
            for name, distance in self.distances.items()
        )

    def label_rows(self, samples: int) -> tuple[LabelRow, ...]:
        return tuple(LabelRow(name, samples, equal) for name, equal in self.equal_labels.items())


@attrs.define(eq=False)
class _Layer:
    """What is known of an operation of the reference, and of the candidate's, so far."""

    step: Step
    other: Step
    entering: Distance = attrs.Factory(Distance)
    so_far: Distance = attrs.Factory(Distance)
    mismatch: str | None = None

    def add(
        self, arguments: Mapping[str, Any], ours: Tensor, theirs: Tensor, shadow: Execution
    ) -> None:
        """Add a sample; ``arguments`` and ``ours`` of the reference, ``theirs`` of the candidate.

        ``shadow`` runs operations of the candidate.
        """
        if ours.shape != theirs.shape:
            self.mismatch = f"shapes differ {list(ours.shape)} / {list(theirs.shape)}"
            return
        self.so_far.add(ours, theirs)
        if self.step.node.op_type != self.other.node.op_type:
            self.mismatch = f"types differ {self.step.node.op_type} / {self.other.node.op_type}"
            return
        weights = self._weights_of_candidate(shadow)
        for name, weight in weights.items():
            before, after = _lengths(arguments.get(name)), _lengths(weight)
            if before != after:
                self.mismatch = f"{name} differs {before} / {after}"
                return
        own = {n: v for n, v in arguments.items() if n in self.step.operation.parameters}
        self.entering.add(ours, shadow.called(self.other, own | weights)[0])

    def row(self) -> LayerRow:
        node = self.step.node
        return LayerRow(
            node.name,
            node.op_type,
            _weights(self.step),
            self.entering,
            self.so_far,
            self.mismatch,
        )

    def _weights_of_candidate(self, shadow: Execution) -> dict[str, Any]:
        """What takes the place of the reference's arguments: nothing that depends on inputs."""
        return {
            parameter.name: parameter.coerce(tuple(shadow.value(s) for s in sources))
            for parameter, sources in self.other.arguments
            if all(not isinstance(source, int) for source in sources)
        }


def _lengths(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))


def _weights(step: Step) -> tuple[str, ...]:
    """The names of the constants of a step that are matrices or more."""
    return tuple(
        name
        for _, sources in step.arguments
        for source in sources
        if (name := _weight_name(source)) is not None
    )


def _weight_name(source: Source) -> str | None:
    if isinstance(source, int):
        return None
    if isinstance(source, Lazy):
        return source.step.node.name
    return source.name if len(source.shape) > 1 else None


def _output(step: Step) -> str:
    return step.node.outputs[0].name if step.node.outputs else ""


def _loaded(
    reference: Any,
    candidate: Any,
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
    found = []
    for role, model in models.items():
        if not isinstance(model, Program | Pipeline):
            with blamed(role):
                model = load(model, function, precision=precision, device=device)
        found.append(model)
    return found[0], found[1]


def _checked_samples(samples: Any) -> list[Mapping[str, Any]]:
    """Samples as a list: a dictionary is one."""
    wanted = "samples have to be a list of dictionaries of inputs by name, as for predict"
    if isinstance(samples, Mapping):
        return [samples]
    try:
        given = list(samples)
    except TypeError:
        raise InputError(f"{wanted}; got {type(samples).__name__}") from None
    for number, sample in enumerate(given):
        if not isinstance(sample, Mapping):
            raise InputError(f"{wanted}; sample {number} is {type(sample).__name__}")
    return given


def _comparable(name: str, wanted: Any, found: Any) -> tuple[Tensor, Tensor]:
    """Two outputs as tensors; probabilities of classes in the order of the reference."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        _check_classes(name, wanted, found)
        return _row([wanted[key] for key in wanted]), _row([found[key] for key in wanted])
    return _tensor(name, wanted), _tensor(name, found)


def _check_classes(name: str, wanted: Mapping[Any, Any], found: Mapping[Any, Any]) -> None:
    if wanted.keys() == found.keys():
        return
    only = {
        "reference": [label for label in wanted if label not in found],
        "candidate": [label for label in found if label not in wanted],
    }
    parts = [f"in the {role} only: {_some(labels)}" for role, labels in only.items() if labels]
    raise ConfigError(
        f"output {name!r}: the models have different classes; {'; '.join(parts)}. Compare models "
        "of the same classes"
    )


def _some(labels: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, labels[:_LISTED]))
    return shown if len(labels) <= _LISTED else f"{shown} and {len(labels) - _LISTED} more"


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.array(colours(value) if is_image(value) else value, np.float64))
    except (TypeError, ValueError):
        raise ConfigError(
            f"output {name!r} is {type(value).__name__}, which holds no numbers to compare"
        ) from None


def _holds_nan(value: Any) -> bool:
    return isinstance(value, Mapping) and any(math.isnan(score) for score in value.values())


def _plain(distance: Distance) -> dict[str, Any]:
    numbers = {
        "snr_db": distance.snr_db,
        "cosine": distance.cosine,
        "max_absolute": distance.max_absolute,
        "max_relative": distance.max_relative,
    }
    counts = {name: getattr(distance, name) for name in ("elements", "left_out", "mismatched")}
    return {n: v if math.isfinite(v) else str(v) for n, v in numbers.items()} | counts


def _agreement(agreement: Agreement | None) -> dict[str, Any]:
    if agreement is None:
        return {}
    found = {"top1": agreement.top1_share, "not_a_number": agreement.not_a_number}
    return found if agreement.top5_share is None else {**found, "top5": agreement.top5_share}
