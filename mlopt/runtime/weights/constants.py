"""Constants of a program as tensors: views of the mapped weight file until they are used."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlopt.mil.program import Constant
from mlopt.mil.values import tensor_type_of
from mlopt.runtime.element_types import NARROW, ElementTypes
from mlopt.runtime.weights.packed import Packed
from mlopt.runtime.weights.scratch import Scratch, aligned

_SMALL = 4096
"""Constants of at most this many elements are kept converted."""

_NO_TENSOR_YET = {"bf16": torch.bfloat16} | {
    "fp8e4m3fn": torch.float8_e4m3fn,
    "fp8e5m2": torch.float8_e5m2,
}


class Held:
    """A constant: the value itself, or how to get it each time.

    Large tensors stay where they are, in the mapped file, in their stored form; each use converts
    them, and drops the result afterwards.
    """

    def __init__(self, constant: Constant, types: ElementTypes, device: torch.device) -> None:
        self.name, self.shape = constant.name, constant.shape
        self._bits, self._is_ready = 0, False
        self._widened: Tensor | None = None
        value = constant.value()
        if constant.dtype == "string":
            flat = np.asarray(value, dtype=object).reshape(-1).tolist()
            self._value: Any = flat[0] if constant.shape == () else flat
            return
        if isinstance(value, list):
            self._value = _plain(value)
            return
        self._dtype, self._device = types.dtype(constant.dtype), device
        typed = tensor_type_of(constant.message.type)
        assert typed is not None
        kind = typed[0]
        self._bits = kind.bits if kind.packed else 0
        self._is_signed = kind.name.startswith("int")
        self._value = _view(np.asarray(value), _NO_TENSOR_YET.get(constant.dtype))
        if not self._bits:
            self._value = self._value.reshape(self.shape)
        if constant.size <= _SMALL:
            self._value, self._bits, self._is_ready = self.value(), 0, True

    def ready(self, *, widens: bool) -> Tensor | None:
        """Return a tensor that is kept as computed with; None where each use makes it.

        widens: in float32 where the program is computed in a narrower float.
        """
        value = self._value
        if not self._is_ready or not isinstance(value, Tensor):
            return None
        if not widens or self._dtype not in NARROW.values():
            return value
        if self._widened is None:
            self._widened = value.float()
        return self._widened

    def value(self) -> Any:
        """Return a tensor as computed with (its dtype and device), a string, or a list."""
        if self._is_ready:
            return self._value
        value = self.stored_value()
        return value.to(self._dtype) if isinstance(value, Tensor) else value

    def scratch_size(self, *, widens: bool) -> int:
        """Return the bytes that :meth:`converted` takes from a scratch."""
        value = self._value
        if not isinstance(value, Tensor) or self._bits or self._device.type != "cpu":
            return 0
        if self._is_ready:
            return 0
        dtype = self._dtype_of(widens=widens)
        return 0 if value.dtype == dtype else aligned(value.numel() * dtype.itemsize)

    def converted(self, scratch: Scratch, *, widens: bool) -> Any:
        """As :meth:`value`, but converted into memory that is reused.

        widens: into float32 where the program is computed in a narrower float.
        """
        if not self.scratch_size(widens=widens):
            return self.value()
        return scratch.converted(self.stored_value(), self._dtype_of(widens=widens))

    def _dtype_of(self, *, widens: bool) -> torch.dtype:
        return torch.float32 if widens and self._dtype in NARROW.values() else self._dtype

    def stored_value(self) -> Any:
        """Return the value in its stored dtype, if torch has that."""
        value = self._value
        if not isinstance(value, Tensor):
            return value
        if self._bits:
            return self.packed_value().unpacked()
        return value.to(self._device)

    def packed_value(self) -> Any:
        """As :meth:`value`, but elements narrower than a byte in their stream."""
        if not self._bits:
            return self.value()
        data = self._value.to(self._device)
        return Packed(data, self._bits, self.shape, is_signed=self._is_signed)


def _view(array: np.ndarray, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None:
        array = array.view(np.uint16 if dtype == torch.bfloat16 else np.uint8)
    if array.dtype in (np.uint16, np.uint32, np.uint64) and dtype is None:
        array = array.astype(np.int32 if array.dtype == np.uint16 else np.int64)
    with warnings.catch_warnings():
        # the file is mapped read-only; nothing writes to constants
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if dtype is None else tensor.view(dtype)


def _plain(value: Any) -> Any:
    """Lists of arrays as lists of tensors and strings."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    array = np.asarray(value)
    if array.dtype == object:
        flat = array.reshape(-1).tolist()
        return flat[0] if array.shape == () else flat
    return _view(array, None)
