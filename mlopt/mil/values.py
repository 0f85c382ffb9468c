"""Conversion between numpy arrays and the proto's ``Value``, stored as coremltools does.

Each check of what is read says why it refuses: "no reader" where coremltools refuses as well,
"misread" where a value would differ from what was meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mlopt.errors import ModelFormatError
from mlopt.mil.dtypes import DType, dtype_named, dtype_of_array, dtype_of_proto
from mlopt.mil.messages import Value, ValueType

#: A value of at least this many elements goes to the weight file.
_FILE_SIZE = 10
#: The first specification version that has 16- and 32-bit integers in the weight file (iOS18).
_WIDE_INTEGERS = 9
_NEVER_IN_FILE = frozenset({"fp64", "int64", "uint64", "bool", "string"})
#: numpy's own limit, the smaller of those of versions 1 and 2.
_MOST_DIMENSIONS = 32
_WIDE = frozenset({"int16", "uint16", "int32", "uint32"})

#: Stores a blob: (dtype name, bytes or array, padding bits) -> (file name in the model, offset).
AddBlob = Callable[[str, Any, int], tuple[str, int]]


def tensor_type(dtype: str | DType, shape: Iterable[int]) -> ValueType:
    """Return the ``ValueType`` of a tensor; an empty shape makes it a scalar."""
    kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
    result = ValueType()
    tensor = result.tensorType
    tensor.dataType = kind.proto
    for size in shape:
        tensor.dimensions.add().constant.size = int(size)
    tensor.rank = len(tensor.dimensions)
    return result


def scalar_type(dtype: str | DType) -> ValueType:
    """Return the ``ValueType`` of a scalar, which is a tensor of rank 0."""
    return tensor_type(dtype, ())


def tensor_type_of(
    value_type: ValueType, where: str = "model"
) -> tuple[DType, tuple[int, ...]] | None:
    """Return element type and shape of a ``ValueType``; None if it is not a tensor of known shape.

    Raises
    ------
    ModelFormatError
        The element type is unknown, or there are too many dimensions for an array. ``where`` names
        the model in the message.
    """
    if value_type.WhichOneof("type") != "tensorType":
        return None
    tensor = value_type.tensorType
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions):
        return None
    if len(tensor.dimensions) > _MOST_DIMENSIONS:  # no reader: no array, and Core ML stops at 5
        raise ModelFormatError(
            f"{where}: a tensor of {len(tensor.dimensions)} dimensions; at most "
            f"{_MOST_DIMENSIONS} can be read. The model is damaged."
        )
    return dtype_of_proto(tensor.dataType, where), tuple(d.constant.size for d in tensor.dimensions)


def uses_weight_file(dtype: str | DType, size: int, specification_version: int) -> bool:
    """Return whether coremltools would store ``size`` elements of ``dtype`` in the weight file."""
    name = dtype if isinstance(dtype, str) else dtype.name
    if size < _FILE_SIZE or name in _NEVER_IN_FILE:
        return False
    return name not in _WIDE or specification_version >= _WIDE_INTEGERS


def immediate_value(
    data: Any, dtype: str | DType | None = None, shape: Sequence[int] | None = None
) -> Value:
    """Return a ``Value`` that carries its elements in the message itself.

    Parameters
    ----------
    data
        An array of the type, or anything that numpy converts to one. For a type narrower than a
        byte: its packed bytes. For strings: a string or a (nested) sequence of them.
    dtype
        Element type or its name; None takes that of the array (never a packed one).
    shape
        Shape of the tensor, required for packed types; None takes that of the array.

    Raises
    ------
    ValueError
        The number of elements does not match the shape.
    """
    array = data if isinstance(data, np.ndarray) else np.asarray(data)
    if dtype is None:
        kind = dtype_of_array(array)
    else:
        kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
    if shape is None:
        if kind.packed:
            raise ValueError(f"packed {kind.name} data needs its shape")
        shape = array.shape
    array = _elements(array, kind)
    _check_size(array.size, kind, shape)

    value = Value(type=tensor_type(kind, shape))
    field = getattr(value.immediateValue.tensor, kind.field)
    if array.size == 0:
        field.SetInParent()
    elif kind.field == "bytes":
        field.values = np.ascontiguousarray(array).tobytes()
    else:
        # The field for 64-bit integers is signed.
        flat = array.reshape(-1)
        field.values.extend((flat.view(np.int64) if kind.name == "uint64" else flat).tolist())
    return value


def file_value(file_name: str, offset: int, dtype: str | DType, shape: Iterable[int]) -> Value:
    """Return a ``Value`` that refers to the blob at ``offset`` (bytes) of a weight file."""
    value = Value(type=tensor_type(dtype, shape))
    value.blobFileValue.fileName = file_name
    value.blobFileValue.offset = offset
    return value


def make_value(
    data: Any,
    dtype: str | DType | None = None,
    shape: Sequence[int] | None = None,
    *,
    specification_version: int,
    add_blob: AddBlob,
) -> Value:
    """Return a ``Value``, stored where coremltools would: in the message or in the weight file.

    ``data``, ``dtype`` and ``shape`` are those of ``immediate_value``. ``add_blob`` is called with
    (dtype name, data, padding bits) if the value goes to the file, and gives the file's name in the
    model and the offset of the blob.
    """
    array = data if isinstance(data, np.ndarray) else np.asarray(data)
    kind = (
        dtype_of_array(array)
        if dtype is None
        else dtype_named(dtype)
        if isinstance(dtype, str)
        else dtype
    )
    if shape is None and not kind.packed:
        shape = array.shape
    size = math.prod(shape) if shape is not None else array.size
    if shape is None or not uses_weight_file(kind, size, specification_version):
        return immediate_value(array, kind, shape)
    array = _elements(array, kind)
    _check_size(array.size, kind, shape)
    padding = kind.nbytes(size) * 8 - size * kind.bits
    file_name, offset = add_blob(kind.name, array, padding)
    return file_value(file_name, offset, kind, shape)


def string_value(text: str) -> Value:
    """Return the scalar string ``text``, as in an operation's "name" attribute."""
    value = Value(type=scalar_type("string"))
    value.immediateValue.tensor.strings.values.append(text)
    return value


def int32_value(number: int) -> Value:
    """Return a scalar int32."""
    return immediate_value(np.int32(number))


def read_immediate(value: Value, where: str = "model") -> Any:
    """Return what an immediate value holds.

    A tensor gives a read-only array of its shape (rank 0 included; strings as an object array;
    packed bytes, flat, for types narrower than a byte); a list or tuple gives a Python list of such
    results, a dictionary a list of (key, value) pairs.

    Raises
    ------
    ModelFormatError
        The elements do not match the value's type. ``where`` names the model in the message.
    """
    immediate = value.immediateValue
    kind = immediate.WhichOneof("value")
    if kind in ("list", "tuple"):
        return [read_immediate(item, where) for item in getattr(immediate, kind).values]
    if kind == "dictionary":
        pairs = immediate.dictionary.values
        return [(read_immediate(p.key, where), read_immediate(p.value, where)) for p in pairs]
    checked = _checked_immediate(value, where)
    if checked is None:
        raise ModelFormatError(
            f"{where}: an immediate value must be a tensor of known shape, a list, "
            "a tuple or a dictionary"
        )
    dtype, shape = checked
    field = immediate.tensor.WhichOneof("value")
    if field is None:
        array = np.zeros(0, dtype.numpy or object)
    elif field == "bytes":
        raw = immediate.tensor.bytes.values
        if dtype.packed:
            raw = raw[: dtype.nbytes(math.prod(shape))]
        array = np.frombuffer(raw, dtype.numpy)
    elif field == "strings":
        array = np.array(list(immediate.tensor.strings.values), dtype=object)
    else:
        array = _converted(getattr(immediate.tensor, field).values, field, dtype, where)
    array = array if dtype.packed else array.reshape(shape)
    array.flags.writeable = False
    return array


def check_immediate(value: Value, where: str = "model") -> None:
    """Check that an immediate value matches its type; elements are counted, not read.

    Raises
    ------
    ModelFormatError
        The elements do not match its type. ``where`` names the model in the message.
    """
    _checked_immediate(value, where)


def is_as_written(value: Value) -> bool:
    """Return whether the elements of an immediate value are stored where coremltools stores them.

    True also for anything but a tensor of known shape.
    """
    if value.immediateValue.WhichOneof("value") != "tensor":
        return True
    typed = tensor_type_of(value.type)
    if typed is None:
        return True
    dtype, shape = typed
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field is None or field != dtype.field:
        return field is None and math.prod(shape) == 0
    return not dtype.packed or len(tensor.bytes.values) == dtype.nbytes(math.prod(shape))


def _checked_immediate(value: Value, where: str) -> tuple[DType, tuple[int, ...]] | None:
    """Return type and shape of an immediate tensor whose elements have been counted.

    None if it is not a tensor of known shape.
    """
    kind, of_type = value.immediateValue.WhichOneof("value"), value.type.WhichOneof("type")
    if kind is not None and of_type is not None and of_type != f"{kind}Type":  # no reader
        raise ModelFormatError(f"{where}: a {kind} is stored where the type is {of_type}")
    if kind != "tensor":
        return None
    typed = tensor_type_of(value.type, where)
    if typed is None:
        return None
    dtype, shape = typed
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    stored = 0
    if field is not None:
        stored = len(getattr(tensor, field).values)
        if not _can_hold(field, dtype):  # no reader, except for text that is taken for a number
            raise ModelFormatError(f"{where}: {field} cannot hold {dtype.name} elements")
    if field == "bytes" and not dtype.packed:
        assert dtype.numpy is not None
        if stored % dtype.numpy.itemsize:  # no reader
            raise ModelFormatError(
                f"{where}: {stored} bytes are not a whole number of {dtype.name} elements"
            )
        stored //= dtype.numpy.itemsize
    if dtype.packed:
        # Spare bytes at the end are ignored, as in coremltools.
        stored = min(stored, dtype.nbytes(math.prod(shape)))
    try:
        _check_size(stored, dtype, shape)  # no reader
    except ValueError as error:
        raise ModelFormatError(f"{where}: an immediate value is damaged: {error}") from None
    return typed


def _can_hold(field: str, dtype: DType) -> bool:
    """Return whether a member of ``TensorValue`` can hold elements of ``dtype``."""
    if field in ("strings", "bytes"):
        return (field == "strings") == (dtype.numpy is None)
    return dtype.own_numpy


def _converted(elements: Any, field: str, dtype: DType, where: str) -> np.ndarray:
    """Return elements of a typed field as ``dtype``, refusing numbers that it cannot hold.

    A boolean is true for every number but 0, as in coremltools.
    """
    # Through the field's own width: a damaged model may hold what its type cannot.
    stored: np.ndarray = np.array(elements, dtype=_FIELD_WIDTHS[field])
    with np.errstate(all="ignore"):  # what overflows is infinite
        array = stored.astype(dtype.numpy, copy=False)
        kept = (
            array.dtype.kind not in "iu"
            or dtype.name == "uint64"
            or np.array_equal(array.astype(stored.dtype), stored)
        )
    if not kept:  # misread: coremltools wraps numbers that are too large, and truncates fractions
        raise ModelFormatError(f"{where}: {field} hold numbers that {dtype.name} elements cannot")
    return array


_FIELD_WIDTHS = {
    "floats": np.float32,
    "doubles": np.float64,
    "ints": np.int32,
    "longInts": np.int64,
    "bools": np.bool_,
}


def _elements(array: np.ndarray, dtype: DType) -> np.ndarray:
    """Return ``array`` in the numpy dtype of its stored elements; packed bytes as they are."""
    if dtype.packed or dtype.numpy is None or array.dtype == dtype.numpy:
        return array
    if dtype.name != "bf16":
        return array.astype(dtype.numpy)
    if array.dtype == np.uint16:
        return array.view(dtype.numpy)
    if dtype.numpy == np.uint16:
        raise ValueError(
            f"{array.dtype} elements can only be rounded to bf16 with the package ml_dtypes; "
            "install it, or pass the bits as uint16"
        )
    return array.astype(dtype.numpy)


def _check_size(stored: int, dtype: DType, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``shape`` takes ``stored`` elements (bytes for packed types)."""
    size = math.prod(shape)
    wanted = dtype.nbytes(size) if dtype.packed else size
    if stored != wanted:
        unit = "packed bytes" if dtype.packed else "elements"
        raise ValueError(
            f"a {dtype.name} tensor of shape {list(shape)} takes {wanted} {unit}, got {stored}"
        )
