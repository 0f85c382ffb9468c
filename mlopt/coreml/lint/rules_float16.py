"""Rules about float16: values that overflow or vanish in it, whatever the inputs are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlopt.coreml.lint.findings import Place
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.subject import Subject, constant_inputs
from mlopt.mil.dtypes import dtype_of_proto
from mlopt.mil.program import Constant, Consumer, Node, Program, Variable

_MEASURE = "`mlopt compare --float16 MODEL` shows on inputs of yours whether it does"
_CHUNK = 1 << 20  # elements that are looked at together
_ROUNDED_UP = 65520.0  # the least number that is infinite in float16

_WITH_EPSILON = (
    *("batch_norm", "instance_norm", "layer_norm", "l2_norm"),
    *("inverse", "log", "rsqrt"),
)
_MOVING = (
    *("expand_dims", "identity", "reshape", "slice_by_index", "squeeze", "tile", "transpose"),
)
_SUMS = ("reduce_mean", "reduce_sum")
_MULTIPLYING = ("batch_norm", "conv", "conv_transpose", "linear", "matmul", "mul", "real_div")
_ADDING = ("add", "select", "sub")
_CARRYING = (*_MOVING, *_ADDING, "concat", "mul", "neg", "stack")
_GUARDED = {"log": "x", "real_div": "y", "rsqrt": "x", "sqrt": "x", "inverse": "x"}
"""Operations that are infinite or NaN where a parameter is zero, or less."""


@rule(
    "epsilon-lost-in-float16",
    severity="warning",
    remedy="convert again with an epsilon of 1e-4 or more where float16 is computed, or keep the "
    f"operation in float32; {_MEASURE}",
)
def epsilon_lost_in_float16(subject: Subject) -> Iterator[Hit]:
    """A float16 epsilon that is zero, as numbers of 1e-8 and below are in float16.

    The epsilon protects a root, a logarithm or a division from zero. Squares of numbers below
    1.7e-4 are zero in float16 as well, so a row of small numbers becomes infinite or NaN.
    """
    for program, function, nodes in _functions(subject):
        lost = [node for node in nodes if _has_lost_epsilon(node)]
        if lost:
            yield Hit("the epsilon is 0 in float16", _place(program, function, lost))


@rule(
    "beyond-float16",
    severity="note",
    certainty="reported",
    source="apple/coremltools #2669",
    remedy="write masks with a number that float16 has, such as -1e4, instead of an infinity or "
    f"the least float32; {_MEASURE}",
)
def beyond_float16(subject: Subject) -> Iterator[Hit]:
    """A constant that is infinite in float16, or becomes infinite when it is cast.

    A fully masked row is then -inf throughout, and its softmax is NaN. A constant mask that leaves
    a number in each row, such as a causal mask, is not reported. Infinity times zero is NaN too (a
    warning).
    """
    for program, function, nodes in _functions(subject):
        for kind, consumers in _beyond(program, nodes).items():
            what, severity = _BEYOND[kind]
            place = _place(program, function, [consumer.node for consumer in consumers])
            yield Hit(what, place, severity=severity)


@rule(
    "squares-in-float16",
    severity="note",
    certainty="reported",
    source="apple/coremltools #2585",
    remedy="divide by the largest magnitude before squaring, or write the norm with reduce_l2_norm "
    f"or layer_norm; {_MEASURE}",
)
def squares_in_float16(subject: Subject) -> Iterator[Hit]:
    """Sums or means of squares computed in float16, as in a hand-written RMS norm.

    The square of a number above 256 is infinite in float16, and so is the norm; anything divided by
    it is zero. Activations of language models and descriptors of unnormalized images reach that.
    """
    for program, function, nodes in _functions(subject):
        squares = [node for node in nodes if _is_sum_of_squares(node)]
        if squares:
            yield Hit("squares are summed in float16", _place(program, function, squares))


@rule(
    "exponentials-in-float16",
    severity="warning",
    certainty="reported",
    source="apple/coremltools #2687, #2690 and #2728",
    remedy="write softplus as max(x, 0) + log(1 + exp(-|x|)), and the other two as x - max(x) - "
    f"log(sum(exp(x - max(x)))), or keep them in float32; {_MEASURE}",
)
def exponentials_in_float16(subject: Subject) -> Iterator[Hit]:
    """Softplus, the logarithm of a sum of exponentials, or of a softmax, in float16.

    The Neural Engine computes exp(x) in float16, which is infinite for x above 11.1: softplus and
    reduce_log_sum_exp drop to 0 there. Results of a softmax below 6e-8 are zero, and their
    logarithm is -inf.
    """
    for program, function, nodes in _functions(subject):
        for op_type in ("softplus", "softplus_parametric", "reduce_log_sum_exp"):
            found = [node for node in nodes if node.op_type == op_type and _is_half(node)]
            if found:
                yield Hit(f"{op_type} in float16", _place(program, function, found))
        found = [node for node in nodes if _is_log_of_softmax(node)]
        if found:
            yield Hit("the logarithm of a softmax in float16", _place(program, function, found))


_FIXED, _MULTIPLIED, _CAST = "added", "multiplied", "cast"
_BEYOND: dict[str, tuple[str, Any]] = {
    _FIXED: ("float16 constants that are added hold rows of infinities", None),
    _MULTIPLIED: ("float16 constants that are multiplied hold infinities", "warning"),
    _CAST: ("float32 constants beyond 65504 go into results that are cast to float16", None),
}


def _functions(subject: Subject) -> Iterator[tuple[Program, str, list[Node]]]:
    """The operations of each function of each program, without constants."""
    for program, nodes in zip(subject.package.programs, subject.nodes, strict=True):
        for function in program.functions:
            own = (node for node in nodes if node.function == function.name)
            yield program, function.name, [node for node in own if node.op_type != "const"]


def _place(program: Program, function: str, nodes: Sequence[Node]) -> Place:
    shown = dict.fromkeys(f"{node.op_type}({node.name})" for node in nodes)
    return Place(
        model=program.label,
        functions=(function,),
        operations=tuple(shown),
        names=frozenset(node.name for node in nodes),
    )


def _dtype(value_type: Any) -> str:
    """The element type of a tensor of any shape; "" if it is not a tensor."""
    if value_type.WhichOneof("type") != "tensorType":
        return ""
    return dtype_of_proto(value_type.tensorType.dataType).name


def _is_half(node: Node) -> bool:
    return bool(node.outputs) and _dtype(node.outputs[0].type) == "fp16"


def _maker(node: Node, parameter: str) -> Node | None:
    """The operation that a parameter comes from, those passed over that move elements."""
    bound = node.inputs.get(parameter, ())
    while len(bound) == 1 and isinstance(bound[0], Variable) and bound[0].node is not None:
        maker = bound[0].node
        if maker.op_type not in _MOVING:
            return maker
        bound = maker.inputs.get("x", ())
    return None


def _scalar(constant: Constant | None) -> float | None:
    """The number of a float16 constant of one element; None for all others."""
    if constant is None or constant.dtype != "fp16" or constant.size != 1:
        return None
    return float(np.asarray(constant.value()).reshape(-1)[0])


def _has_lost_epsilon(node: Node) -> bool:
    if node.op_type in _WITH_EPSILON:
        return _is_half(node) and _scalar(node.constant_input("epsilon")) == 0.0
    # x + 0 and max(x, 0) in front of what must not be zero
    if node.op_type not in ("add", "maximum") or not _is_half(node):
        return False
    if not any(_scalar(node.constant_input(parameter)) == 0.0 for parameter in ("x", "y")):
        return False
    return any(
        _GUARDED.get(user.op_type) == user.parameter
        for output in node.outputs
        for user in output.consumers
    )


def _is_sum_of_squares(node: Node) -> bool:
    if not _is_half(node):
        return False
    if node.op_type == "reduce_sum_square":
        return True
    maker = _maker(node, "x") if node.op_type in _SUMS else None
    if maker is None or not _is_half(maker):
        return False
    if maker.op_type == "mul":
        x, y = (maker.inputs.get(parameter, (None,)) for parameter in ("x", "y"))
        return isinstance(x[0], Variable) and x[0] is y[0]
    if maker.op_type == "pow":
        return _scalar(maker.constant_input("y")) == 2.0
    return maker.op_type == "square"


def _is_log_of_softmax(node: Node) -> bool:
    if node.op_type != "log" or not _is_half(node):
        return False
    maker = _maker(node, "x")
    return maker is not None and maker.op_type == "softmax" and _is_half(maker)


def _beyond(program: Program, nodes: list[Node]) -> dict[str, list[Consumer]]:
    """The uses of constants that float16 does not hold, by how they are used."""
    found: dict[str, list[Consumer]] = {}
    seen: dict[object, bool] = {}
    for node in nodes:
        for parameter, constant in constant_inputs(node):
            kind = _use(node, parameter, constant)
            if kind is None:
                continue
            key = (constant.storage or id(constant), kind)
            if key not in seen:
                seen[key] = _is_beyond(constant, kind)
            if seen[key] and (kind != _CAST or _reaches_cast(node)):
                found.setdefault(kind, []).append(Consumer(node, parameter))
    return found


def _use(node: Node, parameter: str, constant: Constant) -> str | None:
    """How a constant is used where it should not be infinite; None elsewhere."""
    if constant.dtype == "fp16" and node.op_type in _MULTIPLYING:
        # a number over infinity is zero
        is_divisor = node.op_type == "real_div" and parameter == "y"
        return None if is_divisor else _MULTIPLIED
    if constant.dtype == "fp16" and node.op_type in _ADDING:
        return _FIXED
    if constant.dtype == "fp32" and node.op_type in ("cast", "mul", *_ADDING):
        return _CAST
    return None


def _reaches_cast(node: Node) -> bool:
    """Whether an operation casts to float16, or its result gets to one that does."""
    waiting, seen = [node], {id(node)}
    while waiting:
        here = waiting.pop()
        if here.op_type == "cast":
            if _is_half(here):
                return True
            continue
        if here.op_type not in _CARRYING:
            continue
        for user in (user for output in here.outputs for user in output.consumers):
            if id(user.node) not in seen:
                seen.add(id(user.node))
                waiting.append(user.node)
    return False


def _is_beyond(constant: Constant, kind: str) -> bool:
    """Whether a constant has what is told of its use.

    Of what is multiplied an infinity, of what is added a row of nothing else (one that hides the
    future leaves a number in each row), of float32 a number that float16 does not have.
    """
    width = constant.shape[-1] if constant.shape else 1
    step = max(_CHUNK // max(width, 1), 1)
    rows = np.asarray(constant.value()).reshape(-1, max(width, 1))
    found = any(_has_beyond(rows[at : at + step], kind) for at in range(0, len(rows), step))
    constant.release()
    return found


def _has_beyond(rows: npt.NDArray[Any], kind: str) -> bool:
    if kind == _CAST:
        return bool((np.abs(rows) >= _ROUNDED_UP).any())
    # by its bits: numpy computes with float16 slowly
    is_infinite = (np.ascontiguousarray(rows).view(np.uint16) & 0x7FFF) == 0x7C00
    return bool((is_infinite.all(1) if kind == _FIXED else is_infinite).any())
