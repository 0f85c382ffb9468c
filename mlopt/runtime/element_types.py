"""The torch dtype that each element type of a program is computed in."""

from __future__ import annotations

from typing import get_args

import torch

from mlopt.choices import Precision
from mlopt.errors import ConfigError

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Float types that are computed in float32 if the machine has no arithmetic for them."""

_FLOATS = {
    **NARROW,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4m3fn": torch.float8_e4m3fn,
    "fp8e5m2": torch.float8_e5m2,
}
_OTHERS = {
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    # torch has few functions for wider unsigned ones
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "int4": torch.int8,
    **dict.fromkeys(("uint1", "uint2", "uint3", "uint4", "uint6"), torch.uint8),
}
_WIDENED = (*NARROW, "fp8e4m3fn", "fp8e5m2")


class ElementTypes:
    """``precision``: ``"float32"`` for narrower floats too, or ``"as_declared"``."""

    def __init__(self, precision: Precision) -> None:
        if precision not in get_args(Precision):
            raise ConfigError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
            )
        widened = dict.fromkeys(_WIDENED, torch.float32) if precision == "float32" else {}
        self._dtypes = {**_FLOATS, **_OTHERS, **widened}
        self.precision = precision

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of an element type, by its name such as ``"fp16"``."""
        return self._dtypes[name]

    def has(self, name: str) -> bool:
        """Return whether an element type has a dtype; strings do not."""
        return name in self._dtypes
