"""Storage of values of raised operations in the package that is being written."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from mlopt.mil.dtypes import dtype_named
from mlopt.mil.messages import Value
from mlopt.mil.program import Constant
from mlopt.mil.value_store import ValueStore
from mlopt.mil.values import tensor_type


@attrs.frozen(eq=False)
class SameBytes:
    """The bytes of a constant, as a value of another element type or shape.

    Attributes
    ----------
    constant
        Holds the bytes.
    dtype, shape
        The new element type, by name, and the new shape. None: that of the constant.
    """

    constant: Constant
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


class Storage:
    """Source of the ``Value`` messages of a raised program.

    A blob that only gets another shape stays where it is. A blob whose element type changes is
    stored again with the new type, once for all constants that share it; one is read at a time.

    Parameters
    ----------
    writer
        The writer of the program's package.
    specification_version
        Version of the raised program, which decides what goes to the weight file.
    """

    def __init__(self, writer: ValueStore, specification_version: int) -> None:
        self._writer = writer
        self._version = specification_version
        self._stored: dict[tuple[Any, ...], Value] = {}

    def value_of(self, wanted: SameBytes | np.ndarray) -> Value:
        """Return a ``Value`` of the bytes of a constant, or of an array."""
        if isinstance(wanted, np.ndarray):
            return self._writer.add_value(wanted, specification_version=self._version)
        constant = wanted.constant
        dtype = constant.dtype if wanted.dtype is None else wanted.dtype
        shape = constant.shape if wanted.shape is None else wanted.shape
        if dtype == constant.dtype:
            value = type(constant.message)()
            value.CopyFrom(constant.message)
            if shape != constant.shape:
                value.type.CopyFrom(tensor_type(dtype, shape))
            return value
        if constant.storage is None:
            return self._writer.add_value(
                _packed(constant, dtype, shape),
                dtype,
                shape,
                specification_version=self._version,
            )
        key = (constant.storage, dtype, shape)
        if key not in self._stored:
            self._stored[key] = self._writer.add_blob(
                dtype, _packed(constant, dtype, shape), shape, file_name=constant.storage[0]
            )
            constant.release()
        return self._stored[key]


def _packed(constant: Constant, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bytes of a constant as packed elements of ``dtype``; spare bits at the end are 0.

    They are a view of the weight file, unless a spare bit is set there.
    """
    data = np.asarray(constant.value()).reshape(-1).view(np.uint8)
    used = int(np.prod(shape, dtype=np.int64)) * dtype_named(dtype).bits % 8
    if used and data.size and data[-1] >> used:
        data = data.copy()
        data[-1] &= (1 << used) - 1
    return data
