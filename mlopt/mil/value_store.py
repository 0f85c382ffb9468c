"""Where values of a package that is being edited go: its messages, or its weight files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlopt.mil.dtypes import DType, dtype_named
from mlopt.mil.messages import Value
from mlopt.mil.values import file_value, make_value

DEFAULT_FILE = "@model_path/weights/weight.bin"


class ValueStore(ABC):
    """Takes new values, and gives the messages that refer to them."""

    #: The weight file that new values go to unless told otherwise.
    default_file = DEFAULT_FILE

    def add_blob(
        self,
        dtype: str | DType,
        data: Any,
        shape: Sequence[int],
        *,
        file_name: str | None = None,
    ) -> Value:
        """Store a blob (equal blobs once) and return the ``Value`` that refers to it.

        Parameters
        ----------
        dtype
            Element type or its name.
        data
            An array, or bytes; packed bytes for types narrower than a byte.
        shape
            Shape of the tensor.
        file_name
            The weight file as the model names it; None for ``default_file``.
        """
        kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
        size = math.prod(shape)
        padding = kind.nbytes(size) * 8 - size * kind.bits
        nbytes = data.nbytes if isinstance(data, np.ndarray) else memoryview(data).nbytes
        if nbytes != kind.nbytes(size):
            raise ValueError(
                f"a {kind.name} tensor of shape {list(shape)} takes {kind.nbytes(size)} bytes, "
                f"got {nbytes}"
            )
        name = file_name or self.default_file
        return file_value(name, self._add(name, kind, data, padding), kind, shape)

    def add_value(
        self,
        data: Any,
        dtype: str | DType | None = None,
        shape: Sequence[int] | None = None,
        *,
        specification_version: int,
        file_name: str | None = None,
    ) -> Value:
        """Return a ``Value`` of ``data``, stored where coremltools would: message or weight file.

        See ``values.make_value``.
        """
        name = file_name or self.default_file

        def add(kind: str, array: Any, padding: int) -> tuple[str, int]:
            return name, self._add(name, kind, array, padding)

        return make_value(
            data, dtype, shape, specification_version=specification_version, add_blob=add
        )

    @abstractmethod
    def _add(
        self,
        file_name: str,
        dtype: str | DType,
        data: Any,
        padding_bits: int,
        release: Callable[[int, int], None] | None = None,
    ) -> int:
        """Store a blob and return the offset by which the message refers to it."""
