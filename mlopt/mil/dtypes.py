"""The element types of an ML program: their names, widths, and numbers in proto and weight file."""

from __future__ import annotations

import attrs
import numpy as np

from mlopt.errors import ModelFormatError
from mlopt.mil.messages import MIL_pb2


def _bfloat16() -> np.dtype:
    """Return the bfloat16 of ml_dtypes where that is installed, else uint16: the same bits."""
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype("<u2")
    bfloat16: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


@attrs.frozen
class DType:
    """One element type.

    Attributes
    ----------
    name
        Its name everywhere in mlopt: "fp16", "uint4", "string", ...
    bits
        Width of a stored element in bits; 0 for strings, which have no fixed width.
    proto
        Its number in the proto's ``DataType``.
    blob
        Its number in blob storage, or None if a weight file cannot hold it.
    numpy
        The dtype of the array that reads it, little-endian. For a type below 8 bits it is uint8 and
        holds packed bytes; for fp8, uint8 with one element each; None for strings.
    field
        The member of ``TensorValue`` that holds immediate values.
    """

    name: str
    bits: int
    proto: int
    blob: int | None
    numpy: np.dtype | None
    field: str

    @property
    def packed(self) -> bool:
        """Whether elements are narrower than a byte and stored as one bit stream."""
        return 0 < self.bits < 8

    @property
    def own_numpy(self) -> bool:
        """Whether no other type shares ``numpy``; bf16, fp8 and the packed types may borrow one."""
        return self.numpy is not None and not (self.packed or self.name.startswith(("bf", "fp8")))

    @property
    def numpy_name(self) -> str:
        """The name in numpy: ``"float16"`` for fp16; the own name of a type that numpy lacks."""
        return _NUMPY_NAMES.get(self.name, self.name)

    def nbytes(self, size: int) -> int:
        """Return the bytes that ``size`` elements take, packed where the type is below 8 bits."""
        return -(-size * self.bits // 8)


_NUMPY_NAMES = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}
_U1 = np.dtype("u1")
_TABLE = (
    DType("fp16", 16, MIL_pb2.FLOAT16, 1, np.dtype("<f2"), "bytes"),
    DType("fp32", 32, MIL_pb2.FLOAT32, 2, np.dtype("<f4"), "floats"),
    DType("fp64", 64, MIL_pb2.FLOAT64, None, np.dtype("<f8"), "doubles"),
    DType("bf16", 16, MIL_pb2.BFLOAT16, 5, _bfloat16(), "bytes"),
    DType("fp8e4m3fn", 8, MIL_pb2.FLOAT8E4M3FN, 16, _U1, "bytes"),
    DType("fp8e5m2", 8, MIL_pb2.FLOAT8E5M2, 17, _U1, "bytes"),
    DType("int4", 4, MIL_pb2.INT4, 8, _U1, "bytes"),
    DType("int8", 8, MIL_pb2.INT8, 4, np.dtype("i1"), "bytes"),
    DType("int16", 16, MIL_pb2.INT16, 6, np.dtype("<i2"), "ints"),
    DType("int32", 32, MIL_pb2.INT32, 14, np.dtype("<i4"), "ints"),
    DType("int64", 64, MIL_pb2.INT64, None, np.dtype("<i8"), "longInts"),
    DType("uint1", 1, MIL_pb2.UINT1, 9, _U1, "bytes"),
    DType("uint2", 2, MIL_pb2.UINT2, 10, _U1, "bytes"),
    DType("uint3", 3, MIL_pb2.UINT3, 12, _U1, "bytes"),
    DType("uint4", 4, MIL_pb2.UINT4, 11, _U1, "bytes"),
    DType("uint6", 6, MIL_pb2.UINT6, 13, _U1, "bytes"),
    DType("uint8", 8, MIL_pb2.UINT8, 3, _U1, "bytes"),
    DType("uint16", 16, MIL_pb2.UINT16, 7, np.dtype("<u2"), "ints"),
    # The one wide type that goes into ``bytes``; coremltools neither writes nor reads it elsewhere.
    DType("uint32", 32, MIL_pb2.UINT32, 15, np.dtype("<u4"), "bytes"),
    DType("uint64", 64, MIL_pb2.UINT64, None, np.dtype("<u8"), "longInts"),
    DType("bool", 8, MIL_pb2.BOOL, None, np.dtype("?"), "bools"),
    DType("string", 0, MIL_pb2.STRING, None, None, "strings"),
)
BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_PROTO = {dtype.proto: dtype for dtype in _TABLE}
BY_BLOB = {dtype.blob: dtype for dtype in _TABLE if dtype.blob is not None}


def dtype_named(name: str) -> DType:
    """Return the type of that name.

    Raises
    ------
    ValueError
        No type has that name.
    """
    try:
        return BY_NAME[name]
    except KeyError:
        raise ValueError(f"unknown element type {name!r}; known are {', '.join(BY_NAME)}") from None


def dtype_of_proto(number: int, where: str = "model") -> DType:
    """Return the type of that number in the proto's ``DataType``.

    Raises
    ------
    ModelFormatError
        No type has that number. ``where`` names the model in the message.
    """
    try:
        return BY_PROTO[number]
    except KeyError:
        raise ModelFormatError(
            f"{where}: unknown element type {number}; known are the proto's DataType numbers "
            f"{sorted(BY_PROTO)}. The model may be newer than this version of mlopt."
        ) from None


def dtype_of_array(array: np.ndarray) -> DType:
    """Return the type that holds the elements of ``array`` as they are (never a packed one).

    Raises
    ------
    ValueError
        An ML program has no such type.
    """
    if array.dtype.kind in "US":
        return BY_NAME["string"]
    if array.dtype.name == "bfloat16":
        return BY_NAME["bf16"]
    for dtype in _TABLE:
        if dtype.numpy == array.dtype and dtype.own_numpy:
            return dtype
    raise ValueError(f"an ML program cannot hold elements of numpy dtype {array.dtype}")
