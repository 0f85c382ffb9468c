"""A view of one ML program: functions, operations and constants, names resolved through blocks.

The view reads the protobuf messages and never copies them: what it returns is edited in place. It
is a snapshot; after an edit ask for a new one.
"""

from __future__ import annotations

import math
from collections import ChainMap
from typing import Any

import attrs
import numpy as np

from mlopt.errors import ModelFormatError
from mlopt.mil.dtypes import DType
from mlopt.mil.messages import (
    Block,
    FunctionMessage,
    Model,
    Operation,
    ProgramMessage,
    Value,
    ValueType,
)
from mlopt.mil.values import read_immediate, tensor_type_of
from mlopt.mil.walk import by_key, functions_in_order
from mlopt.mil.weight_files import WeightFiles

#: Offsets of at least this are a writer's own references to blobs that it has stored.
MOVED = 1 << 63


@attrs.define(eq=False, repr=False)
class Function:
    """One function of a program: ``block`` is its body for its own ``opset``."""

    name: str
    message: FunctionMessage

    @property
    def opset(self) -> str:
        """The opset, such as "CoreML5", that all operations of the function belong to."""
        return str(self.message.opset)

    @property
    def block(self) -> Block:
        """The ``Block`` message for the function's opset.

        Raises
        ------
        ModelFormatError
            The function has no body for its own opset.
        """
        bodies = self.message.block_specializations
        if self.opset not in bodies:
            raise ModelFormatError(
                f"function {self.name!r} has opset {self.opset!r} but bodies only for "
                f"{sorted(bodies)}"
            )
        body: Block = bodies[self.opset]
        return body

    def __repr__(self) -> str:
        return f"Function({self.name!r}, {self.opset!r})"


@attrs.define(eq=False, repr=False)
class Variable:
    """A named value with its uses: an output of an operation, or an input of a function or block.

    Attributes
    ----------
    node
        The operation that produces it; None for inputs.
    constant
        The constant, if a const operation produces it.
    consumers
        Its uses as an operation's input, nested blocks included, in program order.
    is_block_output
        Whether some block in which the name is visible returns it.
    """

    name: str
    type: ValueType
    node: Node | None = None
    constant: Constant | None = None
    consumers: list[Consumer] = attrs.Factory(list)
    is_block_output: bool = False

    def __repr__(self) -> str:
        return f"Variable({self.name!r})"


@attrs.define(eq=False, repr=False)
class Node:
    """One operation of a program, with what its parameters are bound to.

    Attributes
    ----------
    op, block, function
        The ``Operation`` message, the ``Block`` message that contains it, and the function's name.
    depth
        0 in a function's own block, 1 in a block of one of its operations, and so on.
    inputs
        What is bound to each parameter: a variable; a constant for a value that is written into the
        operation; or None for an undefined name.
    outputs
        The variables it defines.
    """

    op: Operation
    block: Block
    function: str
    depth: int
    inputs: dict[str, tuple[Variable | Constant | None, ...]] = attrs.Factory(dict)
    outputs: list[Variable] = attrs.Factory(list)

    @property
    def op_type(self) -> str:
        """The operation's type, such as "conv"."""
        return str(self.op.type)

    @property
    def name(self) -> str:
        """The operation's name; if it has none, that of its first output, or ""."""
        return operation_name(self.op)

    def constant_input(self, parameter: str) -> Constant | None:
        """Return the constant bound to ``parameter``; None if it is absent or computed."""
        bound = self.inputs.get(parameter, ())
        if len(bound) != 1 or bound[0] is None:
            return None
        return bound[0] if isinstance(bound[0], Constant) else bound[0].constant

    def scalar(self, parameter: str, default: Any = None) -> Any:
        """Return the constant scalar bound to ``parameter`` as a Python value.

        ``default`` is returned if the parameter is absent.

        Raises
        ------
        ValueError
            The parameter is computed by the program, or is not a scalar.
        """
        if parameter not in self.inputs:
            return default
        constant = self.constant_input(parameter)
        if constant is None or constant.size != 1:
            raise ValueError(f"{self.op_type} {self.name!r}: {parameter} is not a constant scalar")
        return np.asarray(constant.value()).reshape(-1)[0:1].tolist()[0]

    def __repr__(self) -> str:
        return f"Node({self.op_type} {self.name!r})"


@attrs.frozen(eq=False)
class Consumer:
    """One use of a variable: the ``index``-th argument of a parameter of an operation."""

    node: Node
    parameter: str
    index: int = 0

    @property
    def op(self) -> Operation:
        """The ``Operation`` message."""
        return self.node.op

    @property
    def op_type(self) -> str:
        """The operation's type."""
        return self.node.op_type

    @property
    def op_name(self) -> str:
        """The operation's name."""
        return self.node.name

    @property
    def function(self) -> str:
        """The name of the function that the operation is in."""
        return self.node.function


@attrs.define(eq=False, repr=False)
class Constant:
    """A constant: the value of a const operation, or one written into another operation.

    Attributes
    ----------
    name
        For a const operation, the operation's name; otherwise "<operation>.<parameter>".
    node
        The const operation, or the one that the value is written into.
    message
        The ``Value`` message.
    variable
        The name it defines; None for an inline constant.
    inline
        Whether it is written into an operation other than a const: an attribute, or a bound value.
        In an opened package these are not weights, but options of the operation and parts of
        compressed weights; see ``name_bound_values``.
    dtype
        Its element type's name: "fp16", "uint4", "string", ...; "list", "tuple" or "dictionary" for
        values that are not tensors.
    shape
        Its shape; () for scalars and for values that are not tensors.
    files
        The weight files of its package.
    """

    name: str
    node: Node
    message: Value
    files: WeightFiles
    variable: Variable | None
    inline: bool
    parameter: str
    index: int = 0
    _dtype: DType | None = None
    shape: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        typed = tensor_type_of(self.message.type, str(self.files.root / self.files.model_path))
        if typed is not None:
            self._dtype, self.shape = typed

    @property
    def op(self) -> Operation:
        """The ``Operation`` message."""
        return self.node.op

    @property
    def block(self) -> Block:
        """The ``Block`` message that contains the operation."""
        return self.node.block

    @property
    def function(self) -> str:
        """The name of the function that it is in."""
        return self.node.function

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        if self._dtype is not None:
            return self._dtype.name
        return (self.message.type.WhichOneof("type") or "unknown").removesuffix("Type")

    @property
    def numpy_dtype(self) -> np.dtype | None:
        """The dtype of ``value()``; None for strings and for values that are not tensors."""
        return None if self._dtype is None else self._dtype.numpy

    @property
    def size(self) -> int:
        """Number of elements; 0 for values that are not tensors."""
        return 0 if self._dtype is None else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that its elements take in storage; 0 for strings and for non-tensors."""
        return 0 if self._dtype is None else self._dtype.nbytes(self.size)

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """Its uses, including those in nested blocks; for an inline constant its one operation."""
        if self.variable is None:
            return (Consumer(self.node, self.parameter, self.index),)
        return tuple(self.variable.consumers)

    @property
    def is_block_output(self) -> bool:
        """Whether a block returns it."""
        return self.variable is not None and self.variable.is_block_output

    @property
    def storage(self) -> tuple[str, int] | None:
        """Weight file name and offset of its blob; None for a value that is in the message itself.

        Constants share their blob if and only if their keys are equal: the name is the canonical
        one, however the message spells it.
        """
        if self.message.WhichOneof("value") != "blobFileValue":
            return None
        reference = self.message.blobFileValue
        return self.files.canonical_name(reference.fileName), reference.offset

    def value(self) -> Any:
        """Return the value, read-only; a tensor in a weight file as a view of the mapped file.

        See ``read_immediate`` for values in the message itself. Types narrower than a byte come as
        packed bytes, uint8[nbytes]; bf16 as ml_dtypes.bfloat16 if that is installed, else as
        uint16.

        Raises
        ------
        ModelFormatError
            The value is damaged, or its blob does not match its type.
        """
        storage = self.storage
        where = f"{self.files.root}: constant {self.name!r} of function {self.function!r}"
        if storage is None:
            return read_immediate(self.message, where)
        file_name, offset = storage
        if offset >= MOVED:
            raise ValueError(f"{where}: its value has been moved to the package being written")
        blob = self.files.blob(file_name, offset)
        if self._dtype is None or not blob.holds(self._dtype, self.size):
            raise ModelFormatError(
                f"{self.files.root / self.files.path_of(file_name)}: the blob at offset "
                f"{offset} holds {blob.size} {blob.dtype.name} elements, but constant "
                f"{self.name!r} of function {self.function!r} is {self.dtype} of shape "
                f"{list(self.shape)}"
            )
        return blob.data if blob.dtype.packed else blob.elements(self._dtype).reshape(self.shape)

    def release(self) -> None:
        """Drop the pages of its blob from memory; views stay valid and read the file again."""
        storage = self.storage
        if storage is not None and storage[1] < MOVED:
            blob = self.files.blob(*storage)
            self.files.reader(storage[0]).release(blob.data_offset, blob.nbytes)

    def __repr__(self) -> str:
        return (
            f"Constant({self.name!r}, {self.dtype}{list(self.shape)}, function={self.function!r})"
        )


class Program:
    """One ML program of a package.

    Attributes
    ----------
    model
        The ``Model`` message around it: ``specificationVersion``, ``description``, ``mlProgram``.
    files
        The weight files of its package.
    enclosing
        The pipelines around that model, outermost first; empty without a pipeline.
    label
        Its name in the pipeline, "" without one.
    declared_version
        The specification version in the file; if the opset of a function is newer, that of
        ``model`` has been raised to it.
    """

    def __init__(
        self, model: Model, files: WeightFiles, *, enclosing: tuple[Model, ...], label: str
    ) -> None:
        self.model = model
        self.files = files
        self.enclosing = enclosing
        self.label = label
        self.declared_version = int(model.specificationVersion)

    @property
    def message(self) -> ProgramMessage:
        """The ``Program`` message."""
        program: ProgramMessage = self.model.mlProgram
        return program

    @property
    def specification_version(self) -> int:
        """The version of the model that holds the program."""
        return int(self.model.specificationVersion)

    @property
    def functions(self) -> list[Function]:
        """The functions by name, "main" first."""
        return [Function(name, message) for name, message in functions_in_order(self.message)]

    def nodes(self) -> list[Node]:
        """Return all operations of all functions, each before those of its nested blocks."""
        nodes: list[Node] = []
        for function in self.functions:
            names = {item.name: Variable(item.name, item.type) for item in function.message.inputs}
            _Reading(self.files, function.name, nodes).block(function.block, ChainMap(names), 0)
        return nodes

    def constants(self, nodes: list[Node] | None = None) -> list[Constant]:
        """Return every constant in program order.

        These are the values of const operations and, as inline constants, the values that other
        operations carry in bound inputs or (constexpr operations) in attributes.

        ``nodes`` is the result of ``nodes()``, if the caller already has it.
        """
        constants: list[Constant] = []
        for node in self.nodes() if nodes is None else nodes:
            constants.extend(v.constant for v in node.outputs if v.constant is not None)
            constants.extend(
                bound
                for bindings in node.inputs.values()
                for bound in bindings
                if isinstance(bound, Constant)
            )
        return constants

    def __repr__(self) -> str:
        return f"Program({self.label!r}, functions={[f.name for f in self.functions]})"


@attrs.define(eq=False)
class _Reading:
    """One walk through a function, which resolves names and records each use in its variable."""

    files: WeightFiles
    function: str
    nodes: list[Node]

    def block(self, block: Block, scope: ChainMap[str, Variable], depth: int) -> None:
        """Read a block. ``scope`` begins with this block's own names, then those around it."""
        for op in block.operations:
            self._operation(op, block, scope, depth)
        for name in block.outputs:
            if name in scope:
                scope[name].is_block_output = True

    def _operation(
        self, op: Operation, block: Block, scope: ChainMap[str, Variable], depth: int
    ) -> None:
        node = Node(op, block, self.function, depth)
        self.nodes.append(node)
        if op.type != "const":
            for key, value in by_key(op.attributes):
                if key != "name":
                    node.inputs[key] = (self._constant(node, value, key, 0),)
        for key, argument in by_key(op.inputs):
            node.inputs[key] = tuple(
                self._bound(node, binding, key, index, scope)
                for index, binding in enumerate(argument.arguments)
            )
        for nested in op.blocks:
            names = {item.name: Variable(item.name, item.type) for item in nested.inputs}
            self.block(nested, scope.new_child(names), depth + 1)
        for output in op.outputs:
            variable = Variable(output.name, output.type, node)
            node.outputs.append(variable)
            scope[output.name] = variable
        if op.type == "const" and "val" in op.attributes and node.outputs:
            variable = node.outputs[0]
            variable.constant = Constant(
                node.name, node, op.attributes["val"], self.files, variable, False, "val"
            )

    def _bound(
        self, node: Node, binding: Any, parameter: str, index: int, scope: ChainMap[str, Variable]
    ) -> Variable | Constant | None:
        """Return what a binding refers to, and record the use."""
        if binding.WhichOneof("binding") == "value":
            return self._constant(node, binding.value, parameter, index)
        variable = scope.get(binding.name)
        if variable is not None:
            variable.consumers.append(Consumer(node, parameter, index))
        return variable

    def _constant(self, node: Node, value: Value, parameter: str, index: int) -> Constant:
        name = f"{node.name}.{parameter}" + (f"[{index}]" if index else "")
        return Constant(name, node, value, self.files, None, True, parameter, index)


def operation_name(op: Operation) -> str:
    """Return the operation's name attribute; if it has none, its first output's name, or ""."""
    if "name" in op.attributes:
        strings = op.attributes["name"].immediateValue.tensor.strings.values
        if len(strings) == 1:
            return str(strings[0])
    return str(op.outputs[0].name) if len(op.outputs) else ""
