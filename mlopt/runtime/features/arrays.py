"""Features that are multi-arrays."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mlopt.errors import InputError, ModelFormatError
from mlopt.mil.messages import FeatureTypes_pb2
from mlopt.runtime.features.lengths import Lengths, check_lengths, lengths_of
from mlopt.runtime.number_arrays import array_of_numbers

_ARRAYS = {
    FeatureTypes_pb2.ArrayFeatureType.FLOAT16: np.float16,
    FeatureTypes_pb2.ArrayFeatureType.FLOAT32: np.float32,
    FeatureTypes_pb2.ArrayFeatureType.DOUBLE: np.float64,
    FeatureTypes_pb2.ArrayFeatureType.INT32: np.int32,
    FeatureTypes_pb2.ArrayFeatureType.INT8: np.int8,
}


@attrs.frozen
class ArrayFeature:
    """A multi-array.

    shape: the default one, () if none is given; allowed: enumerated shapes, empty for no
    enumeration; ranges: lengths of each axis, empty for none; default: the value of every element
    if the input is left out, None for no default.
    """

    name: str
    dtype: Any
    shape: tuple[int, ...]
    allowed: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Lengths, ...] = ()
    default: float | None = None
    is_optional: bool = False

    def tensor(self, value: Any) -> Tensor:
        """Return an input as a tensor of the declared dtype; InputError if it does not fit."""
        array = array_of_numbers(value, f"input {self.name!r}")
        if self.shape == () and not self.allowed and not self.ranges:
            return self._converted(array)  # any shape
        if not self.takes(array.shape):
            raise InputError(
                f"input {self.name!r} has shape {list(array.shape)}; the model takes "
                f"{self.described_shapes()}"
            )
        return self._converted(array)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of a shape can be the input."""
        if self.allowed:
            return shape in self.allowed
        if self.ranges:
            fits = len(shape) == len(self.ranges)
            return fits and all(n in r for n, r in zip(shape, self.ranges, strict=True))
        return shape == self.shape

    def described_shapes(self) -> str:
        """Return the shapes that it takes, for a message."""
        if self.allowed:
            return "one of " + ", ".join(str(list(shape)) for shape in self.allowed)
        if self.ranges:
            return "[" + ", ".join(map(str, self.ranges)) + "]"
        return str(list(self.shape))

    def default_tensor(self) -> Tensor:
        """Return the value for an input that is left out: an array of the default."""
        filled = np.full(self.shape, 0.0 if self.default is None else self.default, self.dtype)
        return torch.from_numpy(filled)

    def array(self, value: Any) -> np.ndarray:
        """Return an output as ``MLModel.predict`` does: an array of the declared dtype.

        Values of float16 become float32: coremltools' binding widens them
        (``convertArrayValueToPython`` in ``coremlpython/CoreMLPythonUtils.mm``).
        """
        # what float16 cannot hold is infinite in Core ML too; NaN becomes an arbitrary integer
        with np.errstate(over="ignore", invalid="ignore"):
            array: np.ndarray = value.detach().cpu().numpy().astype(self.dtype)
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        # Core ML has no arrays of rank 0
        return array.reshape(1) if array.shape == () else array

    def _converted(self, array: np.ndarray) -> Tensor:
        if np.dtype(self.dtype).kind in "iu":
            self._check_whole(array)
        with np.errstate(over="ignore"):
            converted = array.astype(self.dtype)
        return torch.from_numpy(np.asarray(converted, order="C"))

    def _check_whole(self, array: np.ndarray) -> None:
        """Refuse numbers that the declared integer type cannot hold."""
        dtype = np.dtype(self.dtype)
        limits = np.iinfo(dtype)
        problem = ""
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            problem = "with NaN or infinity"
        elif array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            problem = "with fractions"
        elif array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            problem = f"from {array.min()} to {array.max()}"
        if problem:
            raise InputError(
                f"input {self.name!r} must hold integers ({dtype}, {limits.min} to "
                f"{limits.max}), got {array.dtype} {problem}"
            )


def array_feature(name: str, message: Any, is_optional: bool, where: str) -> ArrayFeature:
    """Return the feature that an ``ArrayFeatureType`` message describes."""
    if message.dataType not in _ARRAYS:
        raise ModelFormatError(
            f"{where}: feature {name!r} has the unknown data type {message.dataType}"
        )
    kind = message.WhichOneof("ShapeFlexibility")
    allowed: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Lengths, ...] = ()
    if kind == "enumeratedShapes":
        allowed = tuple(tuple(s.shape) for s in message.enumeratedShapes.shapes)
    elif kind == "shapeRange":
        ranges = tuple(map(lengths_of, message.shapeRange.sizeRanges))
    default = message.WhichOneof("defaultOptionalValue")
    for shape in (tuple(message.shape), *allowed):
        check_lengths(shape, name, where)
    return ArrayFeature(
        name,
        _ARRAYS[message.dataType],
        tuple(message.shape),
        allowed,
        ranges,
        None if default is None else float(getattr(message, default)),
        is_optional,
    )
