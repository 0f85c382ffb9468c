"""The parameters of a constexpr operation, checked against its definition.

Up to CoreML7 parameters stand in the operation's attributes, from CoreML8 on in its inputs, as
values or by the name of a constant or of another constexpr operation. All are read alike here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ModelFormatError
from mlopt.mil.dtypes import dtype_named
from mlopt.mil.program import Constant, Node, Variable
from mlopt.mil.values import tensor_type_of
from mlopt.palette.value.bits import unpack_bits

Array: TypeAlias = npt.NDArray[Any]
TensorType: TypeAlias = tuple[str, tuple[int, ...]]
"""Element type by name, and shape."""

FLOATS = frozenset({"fp16", "fp32"})
BYTES = frozenset({"int8", "uint8"})
NIBBLES = frozenset({"int4", "uint4"})
INDICES = frozenset({"uint1", "uint2", "uint3", "uint4", "uint6", "uint8"})

HIGHEST_RANK = 15
"""Of a tensor. numpy has 32 axes in its version 1, and blocks take two for each."""

_MOST_ELEMENTS = 1 << 48


@attrs.frozen
class Parameter:
    """The definition of one parameter: element types, rank (None: any above 0)."""

    dtypes: frozenset[str]
    rank: int | tuple[int, ...] | None = None
    required: bool = True


@attrs.frozen(eq=False)
class Operand:
    """The value bound to a parameter.

    dtype, shape: as declared; read: returns the values as an array of ``shape``, in which elements
    narrower than a byte take one (int8 for int4, uint8 otherwise). It may be read-only.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Width of an element."""
        return dtype_named(self.dtype).bits


@attrs.frozen(eq=False)
class Parameters:
    """The operands of ``node`` by parameter; optional ones may be absent."""

    node: Node
    operands: Mapping[str, Operand]

    def __getitem__(self, parameter: str) -> Operand:
        return self.operands[parameter]

    def __contains__(self, parameter: str) -> bool:
        return parameter in self.operands

    def integer(self, parameter: str) -> int:
        """The value of a scalar."""
        return int(self[parameter].read())

    def refusal(self, what: str) -> ModelFormatError:
        """An error that says what is wrong with the operation."""
        return refusal(self.node, what)


def refusal(node: Node, what: str) -> ModelFormatError:
    """An error that names an operation, its package, and what is wrong with it."""
    package = next(
        (
            f"{bound.files.root}: "
            for bindings in node.inputs.values()
            for value in bindings
            for bound in (value.constant if isinstance(value, Variable) else value,)
            if bound is not None
        ),
        "",
    )
    return ModelFormatError(
        f"{package}{node.op_type} {node.name!r} of function {node.function!r}: {what}"
    )


def read_parameters(
    node: Node, signature: Mapping[str, Parameter], computed: Callable[[Variable], Array]
) -> Parameters:
    """The operands of ``node``, checked one by one against ``signature``.

    ``computed`` gives the values of a variable that a constexpr operation produces; it is called
    when they are read.

    Raises
    ------
    ModelFormatError
        A parameter is missing, unknown, not computed from constants, or of a wrong type. An
        attribute that is not a parameter is a remark of some tool, and not an error.
    """
    unknown = sorted(set(node.op.inputs) - set(signature))
    if unknown:
        raise refusal(node, f"unknown parameter {unknown[0]!r}; it has {', '.join(signature)}")
    operands = {}
    for name, parameter in signature.items():
        if name in node.inputs:
            operands[name] = _operand(node, name, parameter, computed)
        elif parameter.required:
            raise refusal(node, f"the parameter {name!r} is missing")
    return Parameters(node, operands)


def is_constexpr(node: Node) -> bool:
    """Whether an operation holds a compressed weight."""
    return node.op_type.startswith("constexpr_")


def unpacked(constant: Constant) -> Array:
    """The values of a constant in its shape; elements narrower than a byte take one each.

    int4 becomes int8, the other narrow types uint8. All others: a read-only view.

    Raises
    ------
    ModelFormatError
        The value is damaged.
    """
    dtype = dtype_named(constant.dtype)
    stored: Array = constant.value()
    if not dtype.packed:
        return stored
    codes = unpack_bits(stored, dtype.bits, constant.size).reshape(constant.shape)
    if not constant.dtype.startswith("int"):
        return codes
    # Move the sign bit to the top of the byte, and back with its copies behind it.
    shift = np.uint8(8 - dtype.bits)
    np.left_shift(codes, shift, out=codes)
    signed = codes.view(np.int8)
    return np.right_shift(signed, np.int8(shift), out=signed)


def _operand(
    node: Node, name: str, parameter: Parameter, computed: Callable[[Variable], Array]
) -> Operand:
    bindings = node.inputs[name]
    if len(bindings) != 1:
        raise refusal(node, f"{name} takes one value, got {len(bindings)}")
    bound = bindings[0]
    if isinstance(bound, Variable) and bound.constant is not None:
        bound = bound.constant
    read: Callable[[], Array]
    if isinstance(bound, Constant):
        declared = tensor_type_of(bound.message.type)
        constant = bound
        read = lambda: unpacked(constant)  # noqa: E731
    elif isinstance(bound, Variable) and bound.node is not None and is_constexpr(bound.node):
        declared = tensor_type_of(bound.type)
        variable = bound
        read = lambda: computed(variable)  # noqa: E731
    elif bound is None:
        raise refusal(node, f"{name} is bound to a name that is defined nowhere before it")
    else:
        raise refusal(
            node, f"{name} is computed when the model runs ({bound.name!r}); it must be constant"
        )
    if declared is None:
        raise refusal(node, f"{name} is not a tensor of known shape")
    dtype, shape = declared[0].name, declared[1]
    _check_type(node, name, parameter, dtype, shape)
    if dtype == "string":
        assert isinstance(bound, Constant)
        read = bound.value
    return Operand(dtype, shape, read)


def _check_type(
    node: Node, name: str, parameter: Parameter, dtype: str, shape: tuple[int, ...]
) -> None:
    if dtype not in parameter.dtypes:
        allowed = ", ".join(sorted(parameter.dtypes))
        raise refusal(node, f"{name} has elements of type {dtype}; allowed are {allowed}")
    rank = len(shape)
    if parameter.rank is None:
        fits, wanted = 1 <= rank <= HIGHEST_RANK, f"1 to {HIGHEST_RANK}"
    else:
        ranks = parameter.rank if isinstance(parameter.rank, tuple) else (parameter.rank,)
        fits, wanted = rank in ranks, " or ".join(map(str, ranks))
    if not fits:
        raise refusal(node, f"{name} must be of rank {wanted}, got the shape {list(shape)}")
    if math.prod(shape) > _MOST_ELEMENTS:
        raise refusal(node, f"{name} of shape {list(shape)} cannot be in any file")
