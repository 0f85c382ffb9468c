"""Conversion between tensors and the arrays that palettes are made of."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlopt.errors import ConfigError

with contextlib.suppress(ImportError):
    import ml_dtypes

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights that can be palettized."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that numpy has, or would have, for a dtype: ``"float16"``."""
    return str(dtype).removeprefix("torch.")


def as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor, not to be written to: a view on the CPU, else a copy there.

    bfloat16 is an array of ``ml_dtypes.bfloat16``.

    Raises
    ------
    ConfigError
        It is bfloat16, and the package ml_dtypes is not installed.
    """
    tensor = tensor.detach().cpu()
    if tensor.dtype is not torch.bfloat16:
        return np.asarray(tensor.numpy())
    return tensor.view(torch.int16).numpy().view(_bfloat16())


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor on the CPU that shares the memory of a C-contiguous array, or of a copy."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the dtype of ``as_array`` for tensors of a float dtype."""
    return _bfloat16() if dtype is torch.bfloat16 else np.dtype(dtype_name(dtype))


def _bfloat16() -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    except NameError:
        raise ConfigError(
            "bfloat16 weights need the package ml_dtypes, which is not installed; install "
            "mlopt[torch], or convert the model with model.float()"
        ) from None
