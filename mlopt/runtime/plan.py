"""Execution plan of a function: its steps, with every name resolved.

A value has a slot in a frame, a list. A step knows where its arguments are, where its results go,
and which slots are not read after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch

from mlopt.mil.program import Node
from mlopt.runtime.call import OutputType
from mlopt.runtime.element_types import NARROW
from mlopt.runtime.registry import InputSpec, Operation
from mlopt.runtime.weights.constants import Held


@attrs.define(eq=False)
class Lazy:
    """A weight that is computed wherever it is used: an output of a ``constexpr`` operation."""

    step: Step
    index: int

    def fillable_shape(self, *, widens: bool) -> tuple[int, ...] | None:
        """Return the shape of a weight that can be computed in given memory in float32, or None.

        widens: as for ``Step``, of the step that uses it.
        """
        dtype = self.step.dtypes[self.index]
        is_wide = dtype == torch.float32 or (widens and dtype in NARROW.values())
        can_fill = self.step.operation.fill is not None and is_wide
        return self.step.outputs[self.index].known_shape if can_fill else None


Source = int | Held | Lazy
"""The source of a value: a slot in the frame, a constant, a computed weight."""


@attrs.define(eq=False)
class Step:
    """One operation of a function.

    fixed: arguments that are known beforehand; arguments: the sources of the others, by parameter;
    results: a slot for each output, None for one that is not read; blocks: the nested ones;
    released: the slots that are free after it; widens: whether narrower floats are computed in
    float32, and rounded.

    What a run takes its arguments from, worked out once, as runs of small networks take longer
    around operations than in them: ready: ``fixed``, and constants that are kept as computed with;
    constants: the sources of these; slots: the parameters of which a run takes the tensor in a
    slot; others: what is left of ``arguments``. is_weight: whether it decompresses a weight.
    """

    node: Node
    operation: Operation
    outputs: tuple[OutputType, ...]
    dtypes: tuple[torch.dtype | None, ...]
    fixed: dict[str, Any]
    arguments: list[tuple[InputSpec, tuple[Source, ...]]]
    results: tuple[int, ...] = ()
    blocks: tuple[Body, ...] = ()
    released: tuple[int, ...] = ()
    widens: bool = attrs.field(default=False, kw_only=True)
    is_weight: bool = attrs.field(init=False)
    ready: dict[str, Any] = attrs.field(init=False)
    constants: list[tuple[str, Held]] = attrs.field(init=False, factory=list)
    slots: list[tuple[InputSpec, str, int]] = attrs.field(init=False, factory=list)
    others: list[tuple[InputSpec, tuple[Source, ...]]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.is_weight = self.node.op_type.startswith("constexpr_")
        self.ready = dict(self.fixed)
        for parameter, sources in self.arguments:
            takes_one = parameter.takes_tensor and not parameter.takes_several
            source = sources[0] if takes_one and len(sources) == 1 else None
            value = source.ready(widens=self.widens) if isinstance(source, Held) else None
            if isinstance(source, Held) and value is not None:
                self.ready[parameter.name] = value
                self.constants.append((parameter.name, source))
            elif isinstance(source, int):
                self.slots.append((parameter, parameter.name, source))
            else:
                self.others.append((parameter, sources))

    @property
    def title(self) -> str:
        """The operation for a message: ``conv 'layer_1'``."""
        return f"{self.node.op_type} {self.node.name!r}"


@attrs.define(eq=False)
class Body:
    """A block: slots of its inputs, steps, and where its outputs come from."""

    inputs: tuple[int, ...]
    steps: list[Step]
    outputs: tuple[Source, ...]


@attrs.define(eq=False)
class FunctionPlan:
    """A function: its body, the slots of its inputs by name, the names of its outputs.

    sources: of every value by name, the last one of equal names, for taps; ``size``: of a frame;
    scratch_size: the bytes in which the weights of any step can be widened.
    """

    name: str
    opset: str
    inputs: dict[str, int]
    input_types: dict[str, OutputType]
    state_types: dict[str, OutputType]
    outputs: tuple[str, ...]
    body: Body
    sources: dict[str, Source]
    size: int
    scratch_size: int


def slots_read(step: Step) -> Iterator[int]:
    """Return the slots that a step reads, including its blocks."""
    for _, sources in step.arguments:
        yield from _slots(sources)
    for nested in step.blocks:
        yield from _slots(nested.outputs)
        for inner in nested.steps:
            yield from slots_read(inner)


def _slots(sources: Sequence[Source]) -> Iterator[int]:
    for source in sources:
        if isinstance(source, int):
            yield source
        elif isinstance(source, Lazy):
            yield from slots_read(source.step)
