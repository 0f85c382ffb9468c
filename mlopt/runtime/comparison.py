"""How far the outputs of two models are apart, and which weights are to blame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import ConfigError, InputError, RunError
from mlopt.runtime.element_types import Precision
from mlopt.runtime.execution import Execution
from mlopt.runtime.measures import Agreement, Distance
from mlopt.runtime.plan import Lazy, Source, Step
from mlopt.runtime.program import Pipeline, Program, load
from mlopt.runtime.samples import random_samples

Predict = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@attrs.frozen
class OutputRow:
    """One output: its distance, and for scores of classes how often the answers agree."""

    name: str
    distance: Distance
    agreement: Agreement | None


@attrs.frozen
class LayerRow:
    """One operation with a weight.

    entering: the error of its outputs by its own weight, with the reference's activations in front;
    so_far: that of its outputs in the candidate, all errors before it included.
    """

    name: str
    op_type: str
    weights: tuple[str, ...]
    entering: Distance
    so_far: Distance


@attrs.frozen
class Comparison:
    """What :func:`compare` found.

    unmatched: outputs of weighted operations of the reference that the candidate does not have.
    """

    samples: int
    outputs: tuple[OutputRow, ...]
    layers: tuple[LayerRow, ...] = ()
    unmatched: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as text."""
        return {
            "samples": self.samples,
            "outputs": [
                {"name": row.name, **_plain(row.distance), **_agreement(row.agreement)}
                for row in self.outputs
            ],
            "layers": [
                {
                    "name": row.name,
                    "op_type": row.op_type,
                    "weights": list(row.weights),
                    "entering": _plain(row.entering),
                    "so_far": _plain(row.so_far),
                }
                for row in self.layers
            ],
            "unmatched": list(self.unmatched),
        }

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    def __str__(self) -> str:
        from mlopt.runtime.comparison_text import comparison_text

        return comparison_text(self)


def compare(
    reference: Any,
    candidate: Any,
    samples: Sequence[Mapping[str, Any]] | None = None,
    *,
    random: int = 8,
    seed: int = 0,
    layers: bool = False,
    function: str | None = None,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> Comparison:
    """Run two models on the same inputs, and measure how far their outputs are apart.

    Parameters
    ----------
    reference, candidate
        Paths or ``MLModel``: a model as it was, and what compression has made of it. Inputs and
        outputs have the same names and shapes.
    samples
        Dictionaries of inputs, as for ``predict``. None: ``random`` ones, drawn with ``seed``.
    layers
        Whether to look for where the error enters, weight by weight: ML programs only.
    function, precision, device
        As for :func:`mlopt.runtime.load`.

    Raises
    ------
    ConfigError
        The models have different outputs, or ``layers`` is asked of a pipeline.
    """
    options: dict[str, Any] = {"function": function, "precision": precision, "device": device}
    first, second = (load(each, **options) for each in (reference, candidate))
    given = random_samples(first, random, seed) if samples is None else list(samples)
    if not given:
        raise InputError("there are no samples to compare the models on")
    rows = compare_outputs(
        lambda data: _predicted(first, data, seed),
        lambda data: _predicted(second, data, seed),
        given,
    )
    if not layers:
        return Comparison(len(given), rows)
    if not (isinstance(first, Program) and isinstance(second, Program)):
        raise ConfigError("layers can be compared of ML programs, got a pipeline")
    found, unmatched = compare_layers(first, second, given, seed)
    return Comparison(len(given), rows, found, unmatched)


def compare_outputs(
    reference: Predict, candidate: Predict, samples: Iterable[Mapping[str, Any]]
) -> tuple[OutputRow, ...]:
    """Measure how far the outputs of two functions of inputs are apart."""
    distances: dict[str, Distance] = {}
    agreements: dict[str, Agreement] = {}
    for sample in samples:
        wanted, found = reference(sample), candidate(sample)
        if wanted.keys() != found.keys():
            raise ConfigError(
                f"the models have different outputs: {', '.join(wanted)} and {', '.join(found)}"
            )
        for name, value in wanted.items():
            a, b = _comparable(value, found[name])
            if a is None or b is None:
                continue
            try:
                distances.setdefault(name, Distance()).add(a, b)
            except ValueError as error:
                raise ConfigError(f"output {name!r}: {error}") from error
            if _are_scores(value):
                agreements.setdefault(name, Agreement()).add(a.reshape(-1), b.reshape(-1))
    return tuple(OutputRow(n, distance, agreements.get(n)) for n, distance in distances.items())


def compare_layers(
    reference: Program, candidate: Program, samples: Iterable[Mapping[str, Any]], seed: int = 0
) -> tuple[tuple[LayerRow, ...], tuple[str, ...]]:
    """Measure each weighted operation of the reference against the candidate's of the same name.

    Operations in nested blocks are left out.
    """
    counterparts = {_output(step): step for step in candidate.plan.body.steps}
    weighted = [step for step in reference.plan.body.steps if _weights(step)]
    matched = [step for step in weighted if _output(step) in counterparts]
    entering = {id(step): Distance() for step in matched}
    so_far = {id(step): Distance() for step in matched}
    names = {_output(step): step for step in matched}

    for sample in samples:
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
            if id(step) not in entering:
                return
            other = counterparts[_output(step)]
            so_far[id(step)].add(results[0], in_candidate[_output(step)])
            own = _with_weights(arguments, step, other, shadow)
            entering[id(step)].add(results[0], shadow.called(other, own)[0])

        reference.run(sample, reference.make_state(), observer=watch, seed=seed)
    rows = tuple(
        LayerRow(
            step.node.name,
            step.node.op_type,
            _weights(step),
            entering[id(step)],
            so_far[id(step)],
        )
        for step in matched
    )
    return rows, tuple(_output(step) for step in weighted if _output(step) not in counterparts)


def _with_weights(
    arguments: Mapping[str, Any], step: Step, other: Step, shadow: Execution
) -> dict[str, Any]:
    """The reference's arguments of a step, with the weights of the candidate's in their places."""
    if step.node.op_type != other.node.op_type:
        raise RunError(
            f"{step.title} of the reference is {other.title} in the candidate; the layers of such "
            "models cannot be compared"
        )
    own = {name: value for name, value in arguments.items() if name in step.operation.parameters}
    for parameter, sources in other.arguments:
        if all(not isinstance(source, int) for source in sources):
            own[parameter.name] = parameter.coerce(tuple(shadow.value(s) for s in sources))
    return own


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


def _predicted(model: Program | Pipeline, data: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    found = model.predict(data, model.make_state(), seed=seed)
    assert isinstance(found, dict)
    return found


def _comparable(a: Any, b: Any) -> tuple[Tensor | None, Tensor | None]:
    """Two outputs as tensors; None for labels, which their probabilities stand for."""
    if isinstance(a, dict):
        keys = list(a)
        return tuple(torch.tensor([float(v[key]) for key in keys]) for v in (a, b))  # type: ignore[return-value]
    if isinstance(a, str) or a is None:
        return None, None
    return torch.from_numpy(np.asarray(a, np.float64)), torch.from_numpy(np.asarray(b, np.float64))


def _are_scores(value: Any) -> bool:
    """Whether an output can be scores of classes: probabilities, or one row of numbers."""
    if isinstance(value, dict):
        return len(value) > 1
    array = np.asarray(value)
    rows = array.size // array.shape[-1] if array.ndim and array.shape[-1] else 0
    return array.dtype.kind == "f" and rows == 1 and array.ndim <= 2 and array.shape[-1] > 1


def _plain(distance: Distance) -> dict[str, Any]:
    numbers = {
        "snr_db": distance.snr_db,
        "cosine": distance.cosine,
        "max_absolute": distance.max_absolute,
        "max_relative": distance.max_relative,
    }
    return {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}


def _agreement(agreement: Agreement | None) -> dict[str, Any]:
    if agreement is None:
        return {}
    share = {"top1": agreement.top1, "top5": agreement.top5}
    return {name: value / agreement.samples for name, value in share.items()}
