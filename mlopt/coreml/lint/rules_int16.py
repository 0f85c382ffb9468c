"""Rules about narrow integers: casts that cut off what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mlopt.coreml.lint.intervals import Interval, axis_length, declared, given, interval_of
from mlopt.coreml.lint.registry import Hit, rule
from mlopt.coreml.lint.subject import Subject, place_of_node
from mlopt.mil.program import Constant, Consumer, Node, Variable
from mlopt.mil.raising.indices import INDEXED

_RANGES: dict[str, Interval] = {
    "int8": (-(1 << 7), (1 << 7) - 1),
    "uint8": (0, (1 << 8) - 1),
    "int16": (-(1 << 15), (1 << 15) - 1),
    "uint16": (0, (1 << 16) - 1),
}
_FLOATS = ("fp16", "fp32")
_WIDER = ("int32", "uint32", "int64", "uint64")
_MOVING = ("expand_dims", "identity", "reshape", "slice_by_index", "squeeze", "transpose")
_PLACES = ("topk", "reduce_argmax", "reduce_argmin")
"""Operations that say where along an axis something is, in their last output."""


@rule(
    "narrowing-cast",
    severity="warning",
    certainty="reported",
    source="apple/coremltools #2222 and #2626",
    remedy="convert again without what narrows (pass_pipeline.remove_passes({"
    "'common::add_int16_cast'})), or clip in the source what is known to be within the range",
)
def narrowing_cast(subject: Subject) -> Iterator[Hit]:
    """32-bit integers that are cast to fewer bits and do not fit, or may not fit (a note).

    Only the low bits remain: 40,000 becomes -25,536 as int16, and -1 becomes 65,535 as uint16, on
    devices that compute in that type (not all do). coremltools adds such casts to gathers, squeezes
    and topk from iOS17 on. Values that provably fit are not reported: indices into at most 32,768
    rows, constants, positions along an axis, and results computed from these.
    """
    for program, nodes in zip(subject.package.programs, subject.nodes, strict=True):
        for node in nodes:
            what, is_sure = _of_cast(node) if node.op_type == "cast" else _of_places(node)
            if what:
                place = place_of_node(program, node)
                yield Hit(what, place, severity=None if is_sure else "note")


def _of_cast(node: Node) -> tuple[str, bool]:
    """What is wrong with a cast, "" for nothing, and whether that is sure."""
    source = given(node, "x")
    wide, narrow = declared(source)[0], declared(node.outputs[0])[0] if node.outputs else ""
    is_float = wide in _FLOATS  # coremltools makes one cast of two: to int32, and that to int16
    if not (is_float or wide in _WIDER) or narrow not in _RANGES:
        return "", False
    (low, high), values = _RANGES[narrow], interval_of(source)
    if low <= values[0] and values[1] <= high:
        return "", False
    change = f"{wide} to {narrow} ({low:,} to {high:,})"
    rows = _rows_of_uses(node)
    longest = max((length for length in rows if length is not None), default=0)
    if longest - 1 > high:
        return f"{change}: indices into {longest:,} rows", True
    if is_float:
        return "", False
    if rows and None not in rows:
        # indices out of their table are wrong in any type
        if low < 0 or values[0] >= 0 or _is_wrapped(source):
            return "", False
        return f"{change}: indices that count from the end are below zero", False
    if all(map(math.isfinite, values)):
        return f"{change}: numbers from {values[0]:,} to {values[1]:,}", False
    return f"{change}: their range is not known", False


def _of_places(node: Node) -> tuple[str, bool]:
    """What is wrong with the type of places that an operation puts out, as of a cast."""
    if node.op_type not in _PLACES or not node.outputs:
        return "", False
    kind, length = declared(node.outputs[-1])[0], axis_length(node, "x", -1)
    if kind not in _RANGES or length is None or length - 1 <= _RANGES[kind][1]:
        return "", False
    return f"places along {length:,} elements as {kind}, up to {_RANGES[kind][1]:,}", True


def _rows_of_uses(node: Node) -> list[int | None]:
    """How many rows the table has for each use of a result as indices; None for other uses."""
    found: list[int | None] = []
    waiting, seen = list(node.outputs), {id(output) for output in node.outputs}
    while waiting:
        here = waiting.pop()
        if here.is_block_output:
            found.append(None)
        for user in here.consumers:
            if _wraps(user, here):
                continue
            if _moves(user):
                moved = [output for output in user.node.outputs if id(output) not in seen]
                seen.update(map(id, moved))
                waiting += moved
            else:
                found.append(_rows(user.node, user.parameter))
    return found


def _wraps(user: Consumer, index: Variable) -> bool:
    """Whether a use only serves ``select(index >= 0, index, index + length)``."""
    uses = [later for output in user.node.outputs for later in output.consumers]
    parameter = {"greater_equal": "cond", "add": "b"}.get(user.op_type)
    return bool(uses) and all(
        later.op_type == "select"
        and later.parameter == parameter
        and given(later.node, "a") is index
        for later in uses
    )


def _moves(user: Consumer) -> bool:
    """Whether a use passes on what it gets, as indices of the same rows."""
    if user.op_type == "cast":
        kind = declared(user.node.outputs[0])[0] if user.node.outputs else ""
        return kind in _WIDER or kind in _RANGES
    if user.op_type == "select":
        return user.parameter == "a" and _is_wrapping(user.node)
    return user.op_type in _MOVING and user.parameter == "x"


def _rows(node: Node, parameter: str) -> int | None:
    """The length of what the indices of an operation look up, the longest of several axes."""
    if parameter != "indices" or node.op_type not in INDEXED:
        return None
    table = INDEXED[node.op_type]
    if not node.op_type.endswith("_nd"):
        return axis_length(node, table, 0)
    shape, indices = declared(given(node, table))[1], declared(given(node, "indices"))[1]
    try:
        first = node.scalar("batch_dims", 0)
    except ValueError:
        return None
    if shape is None or not indices or indices[-1] is None or not isinstance(first, int):
        return None
    looked_up = shape[first : first + indices[-1]]
    known = [length for length in looked_up if length is not None]
    return max(known) if known and len(known) == len(looked_up) else None


def _is_wrapped(source: Variable | Constant | None) -> bool:
    """Whether indices below zero have got the length added."""
    node = source.node if isinstance(source, Variable) else None
    return node is not None and _is_wrapping(node)


def _is_wrapping(node: Node) -> bool:
    """Whether it is ``select(x >= 0, x, x + length)``, as coremltools writes it from iOS17 on."""
    condition, added = given(node, "cond"), given(node, "b")
    if node.op_type != "select" or not isinstance(condition, Variable):
        return False
    compared, index = condition.node, given(node, "a")
    if compared is None or compared.op_type != "greater_equal":
        return False
    adding = added.node if isinstance(added, Variable) else None
    return (
        given(compared, "x") is index
        and interval_of(given(compared, "y")) == (0, 0)
        and adding is not None
        and adding.op_type == "add"
        and index in (given(adding, "x"), given(adding, "y"))
    )
