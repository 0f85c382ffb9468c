"""Biases that take up the mean error of a palettized weight.

A weight W stored as Q gives outputs that are off by (W - Q) x. The mean of that over the inputs is
a constant for each output, so the bias can absorb it (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", arXiv 1906.04721).
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.weights import Weight
from mlopt.mil.messages import Operation
from mlopt.mil.program import Constant, Node
from mlopt.mil.values import string_value, tensor_type

_WITH_BIAS = frozenset({"linear", "conv", "conv_transpose"})
_FLOATS: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@attrs.frozen(eq=False)
class BiasPlace:
    """The operation that reads a weight, and the bias that it adds; None: it adds none yet."""

    reader: Node
    bias: Constant | None
    element_type: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the bias."""
        return _FLOATS[self.element_type]


@attrs.frozen(eq=False)
class NewBias:
    """A bias [outputs] for the operation at a place, in the dtype that the place says."""

    place: BiasPlace
    values: npt.NDArray[Any]

    def change(self) -> npt.NDArray[np.float32]:
        """What is added to the bias that the operation has, if it has one."""
        before = 0.0 if self.place.bias is None else np.asarray(self.place.bias.value(), np.float32)
        return np.asarray(self.values.astype(np.float32) - before)


def bias_place(weight: Weight) -> BiasPlace | None:
    """The bias that can absorb the mean error of a weight; None where there is no such.

    One operation has to read the weight, once, as its ``weight``, and its bias has to be stored:
    what several operations read has errors with several means.
    """
    if len(weight.consumers) != 1 or len(weight.nodes) != 1 or weight.is_block_output:
        return None
    (consumer,) = weight.consumers
    reader = consumer.node
    if reader.op_type not in _WITH_BIAS or consumer.parameter != "weight":
        return None
    bias = reader.constant_input("bias")
    if bias is None and reader.inputs.get("bias"):
        return None
    element_type = weight.element_type if bias is None else bias.dtype
    return BiasPlace(reader, bias, element_type) if element_type in _FLOATS else None


def corrected(
    place: BiasPlace | None, mean_error: npt.NDArray[np.float64] | None
) -> NewBias | None:
    """The bias plus the mean error [outputs], rounded to the dtype of the bias; None without."""
    if place is None or mean_error is None:
        return None
    dtype = place.dtype
    before = 0.0 if place.bias is None else np.asarray(place.bias.value(), np.float64)
    limit = float(np.finfo(dtype).max)
    return NewBias(place, np.clip(before + mean_error, -limit, limit).astype(dtype))


def bias_operation(name: str, element_type: str, shape: tuple[int, ...]) -> Operation:
    """A const operation for a bias; its value is still to be set, as the attribute ``val``."""
    op = Operation(type="const")
    op.attributes["name"].CopyFrom(string_value(name))
    op.outputs.add(name=name, type=tensor_type(element_type, shape))
    return op
