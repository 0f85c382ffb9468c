"""Substitutes: what a run computes with instead of the stored constants and their weights.

A weight is decompressed once for all samples of a step, and is a leaf of their graphs, where its
gradient adds up. One more decompression, with a graph, then turns this gradient into those of the
constants that the weight is made of.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import torch
from torch import Tensor

from mlopt.calibration.feeds import places_of
from mlopt.calibration.tuning.parameters import Parameter
from mlopt.calibration.tuning.tunables import bound_constant, key_of
from mlopt.runtime.plan import Lazy, Source, Step
from mlopt.runtime.program import Program
from mlopt.runtime.weights.constants import Held

Leaves = dict[Source, Tensor]


class Substitutes:
    """The places in a plan where tuned constants, or weights made of them, are read.

    parameters: by key; those that the function does not read are left out.
    """

    def __init__(self, program: Program, parameters: Mapping[Hashable, Parameter]) -> None:
        self.program = program
        self._keys: dict[Held, Hashable] = {}
        self._read: set[Held] = set()
        self._weights: dict[Lazy, frozenset[Hashable]] = {}
        self._of_step: dict[Step, frozenset[Hashable]] = {}
        for place in places_of(program.plan.body):
            self._keys_below(place.step, parameters)
            for _, sources in place.step.arguments:
                self._note(sources)
            self._note(place.body.outputs)
        read = {self._keys[held] for held in self._read}.union(*self._weights.values())
        self.parameters = {key: each for key, each in parameters.items() if key in read}

    def _note(self, sources: tuple[Source, ...]) -> None:
        for source in sources:
            if isinstance(source, Held) and source in self._keys:
                self._read.add(source)
            elif isinstance(source, Lazy):
                keys = self._of_step.get(source.step, frozenset())
                if keys:
                    self._weights[source] = keys

    def _keys_below(self, step: Step, parameters: Mapping[Hashable, Parameter]) -> None:
        """Find the tuned constants that a step reads, and those of the weights that it reads."""
        if step in self._of_step:
            return
        own: set[Hashable] = set()
        for spec, sources in step.arguments:
            for source, bound in zip(sources, step.node.inputs[spec.name], strict=True):
                if isinstance(source, Lazy):
                    self._keys_below(source.step, parameters)
                    own |= self._of_step[source.step]
                constant = bound_constant(bound) if isinstance(source, Held) else None
                if constant is not None and key_of(constant) in parameters:
                    assert isinstance(source, Held)
                    self._keys[source] = key_of(constant)
                    own.add(self._keys[source])
        self._of_step[step] = frozenset(own)

    def leaves(self, *, with_gradients: bool) -> Leaves:
        """Return what to compute with; memory holds all these weights decompressed."""
        with torch.no_grad():
            rounded = {key: each.rounded() for key, each in self.parameters.items()}
            stored = self._bound(rounded)
            leaves: Leaves = {held: stored[held] for held in self._read}
            for weight in self._weights:
                leaves[weight] = self._value(weight, stored)
        if with_gradients:
            for leaf in leaves.values():
                leaf.requires_grad_()
        return leaves

    def gradients(self, leaves: Leaves) -> Iterator[tuple[Parameter, Tensor]]:
        """Yield the gradient of each parameter; those of the leaves are dropped on the way."""
        summed = {key: torch.zeros_like(each.numbers) for key, each in self.parameters.items()}
        for leaf, key in {leaves[held]: self._keys[held] for held in self._read}.items():
            if leaf.grad is not None:
                summed[key] += leaf.grad
        for weight, keys in self._weights.items():
            arrived, leaves[weight].grad = leaves[weight].grad, None
            if arrived is None:
                continue
            with torch.enable_grad():
                own = {key: self.parameters[key].rounded().requires_grad_() for key in keys}
                value = self._value(weight, self._bound(own))
                parts = torch.autograd.grad(value, [*own.values()], arrived, allow_unused=True)
            for key, part in zip(own, parts, strict=True):
                if part is not None:
                    summed[key] += part
        for key, each in self.parameters.items():
            yield each, summed[key]

    def _bound(self, values: Mapping[Hashable, Tensor]) -> Leaves:
        return {held: values[key] for held, key in self._keys.items() if key in values}

    def _value(self, weight: Lazy, stored: Leaves) -> Tensor:
        execution = self.program.execution()
        execution.kept, execution.substitutes = None, stored
        value: Tensor = execution.value(weight)
        return value
