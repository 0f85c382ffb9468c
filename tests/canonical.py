"""Programs as text: what is computed, without names, so that equal programs give equal lines.

``canonical`` reads a program that coremltools has loaded: types are checked and defaults filled in
by then. Each line is one operation that an output depends on, with its parameters; the same
computation made twice is one line. Constants, compressed ones too, are compared by every byte.

Conversions for different targets differ by more than the opset. What is not the target's meaning
is looked through:

- *Guards.* coremltools computes the extent of an axis from ``shape`` to make indices non-negative,
  for gather and gather_nd alone and whether or not they can be negative. A guard
  ``select(i >= 0, i, i + extent)`` in the place of indices counts as ``i``, and a constant index as
  what it is modulo the axis.
- *Short integers.* From iOS16 on coremltools casts indices to 16 bits and back, where they fit
  (its pass ``add_int16_cast``). Casts between integers count as their input.
- *Ends.* From iOS16 on a model may return float16: a last cast to float32 counts as its input.
- *Unwritten defaults.* coremltools writes every default out but three, which ``_UNWRITTEN`` names.
- *Half precision* (on request). Until iOS16 lstm, gru and rnn compute in float32 alone, inside a
  float16 model between casts and with float32 weights, and ``MIXED`` parameters are float16.
  Converted for iOS17 the former are float16 and the latter float32; a raised model goes on
  computing as it did. Both count as what they are in float16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types

_INTEGERS = {"int8", "uint8", "int16", "uint16", "int32"}
_INDEX_DTYPES = {"output_indices_dtype", "output_dtype"}
_SHORT_PARAMETERS = {"indices", "box_indices", "axes", "k"}


_RECURRENT = {"lstm", "gru", "rnn"}
#: Parameters that are float32 beside float16 data from iOS17 on.
MIXED = dict.fromkeys(
    (
        "clamped_relu",
        "elu",
        "leaky_relu",
        "linear_activation",
        "prelu",
        "scaled_tanh",
        "sigmoid_hard",
        "softplus_parametric",
        "thresholded_relu",
    ),
    ("alpha", "beta"),
) | dict.fromkeys(("inverse", "log", "rsqrt"), ("epsilon",))
_UNWRITTEN: dict[tuple[str, str], Callable[[Any, Any], bool]] = {
    ("upsample_bilinear", "half_pixel_centers"): lambda op, value: (
        value == (not op.align_corners.val)
    ),
    ("gru", "reset_after"): lambda op, value: not value,
    ("gru", "input_bias"): lambda op, value: (
        value.shape == op.weight_hh.shape[:1] and not value.any()
    ),
}


def canonical(program: Any, *, half: bool = False) -> dict[str, list[str]]:
    """Return the lines of each function of a pymil program; the last ones are its outputs."""
    return {name: _Text(half).function(function) for name, function in program.functions.items()}


def canonical_output(var: Any) -> list[str]:
    """Return the lines that one output of a pymil function depends on, itself last."""
    text = _Text(False)
    last = text.value(_without_last_cast(var))
    return [*text.lines, last]


class _Text:
    """The text of one function."""

    def __init__(self, half: bool) -> None:
        self._half = _RECURRENT if half else set[str]()
        self.lines: list[str] = []
        self._numbers: dict[str, int] = {}
        self._of_op: dict[int, str] = {}
        self._of_input: dict[int, str] = {}

    def function(self, function: Any) -> list[str]:
        outputs = [self.value(_without_last_cast(var)) for var in function.outputs]
        return [*self.lines, *(f"return {text}" for text in outputs)]

    def value(self, var: Any, parameter: str = "", node: Any = None) -> str:
        """Return what stands for a value: a constant, an input or an output of a line."""
        var = self._looked_through(var, parameter, node)
        if var.op is None:
            return self._of_input.get(id(var)) or f"{var.name}:{_type(var)}"
        if var.val is not None and var.op.op_type == "const":
            half = self._is_halved(parameter, node) and var.dtype == types.fp32
            return _constant(np.float16(var.val) if half else var.val, parameter, node)
        if var.op.op_type.startswith("constexpr_"):
            found = var.op.materialized_val_inference()
            if isinstance(found, tuple):
                found = found[var.op.outputs.index(var)]
            return _constant(np.asarray(found), parameter, node)
        if id(var.op) not in self._of_op:
            self._of_op[id(var.op)] = self._operation(var.op)
        number = self._of_op[id(var.op)]
        index = var.op.outputs.index(var)
        return f"{number}.{index}" if len(var.op.outputs) > 1 else number

    def _operation(self, op: Any) -> str:
        parts = []
        for key, given in sorted(op.inputs.items()):
            if key.startswith("_") or given is None:
                continue
            unwritten = _UNWRITTEN.get((op.op_type, key))
            if unwritten is not None and unwritten(op, given.val):
                continue
            if isinstance(given, list | tuple):
                parts.append(f"{key}=[{', '.join(self.value(v, key, op) for v in given)}]")
            else:
                parts.append(f"{key}={self.value(given, key, op)}")
        for block in op.blocks:
            for index, var in enumerate(block.inputs):
                self._of_input[id(var)] = f"loop {index}:{_type(var)}"
            parts.append(f"block ({', '.join(self.value(var) for var in block.outputs)})")
        shapes = ", ".join(_type(var) for var in op.outputs)
        if op.op_type in self._half:
            shapes = shapes.replace("fp32", "fp16")
        text = f"{op.op_type}({', '.join(parts)}) -> {shapes}"
        if text not in self._numbers:
            self._numbers[text] = len(self.lines)
            self.lines.append(f"%{len(self.lines)} = {text}")
        return f"%{self._numbers[text]}"

    def _is_halved(self, parameter: str, node: Any) -> bool:
        """Return whether a constant counts as what it is in float16."""
        if node is None or not self._half:
            return False
        mixed = parameter in MIXED.get(node.op_type, ())
        return node.op_type in self._half or (mixed and node.x.dtype == types.fp16)

    def _looked_through(self, var: Any, parameter: str, node: Any) -> Any:
        """Return the value behind casts and guards that do not count."""
        while var.op is not None and var.val is None:
            if var.op.op_type == "cast" and self._counts_as_input(var, node):
                var = var.op.x
            elif parameter == "indices" and _is_guard(var.op):
                var = var.op.a
            else:
                break
        return var

    def _counts_as_input(self, cast: Any, node: Any) -> bool:
        x = cast.op.x
        if _is_integer(cast):
            return _is_integer(x)
        into = node is not None and node.op_type in self._half
        out_of = x.op is not None and x.op.op_type in self._half
        kinds = (x.dtype, cast.dtype)
        return (into and kinds == (types.fp16, types.fp32)) or (
            out_of and kinds == (types.fp32, types.fp16)
        )


def _is_guard(op: Any) -> bool:
    if op.op_type != "select" or op.cond.op is None or op.cond.op.op_type != "greater_equal":
        return False
    index, moved = op.a, op.b.op
    compared = op.cond.op
    return (
        moved is not None
        and moved.op_type == "add"
        and compared.x is index
        and compared.y.val == 0
        and moved.x is index
    )


def _without_last_cast(var: Any) -> Any:
    is_cast = var.op is not None and var.op.op_type == "cast"
    widens = is_cast and (var.dtype, var.op.x.dtype) == (types.fp32, types.fp16)
    return var.op.x if widens else var


def _is_integer(var: Any) -> bool:
    return types.builtin_to_string(var.dtype) in _INTEGERS


def _type(var: Any) -> str:
    if types.is_list(var.sym_type):
        return "list"
    name = types.builtin_to_string(var.dtype)
    shape = [str(size) if isinstance(size, int | np.integer) else "?" for size in var.shape or ()]
    return f"{'int' if name in _INTEGERS else name}[{','.join(shape)}]"


def _constant(value: Any, parameter: str, node: Any) -> str:
    if parameter in _INDEX_DTYPES and value in _INTEGERS:
        return "'int'"
    array = np.asarray(value)
    if array.dtype.kind in "US" or array.dtype == object:
        return repr(array.tolist())
    if parameter == "indices" and node.op_type.startswith(("gather", "scatter")):
        array = _modulo(array.astype(np.int64), node)
    elif parameter in _SHORT_PARAMETERS and array.dtype.kind in "iu":
        array = array.astype(np.int64)
    if array.size <= 8:
        return f"{array.dtype}{array.tolist()}"
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]
    return f"{array.dtype}{list(array.shape)}#{digest}"


def _modulo(indices: np.ndarray, node: Any) -> np.ndarray:
    """Return indices as they count from the front."""
    data = node.inputs.get("x") or node.inputs.get("data")
    if node.op_type.endswith("_nd"):
        batch = node.inputs.get("batch_dims")
        first = 0 if batch is None else int(batch.val)
        return indices % np.array(data.shape[first : first + indices.shape[-1]])
    return indices % int(data.shape[node.axis.val])
