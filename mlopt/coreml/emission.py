"""Writing a palette as the constexpr operations of an opset.

Up to CoreML7 (iOS17) ``constexpr_lut_to_dense`` holds a flat packed ``indices``, a 1-D ``lut`` and
the ``shape`` in its attributes. From CoreML8 (iOS18) it holds typed ``indices`` of the weight's
shape and a ``lut`` of rank K + 2 in its inputs, and a per-channel scale follows as
``constexpr_blockwise_shift_scale``. An 8-bit table is the data of another such operation,
whose output is the ``lut``. The nonzero values of a sparse weight are a
``constexpr_lut_to_sparse`` that ``constexpr_sparse_to_dense`` reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.constexpr.operations import parameter_names
from mlopt.mil.constexpr_forms import TYPED_SINCE
from mlopt.mil.messages import Operation, Value
from mlopt.mil.program import Node
from mlopt.mil.targets import Target
from mlopt.mil.value_store import ValueStore
from mlopt.mil.values import int32_value, string_value, tensor_type
from mlopt.palette.value.bits import pack_bits, unpack_bits
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.quantized import QuantizedTable

_TYPES = {"float16": "fp16", "float32": "fp32", "int8": "int8", "uint8": "uint8"}
_SHIFT_SCALE = "constexpr_blockwise_shift_scale"


@attrs.frozen(eq=False)
class PackedPalette:
    """Palette ready to be written: the indices are packed and have their final size.

    packed: uint8[ceil(indices * nbits / 8)]; indices_shape: of the unpacked indices; table, scale,
    vector_axis, quantized: as in ``Palettized``; shape: of the weight; nbytes: of everything
    stored.

    Of a sparse weight only the nonzero values (or vectors) have indices: indices_shape is [D], and
    mask, bool, marks their positions; it has the weight's shape with the vector axis divided by
    the length of a vector. mask is None where every element has an index.
    """

    packed: npt.NDArray[np.uint8]
    indices_shape: tuple[int, ...]
    nbits: int
    table: npt.NDArray[Any]
    scale: npt.NDArray[Any] | None
    vector_axis: int | None
    shape: tuple[int, ...]
    nbytes: int
    quantized: QuantizedTable | None = None
    mask: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, palettized: Palettized) -> PackedPalette:
        """Pack a palette, so that its unpacked indices can be dropped."""
        return cls(
            packed=pack_bits(palettized.indices, palettized.nbits),
            indices_shape=palettized.indices.shape,
            nbits=palettized.nbits,
            table=palettized.table,
            scale=palettized.scale,
            vector_axis=palettized.vector_axis,
            shape=palettized.shape,
            nbytes=palettized.nbytes,
            quantized=palettized.quantized,
        )

    def values(self) -> npt.NDArray[Any]:
        """Return the weight that is stored, decompressed; of a sparse one with its zeros."""
        stored = unpack_bits(self.packed, self.nbits, math.prod(self.indices_shape))
        if self.mask is None:
            indices = stored.reshape(self.indices_shape)
            return Palettized(self.table, indices, self.vector_axis, self.scale).dequantize()
        indices = np.zeros(self.mask.shape, np.uint8)
        indices[self.mask] = stored
        dense = Palettized(self.table, indices, self.vector_axis, self.scale).dequantize()
        mask, axis = self.mask, self.vector_axis
        if axis is not None:
            mask = np.repeat(mask, dense.shape[axis] // mask.shape[axis], axis)
        return np.where(mask, dense, dense.dtype.type(0))


class PaletteOperations:
    """Palette that is stored once, and the operations for each constant that it replaces."""

    def __init__(
        self,
        palette: PackedPalette,
        writer: ValueStore,
        *,
        target: Target,
        file_name: str | None,
    ) -> None:
        """``target``: its opset defines the operations; ``file_name``: the weight file."""
        self._palette = palette
        self._is_new_form = target >= TYPED_SINCE

        def stored(data: Any, dtype: str, shape: Sequence[int]) -> Value:
            return writer.add_value(
                data,
                dtype,
                tuple(shape),
                specification_version=target.specification_version,
                file_name=file_name,
            )

        def stored_array(array: npt.NDArray[Any]) -> Value:
            return stored(array, _TYPES[array.dtype.name], array.shape)

        self._table: dict[str, Value] | None = None
        if self._is_new_form:
            indices = stored(palette.packed, f"uint{palette.nbits}", palette.indices_shape)
            if palette.mask is None:
                self._values = {"indices": indices}
            else:
                bits = pack_bits(palette.mask.view(np.uint8), 1)
                self._values = {
                    "indices_nonzero_data": indices,
                    "indices_mask": stored(bits, "uint1", palette.mask.shape),
                }
            if palette.quantized is None:
                self._values["lut"] = stored_array(palette.table)
            else:
                table = palette.quantized
                self._table = {
                    "data": stored_array(table.codes),
                    "scale": stored_array(table.scale),
                }
                if table.offset is not None:
                    self._table["offset"] = stored_array(table.offset)
            if palette.vector_axis is not None:
                self._values["vector_axis"] = int32_value(palette.vector_axis)
        else:
            self._values = {
                "indices": stored(palette.packed, "uint8", palette.packed.shape),
                "lut": stored_array(palette.table.reshape(-1)),
                "shape": stored(
                    np.array(palette.shape, np.uint32), "uint32", (len(palette.shape),)
                ),
            }
        self._scale = None if palette.scale is None else stored_array(palette.scale)

    def replacing(self, node: Node, unique_name: Callable[[str], str]) -> list[Any]:
        """Return the operations that replace ``node``; the last has its name, output and type.

        Parameters
        ----------
        node
            The const operation of a plain weight, or the constexpr operation of a compressed one.
        unique_name
            Returns a name that the function does not use yet, derived from its argument.
        """
        name = node.name
        last = Operation()
        last.CopyFrom(node.op)
        last.ClearField("inputs")
        # Other attributes are annotations, which stay.
        for parameter in {"val", *parameter_names(node)} & set(last.attributes):
            del last.attributes[parameter]
        made = []
        lut_name = None
        if self._table is not None:
            lut_name = unique_name(f"{name}_lut")
            made.append(self._named(lut_name, self._palette.table.shape))
            made[-1].type = _SHIFT_SCALE
            _add_values(made[-1], self._table)
        unscaled = last
        if self._scale is not None:
            unscaled = self._named(unique_name(f"{name}_palettized"), self._palette.shape)
        if self._palette.mask is None:
            self._make_lut(unscaled, lut_name)
        else:
            values_name = unique_name(f"{name}_nonzero")
            made.append(self._sparse(values_name, unique_name(f"{values_name}_mask"), lut_name))
            _make_dense(unscaled, made[-1])
        made.append(unscaled)
        if self._scale is not None:
            last.type = _SHIFT_SCALE
            last.inputs["data"].arguments.add().name = unscaled.outputs[0].name
            _add_values(last, {"scale": self._scale})
            made.append(last)
        return made

    def _sparse(self, name: str, mask_name: str, lut_name: str | None) -> Any:
        """Return the lookup of the nonzero values; its outputs are a mask and the values."""
        op = Operation(type="constexpr_lut_to_sparse")
        op.attributes["name"].CopyFrom(string_value(name))
        table, (stored,) = self._palette.table, self._palette.indices_shape
        op.outputs.add(name=mask_name, type=tensor_type("uint1", self._palette.shape))
        op.outputs.add(
            name=name, type=tensor_type(_TYPES[table.dtype.name], [stored * table.shape[-1]])
        )
        _add_values(op, self._values)
        if lut_name is not None:
            op.inputs["lut"].arguments.add().name = lut_name
        return op

    def _named(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return a new operation with one output of the table's dtype."""
        op = Operation()
        op.attributes["name"].CopyFrom(string_value(name))
        dtype = _TYPES[self._palette.table.dtype.name]
        op.outputs.add(name=name, type=tensor_type(dtype, shape))
        return op

    def _make_lut(self, op: Any, lut_name: str | None) -> None:
        """Make ``op`` the lookup; ``lut_name``: the table's variable, None if it is a value."""
        op.type = "constexpr_lut_to_dense"
        if not self._is_new_form:
            for key, value in self._values.items():
                op.attributes[key].CopyFrom(value)
            return
        _add_values(op, self._values)
        if lut_name is not None:
            op.inputs["lut"].arguments.add().name = lut_name


def _add_values(op: Any, values: dict[str, Value]) -> None:
    """Give an operation constant inputs."""
    for key, value in values.items():
        op.inputs[key].arguments.add().value.CopyFrom(value)


def _make_dense(op: Any, sparse: Any) -> None:
    """Make ``op`` expand the outputs of a sparse operation to the dense weight."""
    op.type = "constexpr_sparse_to_dense"
    op.inputs["mask"].arguments.add().name = sparse.outputs[0].name
    op.inputs["nonzero_data"].arguments.add().name = sparse.outputs[1].name
