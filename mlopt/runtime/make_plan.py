"""How an execution plan is made: names are resolved, and all is checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mlopt.errors import ModelFormatError
from mlopt.mil.dtypes import dtype_of_proto
from mlopt.mil.program import Constant, Function, Node, Variable
from mlopt.mil.program import Program as MILProgram
from mlopt.runtime.call import OutputType
from mlopt.runtime.element_types import ElementTypes
from mlopt.runtime.plan import Body, FunctionPlan, Lazy, Source, Step, slots_read
from mlopt.runtime.registry import InputSpec, Operation, find_operation
from mlopt.runtime.sizes import check_elements
from mlopt.runtime.state import state_problem
from mlopt.runtime.weights.constants import Held
from mlopt.runtime.weights.scratch import aligned
from mlopt.text.names import SHORTLIST, shortlist
from mlopt.text.words import counted


def plan_function(
    program: MILProgram, function: Function, types: ElementTypes, device: torch.device
) -> FunctionPlan:
    """Plan the execution of a function.

    Raises
    ------
    ModelFormatError
        It has operations that cannot be run, names that are not defined where they are used, or
        inputs that its operations lack; all of them are listed.
    """
    nodes = [node for node in program.nodes() if node.function == function.name]
    where = f"{program.files.root}: function {function.name!r}"
    _check_operations(nodes, function.opset, where)
    return _Planning(function, nodes, types, device, where).plan()


def _check_operations(nodes: Sequence[Node], opset: str, where: str) -> None:
    missing: dict[str, list[str]] = {}
    for node in nodes:
        if node.op_type != "const" and find_operation(node.op_type, opset) is None:
            missing.setdefault(node.op_type, []).append(node.name or "(unnamed)")
    if not missing:
        return
    lines = [
        f"- {op_type}, {counted(len(names), 'time')}: {shortlist(names)}"
        for op_type, names in missing.items()
    ]
    raise ModelFormatError(
        f"{where}: operations of opset {opset} that cannot be run:\n" + "\n".join(lines) + "\n"
        "`python -m mlopt.runtime` lists the operations that can"
    )


class _Planning:
    def __init__(
        self,
        function: Function,
        nodes: list[Node],
        types: ElementTypes,
        device: torch.device,
        where: str,
    ) -> None:
        self.function, self.types, self.device, self.where = function, types, device, where
        self.by_message = {id(node.op): node for node in nodes}
        self.sources: dict[int, Source] = {}
        self.names: dict[str, Source] = {}
        self.held: dict[int, Held] = {}
        self.problems: list[str] = []
        self.size = 0

    def plan(self) -> FunctionPlan:
        message, block = self.function.message, self.function.block
        inputs: dict[str, int] = {}
        input_types: dict[str, OutputType] = {}
        state_types: dict[str, OutputType] = {}
        for item in message.inputs:
            is_state = item.type.WhichOneof("type") == "stateType"
            kind = item.type.stateType.wrappedType if is_state else item.type
            declared = output_type(kind, self.where)
            (state_types if is_state else input_types)[item.name] = declared
            problem = state_problem(declared, self.types) if is_state else ""
            if problem:
                self.problems.append(f"state {item.name!r}: {problem}")
            if item.name in inputs:
                self.problems.append(f"two inputs of the function are named {item.name!r}")
            inputs[item.name] = self._slot()
        scope: dict[str, Source] = dict(inputs)
        self.names.update(scope)
        body = self._body(block, scope, ())
        if self.problems:
            shown = "\n".join(f"- {problem}" for problem in self.problems[:SHORTLIST])
            more = len(self.problems) - SHORTLIST
            raise ModelFormatError(
                f"{self.where} cannot be run:\n{shown}"
                + (f"\nand {more} more" if more > 0 else "")
                + "\nThe model is damaged"
            )
        _release(body, set(inputs.values()))
        return FunctionPlan(
            self.function.name,
            self.function.opset,
            inputs,
            input_types,
            state_types,
            tuple(block.outputs),
            body,
            self.names,
            self.size,
            _scratch_size(body),
        )

    def _slot(self) -> int:
        self.size += 1
        return self.size - 1

    def _body(self, block: Any, scope: dict[str, Source], inputs: tuple[int, ...]) -> Body:
        """Return the steps of a block; ``scope`` is its own, and what it defines is added."""
        steps = []
        for op in block.operations:
            step = self._step(self.by_message[id(op)], scope)
            if step is not None:
                steps.append(step)
        outputs = []
        for name in block.outputs:
            source = scope.get(name)
            if source is None:
                self.problems.append(f"the block's output {name!r} is not defined")
                continue
            outputs.append(source)
        return Body(inputs, steps, tuple(outputs))

    def _step(self, node: Node, scope: dict[str, Source]) -> Step | None:  # noqa: C901, PLR0912 - what an operation lacks is noted in the order in which it is met
        names = [variable.name for variable in node.outputs]
        for name in names:
            if name in scope and isinstance(scope[name], int) and node.depth == 0:
                self.problems.append(f"{_title(node)} defines {name!r}, which is defined before it")
        if node.op_type == "const":
            self._define_constant(node, scope)
            return None
        operation = find_operation(node.op_type, self.function.opset)
        assert operation is not None  # checked for all before
        fixed: dict[str, Any] = {}
        arguments: list[tuple[InputSpec, tuple[Source, ...]]] = []
        for name, bound in node.inputs.items():
            if name in ("name", "outputNames"):
                continue
            parameter = operation.parameters.get(name)
            if parameter is None:
                self.problems.append(
                    f"{_title(node)} has an input {name!r}, which it does not take"
                )
                continue
            sources = self._sources(node, name, bound, scope)
            if sources is None or not (sources or parameter.takes_several):
                continue
            if parameter.takes_tensor or not all(isinstance(s, Held) for s in sources):
                arguments.append((parameter, sources))
                continue
            try:
                fixed[name] = parameter.coerce(tuple(s.value() for s in sources))  # type: ignore[union-attr]
            except (TypeError, ValueError) as error:
                self.problems.append(f"{_title(node)}: input {name!r}: {error}")
        given = {*fixed, *(parameter.name for parameter, _ in arguments)}
        lacking = [p.name for p in operation.parameters.values() if p.is_required]
        lacking = [name for name in lacking if name not in given and name not in node.inputs]
        if lacking:
            self.problems.append(f"{_title(node)} lacks its inputs {', '.join(lacking)}")
        outputs = tuple(output_type(v.type, self.where) for v in node.outputs)
        dtypes = tuple(
            self.types.dtype(o.dtype) if self.types.has(o.dtype) else None for o in outputs
        )
        for declared in outputs:
            try:
                check_elements(math.prod(declared.known_shape or ()))
            except ValueError as error:
                self.problems.append(f"{_title(node)}: {error}")
        is_wide = widens(operation, self.types, self.device)
        step = Step(node, operation, outputs, dtypes, fixed, arguments, widens=is_wide)
        step.blocks = tuple(self._nested(nested, scope) for nested in node.op.blocks)
        if step.is_weight:
            for index, variable in enumerate(node.outputs):
                self._define(variable.name, Lazy(step, index), scope)
            return None
        step.results = tuple(self._slot() for _ in names)
        for name, slot in zip(names, step.results, strict=True):
            self._define(name, slot, scope)
        return step

    def _nested(self, block: Any, scope: dict[str, Source]) -> Body:
        inner = dict(scope)
        slots = []
        for item in block.inputs:
            slots.append(self._slot())
            inner[item.name] = slots[-1]
        return self._body(block, inner, tuple(slots))

    def _define(self, name: str, source: Source, scope: dict[str, Source]) -> None:
        scope[name] = source
        self.names[name] = source

    def _define_constant(self, node: Node, scope: dict[str, Source]) -> None:
        for variable in node.outputs:
            if variable.constant is None:
                self.problems.append(f"{_title(node)} has no value")
                continue
            self._define(variable.name, self._hold(variable.constant), scope)

    def _hold(self, constant: Constant) -> Held:
        key = id(constant)
        if key not in self.held:
            self.held[key] = Held(constant, self.types, self.device)
        return self.held[key]

    def _sources(
        self,
        node: Node,
        parameter: str,
        bound: tuple[Variable | Constant | None, ...],
        scope: dict[str, Source],
    ) -> tuple[Source, ...] | None:
        sources: list[Source] = []
        for index, value in enumerate(bound):
            if isinstance(value, Constant):
                sources.append(self._hold(value))
                continue
            name = node.op.inputs[parameter].arguments[index].name if value is None else value.name
            source = scope.get(name)
            if source is None:
                self.problems.append(
                    f"{_title(node)}: its input {parameter!r} is {name!r}, which is not "
                    "defined before it"
                )
                return None
            sources.append(source)
        return tuple(sources)


def widens(operation: Operation, types: ElementTypes, device: torch.device) -> bool:
    """Return whether an operation gets float32 for narrower floats, and results are rounded.

    The CPU has no arithmetic of float16: torch's products and sums of it there are up to 40 times
    slower, and some round in between. What weights decompress to is defined to the bit.
    """
    is_needed = types.precision == "as_declared" and device.type == "cpu"
    is_weight = operation.op_type.startswith("constexpr_")
    return is_needed and not is_weight and not operation.in_half


def output_type(value_type: Any, where: str) -> OutputType:
    """Return the declared type in a ``ValueType``."""
    if value_type.WhichOneof("type") != "tensorType":
        return OutputType("", None)
    tensor = value_type.tensorType
    dtype = dtype_of_proto(tensor.dataType, where).name
    if tensor.rank < 0 or any(d.unknown.variadic for d in tensor.dimensions):
        return OutputType(dtype, None)
    sizes = tuple(
        d.constant.size if d.WhichOneof("dimension") == "constant" else None
        for d in tensor.dimensions
    )
    return OutputType(dtype, sizes)


def _scratch_size(body: Body) -> int:
    """Return the scratch bytes of the step with the largest weights."""
    most = 0
    for step in body.steps:
        most = max([most, *map(_scratch_size, step.blocks)])
        if step.operation.keeps_nothing:
            sources = (source for _, several in step.arguments for source in several)
            most = max(most, sum(_scratch_size_of(s, widens=step.widens) for s in sources))
    return most


def _scratch_size_of(source: Source, *, widens: bool) -> int:
    if isinstance(source, Held):
        return source.scratch_size(widens=widens)
    shape = None if isinstance(source, int) else source.fillable_shape(widens=widens)
    return 0 if shape is None else aligned(math.prod(shape) * torch.float32.itemsize)


def _release(body: Body, own: set[int]) -> None:
    """Record after which step each of a body's own slots is free."""
    kept = {source for source in body.outputs if isinstance(source, int)}
    for step in body.steps:
        own |= set(step.results)
    last: dict[int, int] = {}
    for number, step in enumerate(body.steps):
        for slot in (*slots_read(step), *step.results):
            last[slot] = number
        for nested in step.blocks:
            _release(nested, set())
    released: dict[int, list[int]] = {}
    for slot, number in last.items():
        if slot in own and slot not in kept:
            released.setdefault(number, []).append(slot)
    for number, step in enumerate(body.steps):
        step.released = tuple(released.get(number, ()))


def _title(node: Node) -> str:
    return f"{node.op_type} {node.name!r}"
