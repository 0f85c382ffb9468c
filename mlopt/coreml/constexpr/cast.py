"""Weights of float32 that are stored as float16: ``constexpr_cast``."""

from __future__ import annotations

import numpy as np

from mlopt.coreml.constexpr.parameters import Array, Parameter, Parameters, TensorType

CAST = {
    "source_val": Parameter(frozenset({"fp16"}), tuple(range(9))),
    "output_dtype": Parameter(frozenset({"string"}), 0),
}


def check_cast(p: Parameters) -> tuple[TensorType, ...]:
    """The type of the weight; raises ModelFormatError for any cast other than fp16 to fp32."""
    wanted = str(p["output_dtype"].read())
    if wanted != "fp32":
        raise p.refusal(f"output_dtype must be 'fp32', got {wanted!r}")
    return ((wanted, p["source_val"].shape),)


def cast(p: Parameters) -> tuple[Array, ...]:
    """The weight."""
    return (p["source_val"].read().astype(np.float32),)
