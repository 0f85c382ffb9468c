"""The operations that can be run: one function each, chosen by type and opset.

A function is registered by :func:`operation`. Its parameters have the names of the operation's
inputs, and their annotations say in what form it takes them:

==========================  ===============================================================
annotation                  what it gets
==========================  ===============================================================
``Tensor``                  a tensor; scalars of rank 0
``Tensors``                 a tuple of tensors, of an input that takes several values
``Indices``                 a tensor, or a constant of unsigned integers that is still packed
``Table``                   a tensor, or a compressed weight of which rows can be computed
``Ints``, ``Bools``, ...    a tuple of Python numbers, of a tensor of rank 1 (or a scalar)
``int``, ``float``, ...     a Python number, of a scalar
``str``                     a string
``Any``                     the value as it is: lists, states, strings
``Call``                    how the operation is called: see :class:`mlopt.runtime.call.Call`
==========================  ===============================================================

A default stands for an input that may be left out. The result is a tensor, or a tuple with one for
each output; its dtype is made that of the declared output.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from mlopt.mil.targets import Target
from mlopt.runtime.call import Call
from mlopt.runtime.weights.packed import Indices, Packed
from mlopt.runtime.weights.row_selection import Rows, RowsOf, Table

Tensors = tuple[Tensor, ...]
Ints = tuple[int, ...]
Floats = tuple[float, ...]
Bools = tuple[bool, ...]

_OPSETS = [target.opset for target in Target]
FIRST_OPSET = _OPSETS[0]

Coercion = Callable[[tuple[Any, ...]], Any]
"""Function from the values that are bound to an input to an argument."""


Fill = Callable[[Tensor, torch.dtype, dict[str, Any]], bool]
"""Function from memory for the result, float32 on the CPU, the dtype that is widened there, and all
arguments to whether it was filled; where arguments do not fit, the operation itself says so."""


@attrs.frozen(eq=False)
class InputSpec:
    """One input of an operation: its name, conversion of its value, whether it is optional.

    takes_tensor: rather than Python numbers; takes_packed: constants in their stream; takes_rows:
    compressed weights as they are.
    """

    name: str
    coerce: Coercion
    is_required: bool
    takes_several: bool
    takes_tensor: bool
    takes_packed: bool
    takes_rows: bool


@attrs.frozen(eq=False)
class Operation:
    """The definition of an operation from an opset on.

    Parameters
    ----------
    op_type, since
        The operation's type, and the first opset that this definition is for.
    function
        It computes the operation.
    parameters
        The inputs by name.
    call_parameter
        The parameter of the function that takes a ``Call``; None if it has none.
    moves_only
        The results are elements of the inputs as they are. Constants need not be widened for it.
    rows
        A function that computes some rows of the result without the others; None if there is none.
    fill
        A function that computes the result in float32 in memory of its shape; see ``Fill``.
    declared_loosely
        The shapes that coremltools declares for the result can be wrong. The computed one counts.
    keeps_nothing
        The result never shares memory with the inputs. Their memory can be used again after it.
    in_half
        On the CPU too, float16 is computed in float16: elements are only moved, or one kernel of
        torch is as fast as in float32 and rounds once. All other operations get float32 there, and
        their results are rounded.
    """

    op_type: str
    since: str
    function: Callable[..., Any]
    parameters: dict[str, InputSpec]
    call_parameter: str | None
    moves_only: bool
    rows: RowsOf | None
    fill: Fill | None
    declared_loosely: bool
    keeps_nothing: bool
    in_half: bool


_REGISTRY: dict[str, dict[str, Operation]] = {}


def operation(
    op_type: str,
    *,
    since: str = FIRST_OPSET,
    moves_only: bool = False,
    rows: RowsOf | None = None,
    fill: Fill | None = None,
    declared_loosely: bool = False,
    keeps_nothing: bool = False,
    in_half: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as an operation, from an opset on (until a newer definition).

    The flags: see :class:`Operation`.
    """
    if since not in _OPSETS:
        raise ValueError(f"since must be one of {_OPSETS}, got {since!r}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        by_opset = _REGISTRY.setdefault(op_type, {})
        if since in by_opset:
            raise ValueError(f"{op_type} of {since} is registered twice")
        parameters, call_parameter = _parameters(op_type, function)
        by_opset[since] = Operation(
            op_type,
            since,
            function,
            parameters,
            call_parameter,
            moves_only=moves_only,
            rows=rows,
            fill=fill,
            declared_loosely=declared_loosely,
            keeps_nothing=keeps_nothing,
            in_half=in_half,
        )
        return function

    return register


def find_operation(op_type: str, opset: str) -> Operation | None:
    """Return the definition of an operation in an opset; None if it cannot be run there."""
    newest = None
    for since in _OPSETS[: _OPSETS.index(opset) + 1]:
        newest = _REGISTRY.get(op_type, {}).get(since, newest)
    return newest


def registered_operations() -> dict[str, tuple[Operation, ...]]:
    """Return all operations by type, oldest definition first."""
    return {
        op_type: tuple(by_opset[since] for since in _OPSETS if since in by_opset)
        for op_type, by_opset in sorted(_REGISTRY.items())
    }


def _parameters(
    op_type: str, function: Callable[..., Any]
) -> tuple[dict[str, InputSpec], str | None]:
    """Return the inputs of an operation from its function, and which parameter takes a ``Call``."""
    hints = typing.get_type_hints(function)
    parameters, call_parameter = {}, None
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _without_none(hints[name])
        if kind is Call:
            call_parameter = name
            continue
        if kind not in _COERCIONS:
            raise TypeError(f"{op_type}: {name} is annotated with {hints[name]}")
        is_required = parameter.default is inspect.Parameter.empty
        parameters[name] = InputSpec(
            name,
            _COERCIONS[kind],
            is_required,
            takes_several=kind == Tensors,
            takes_tensor=kind in (Tensor, Tensors, Indices, Table),
            takes_packed=kind == Indices,
            takes_rows=kind == Table,
        )
    return parameters, call_parameter


def _without_none(annotation: Any) -> Any:
    others = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    return (
        others[0] if type(None) in typing.get_args(annotation) and len(others) == 1 else annotation
    )


def _one(values: tuple[Any, ...]) -> Any:
    (value,) = values
    return value


def _tensor(values: tuple[Any, ...]) -> Tensor:
    value = _one(values)
    if not isinstance(value, Tensor):
        raise TypeError(f"a tensor is needed, got {type(value).__name__}")
    return value


def _tensor_or(kind: type) -> Coercion:
    def coerce(values: tuple[Any, ...]) -> Any:
        value = _one(values)
        return value if isinstance(value, kind) else _tensor(values)

    return coerce


def _tensors(values: tuple[Any, ...]) -> Tensors:
    if not all(isinstance(value, Tensor) for value in values):
        raise TypeError("tensors are needed")
    return values


def _number(value: Any) -> Any:
    tensor = _tensor((value,))
    if tensor.numel() != 1:
        raise ValueError(f"a scalar is needed, got a tensor of shape {list(tensor.shape)}")
    return tensor.item()


def _scalar(kind: type) -> Coercion:
    def coerce(values: tuple[Any, ...]) -> Any:
        return kind(_number(_one(values)))

    return coerce


def _row(kind: type) -> Coercion:
    def coerce(values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(values) > 1:
            return tuple(kind(_number(value)) for value in values)
        value = _tensor(values)
        if value.dim() > 1:
            raise ValueError(f"a tensor of rank 1 is needed, got shape {list(value.shape)}")
        return tuple(map(kind, value.reshape(-1).tolist()))

    return coerce


def _string(values: tuple[Any, ...]) -> str:
    value = _one(values)
    if not isinstance(value, str):
        raise TypeError(f"a string is needed, got {type(value).__name__}")
    return value


def _any(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


_COERCIONS: dict[Any, Coercion] = {
    Tensor: _tensor,
    Tensors: _tensors,
    Indices: _tensor_or(Packed),
    Table: _tensor_or(Rows),
    Ints: _row(int),
    Floats: _row(float),
    Bools: _row(bool),
    int: _scalar(int),
    float: _scalar(float),
    bool: _scalar(bool),
    str: _string,
    Any: _any,
}
