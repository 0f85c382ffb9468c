"""Layer comparison: the weights where the error of a model enters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from torch import Tensor

from mlopt.runtime.comparison.answers import pixels_of_anything
from mlopt.runtime.comparison.measures import Distance
from mlopt.runtime.comparison.rows import LayerRow
from mlopt.runtime.execution import Execution
from mlopt.runtime.plan import Lazy, Source, Step
from mlopt.runtime.program import Program


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
class _Layer:
    """Measurements so far of an operation of the reference and its counterpart."""

    step: Step
    other: Step
    entering: Distance = attrs.Factory(Distance)
    so_far: Distance = attrs.Factory(Distance)
    mismatch: str | None = None

    def add(
        self, arguments: Mapping[str, Any], ours: Tensor, theirs: Tensor, shadow: Execution
    ) -> None:
        """Add a sample; ``arguments`` and ``ours`` are the reference's, ``theirs`` the candidate's.

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
        """Return the arguments that replace the reference's: none depends on inputs."""
        return {
            parameter.name: parameter.coerce(tuple(shadow.value(s) for s in sources))
            for parameter, sources in self.other.arguments
            if all(not isinstance(source, int) for source in sources)
        }


def _lengths(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))


def _weights(step: Step) -> tuple[str, ...]:
    """Return the names of the constants of a step with rank 2 or more."""
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
