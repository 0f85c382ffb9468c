"""Raising compressed weights of CoreML6 and CoreML7 to the forms of CoreML8.

Until CoreML7 a constexpr operation has its values as attributes, packed bits as flat bytes with a
separate ``shape``. From CoreML8 on values are inputs, and packed bits have an element type and a
shape of their own. Neither a table nor an index changes: all of this is about types.
"""

from __future__ import annotations

import math

import numpy as np

from mlopt.errors import ModelFormatError
from mlopt.mil.constexpr_forms import OLD_INDEX_BITS
from mlopt.mil.program import Constant, Node
from mlopt.mil.raising.change import Change, Unraisable
from mlopt.mil.raising.storage import SameBytes
from mlopt.mil.values import tensor_type_of

#: Entries of a table -> element type of the indices into it.
_INDEX_TYPES = {1 << nbits: f"uint{nbits}" for nbits in OLD_INDEX_BITS}
_CHUNK = 1 << 20


def cast(change: Change) -> None:
    """Attributes become inputs."""
    source = _constant(change.node, "source_val")
    dtype = _constant(change.node, "output_dtype")
    change.values = {"source_val": SameBytes(source), "output_dtype": SameBytes(dtype)}


def lut_to_dense(change: Change) -> None:
    """Flat bytes of indices become typed indices of the weight's shape, the table gets its rank."""
    node = change.node
    indices, lut = _constant(node, "indices", "uint8"), _constant(node, "lut")
    shape = _shape(node, lut.dtype)
    if lut.shape not in [(entries,) for entries in _INDEX_TYPES]:
        raise _damaged(
            lut,
            f"its lut has the shape {list(lut.shape)}; a table has {_list(_INDEX_TYPES)} entries",
        )
    nbits = lut.size.bit_length() - 1
    _check_bits(node, indices, shape, nbits)
    change.removed = {"shape"}
    change.values = {
        "indices": SameBytes(indices, _INDEX_TYPES[lut.size], shape),
        "lut": SameBytes(lut, None, (*(1 for _ in shape), lut.size, 1)),
    }


def sparse_to_dense(change: Change) -> None:
    """Flat bytes of the mask become single bits of the weight's shape."""
    node = change.node
    mask, data = _constant(node, "mask", "uint8"), _constant(node, "nonzero_data")
    shape = _shape(node, data.dtype)
    _check_bits(node, mask, shape, 1)
    if len(data.shape) != 1:
        raise _damaged(data, f"its nonzero_data has the shape {list(data.shape)}, not rank 1")
    marked = _count_bits(mask, math.prod(shape))
    if marked != data.size:
        raise _damaged(
            mask, f"its mask marks {marked} elements, but nonzero_data holds {data.size}"
        )
    change.removed = {"shape"}
    change.values = {"mask": SameBytes(mask, "uint1", shape), "nonzero_data": SameBytes(data)}


def affine_dequantize(change: Change) -> None:
    """It becomes a ``constexpr_blockwise_shift_scale`` with one block per channel, or one in all.

    CoreML8 keeps an operation of the old name in coremltools' registry, but not redefined as the
    other constexpr operations were: coremltools would write it with attributes, as no other
    operation of that opset has them, and its own quantization never does so; for iOS18 it writes
    the blockwise form. That takes the same data and scales and gives the same bits, where the zero
    point has the type of the data: both multiply the exact difference by the scale, rounded once.
    """
    node = change.node
    data = _constant(node, "quantized_data", "int8", "uint8")
    scale = _constant(node, "scale", "fp16", "fp32")
    zero_point = _constant(node, "zero_point", "int8", "uint8", "fp32")
    _check_output(node, scale.dtype, data.shape)
    rank = len(data.shape)
    axis = _axis(node, rank)
    for constant in (scale, zero_point):
        if constant.shape not in [(), (data.shape[axis],)]:
            raise _damaged(
                constant,
                f"its {constant.parameter} has the shape {list(constant.shape)}; allowed is a "
                f"scalar, or the {data.shape[axis]} elements of axis {axis}",
            )

    points = np.asarray(zero_point.value())
    limits = np.iinfo(data.numpy_dtype)
    fits = (points >= limits.min) & (points <= limits.max) & (points == np.round(points))
    if not fits.all():
        raise Unraisable(
            f"its zero points must be {data.dtype} like its data, but are {zero_point.dtype} "
            "values outside that type; decompress the weight first"
        )
    per_channel = scale.shape or zero_point.shape
    size = data.shape[axis] if per_channel else 1
    shape = tuple(size if i == axis else 1 for i in range(rank))
    change.op_type = "constexpr_blockwise_shift_scale"
    change.removed = {"quantized_data", "zero_point", "axis"}
    change.values = {"data": SameBytes(data)}
    if scale.size == math.prod(shape):
        change.values["scale"] = SameBytes(scale, None, shape)
    else:  # one scale for several zero points
        change.values["scale"] = np.full(shape, scale.value())
    if points.any():  # without an offset nothing is subtracted, which is how coremltools writes 0
        offset = points.astype(data.numpy_dtype)
        change.values["offset"] = np.ascontiguousarray(
            offset.reshape(shape) if offset.size == size else np.broadcast_to(offset, shape)
        )


def _constant(node: Node, parameter: str, *dtypes: str) -> Constant:
    """Return the constant of a parameter, of one of ``dtypes`` (none: any)."""
    constant = node.constant_input(parameter)
    if constant is None:
        raise ModelFormatError(
            f"{_place(node)}: its {parameter} is missing or not a constant; the file is damaged"
        )
    if dtypes and constant.dtype not in dtypes:
        raise _damaged(
            constant, f"its {parameter} holds {constant.dtype}, allowed are {_list(dtypes)}"
        )
    return constant


def _shape(node: Node, dtype: str) -> tuple[int, ...]:
    """Return the weight's shape, after checking that the output has it, with elements ``dtype``."""
    constant = _constant(node, "shape", "uint32", "int32")
    if len(constant.shape) != 1 or not constant.size:
        raise _damaged(constant, f"its shape is of shape {list(constant.shape)}, not a list")
    shape = tuple(int(size) for size in constant.value())
    if min(shape) < 1:
        raise _damaged(constant, f"its shape is {list(shape)}, but sizes must be positive")
    _check_output(node, dtype, shape)
    return shape


def _check_output(node: Node, dtype: str, shape: tuple[int, ...]) -> None:
    declared = tensor_type_of(node.outputs[0].type) if len(node.outputs) == 1 else None
    if declared is None or (declared[0].name, declared[1]) != (dtype, shape):
        shown = "not a tensor" if declared is None else f"{declared[0].name} {list(declared[1])}"
        raise ModelFormatError(
            f"{_place(node)}: its output is declared as {shown}, but its values make {dtype} "
            f"{list(shape)}; the file is damaged"
        )


def _check_bits(node: Node, packed: Constant, shape: tuple[int, ...], nbits: int) -> None:
    """Check that the number of bytes matches the shape."""
    wanted = -(-math.prod(shape) * nbits // 8)
    if packed.shape != (wanted,):
        raise _damaged(
            packed,
            f"its {packed.parameter} has the shape {list(packed.shape)}, but {nbits} bits for each "
            f"element of {list(shape)} take {wanted} bytes",
        )


def _count_bits(mask: Constant, size: int) -> int:
    """Return how many of the first ``size`` bits are set."""
    data = np.asarray(mask.value())
    count = 0
    for first in range(0, data.size, _CHUNK):
        bits = np.unpackbits(data[first : first + _CHUNK], bitorder="little")
        count += int(np.count_nonzero(bits[: size - 8 * first]))
    mask.release()
    return count


def _axis(node: Node, rank: int) -> int:
    constant = _constant(node, "axis", "int32")
    if constant.size != 1:
        raise _damaged(constant, f"its axis has the shape {list(constant.shape)}, not a scalar")
    axis = int(np.asarray(constant.value()).reshape(()))
    if not -rank <= axis < rank:
        raise _damaged(constant, f"its axis is {axis}, allowed is [{-rank}, {rank})")
    return axis % rank


def _place(node: Node) -> str:
    return f"{node.op_type} {node.name!r} in function {node.function!r}"


def _damaged(constant: Constant, what: str) -> ModelFormatError:
    return ModelFormatError(
        f"{constant.files.root}: {_place(constant.node)}: {what}; the file is damaged"
    )


def _list(items: object) -> str:
    return ", ".join(str(item) for item in items)  # type: ignore[attr-defined]
