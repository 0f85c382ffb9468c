"""Writing a palette as the constexpr operations of an opset.

Up to CoreML7 (iOS17) ``constexpr_lut_to_dense`` holds a flat packed ``indices``, a 1-D ``lut`` and
the ``shape`` in its attributes. From CoreML8 (iOS18) it holds typed ``indices`` of the weight's
shape and a ``lut`` of rank K + 2 in its inputs, and a per-channel scale follows as
``constexpr_blockwise_shift_scale``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.mil.messages import Operation, Value
from mlopt.mil.program import Constant
from mlopt.mil.targets import Target
from mlopt.mil.values import int32_value, string_value, tensor_type
from mlopt.mil.writer import PackageWriter
from mlopt.palette.bits import pack_bits
from mlopt.palette.palettized import Palettized

_FLOATS = {"float16": "fp16", "float32": "fp32"}


@attrs.frozen(eq=False)
class PackedPalette:
    """A palette ready to be written: the indices are packed, so they take their final size.

    packed: uint8[ceil(indices * nbits / 8)]; indices_shape: of the unpacked indices; table, scale,
    vector_axis: as in ``Palettized``; shape: of the weight; nbytes: of all that is stored.
    """

    packed: npt.NDArray[np.uint8]
    indices_shape: tuple[int, ...]
    nbits: int
    table: npt.NDArray[Any]
    scale: npt.NDArray[Any] | None
    vector_axis: int | None
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, palettized: Palettized) -> PackedPalette:
        """Pack a palette; the unpacked indices can be dropped then."""
        return cls(
            packed=pack_bits(palettized.indices, palettized.nbits),
            indices_shape=palettized.indices.shape,
            nbits=palettized.nbits,
            table=palettized.table,
            scale=palettized.scale,
            vector_axis=palettized.vector_axis,
            shape=palettized.shape,
            nbytes=palettized.nbytes,
        )


class PaletteOperations:
    """Stores a palette once and makes the operations for each constant that it stands for."""

    def __init__(
        self,
        palette: PackedPalette,
        writer: PackageWriter,
        *,
        target: Target,
        file_name: str | None,
    ) -> None:
        """``target``: the one whose opset the operations belong to; ``file_name``: weight file."""
        self._palette = palette
        self._is_new_form = target >= Target.iOS18

        def stored(data: Any, dtype: str, shape: Sequence[int]) -> Value:
            return writer.add_value(
                data,
                dtype,
                tuple(shape),
                specification_version=target.specification_version,
                file_name=file_name,
            )

        float_type = _FLOATS[palette.table.dtype.name]
        if self._is_new_form:
            self._values = {
                "indices": stored(palette.packed, f"uint{palette.nbits}", palette.indices_shape),
                "lut": stored(palette.table, float_type, palette.table.shape),
            }
            if palette.vector_axis is not None:
                self._values["vector_axis"] = int32_value(palette.vector_axis)
        else:
            lut = palette.table.reshape(-1)
            self._values = {
                "indices": stored(palette.packed, "uint8", palette.packed.shape),
                "lut": stored(lut, float_type, lut.shape),
                "shape": stored(
                    np.array(palette.shape, np.uint32), "uint32", (len(palette.shape),)
                ),
            }
        self._scale = (
            None
            if palette.scale is None
            else stored(palette.scale, float_type, palette.scale.shape)
        )

    def replacing(self, constant: Constant, unique_name: Callable[[str], str]) -> list[Any]:
        """The operations that take the constant's place; the last has its name, output and type.

        ``unique_name`` gives a name that the function does not use yet.
        """
        last = Operation()
        last.CopyFrom(constant.op)
        del last.attributes["val"]
        if self._scale is None:
            self._make_lut(last)
            return [last]
        lut = Operation()
        name = unique_name(f"{constant.name}_palettized")
        lut.attributes["name"].CopyFrom(string_value(name))
        dtype = _FLOATS[self._palette.table.dtype.name]
        lut.outputs.add(name=name, type=tensor_type(dtype, self._palette.shape))
        self._make_lut(lut)
        last.type = "constexpr_blockwise_shift_scale"
        last.inputs["data"].arguments.add().name = name
        last.inputs["scale"].arguments.add().value.CopyFrom(self._scale)
        return [lut, last]

    def _make_lut(self, op: Any) -> None:
        op.type = "constexpr_lut_to_dense"
        for key, value in self._values.items():
            if self._is_new_form:
                op.inputs[key].arguments.add().value.CopyFrom(value)
            else:
                op.attributes[key].CopyFrom(value)
