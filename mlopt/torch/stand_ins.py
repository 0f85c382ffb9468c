"""Stand-ins: weights that hold the places of palettes while coremltools converts a model.

coremltools converts a weight that its state describes as quantized into a constexpr operation. So
every palettized weight goes through the conversion as an 8-bit quantized one whose parameters
encode a number that identifies it. No quantized weight has a scale below 0, so a stand-in cannot be
mistaken for one. In the converted program each is looked up by its number, without a search or a
guess.

One pass of coremltools computes with such weights (it folds a transpose into them, say), which it
does not do with palettes. It is left out, and the data of every stand-in is compared with what it
should be, so that no other pass can do the like unnoticed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mlopt.mil.program import Node, Program
from mlopt.torch.carried import QUANTIZATION, CarriedPalette

# float16, which a conversion may round to, holds all these multiples; offsets are int8.
_SCALES, _OFFSETS = 1 << 11, 1 << 7
_UNIT = 2.0**-8
MOST = _SCALES * _OFFSETS
"""Maximum number of stand-ins in one model."""

FOLDING_PASS = "common::merge_affine_dequantize_with_consecutive_ops"
"""The pass of coremltools that computes with quantized weights."""

# by operation: its scale and its offset
_PARAMETERS = {
    "constexpr_affine_dequantize": ("scale", "zero_point"),  # up to iOS17
    "constexpr_blockwise_shift_scale": ("scale", "offset"),
}


def stand_in(palette: CarriedPalette, number: int) -> dict[str, torch.Tensor]:
    """Return state entries that make a weight the stand-in of a number below ``MOST``."""
    one = (1,) * palette.weight.dim()
    scale, offset = _parameters(number)
    fields = {
        "compression_type": torch.tensor([QUANTIZATION]),
        "quantization_n_bits": torch.tensor(8),
        "quantization_scale": torch.full(one, scale),
        "zero_point": torch.full(one, offset, dtype=torch.int8),
    }
    return {palette.prefix + name: tensor for name, tensor in fields.items()}


def stand_ins(program: Program) -> Iterator[tuple[int, Node]]:
    """Return the stand-ins of a converted program by number."""
    for node in program.nodes():
        if node.op_type in _PARAMETERS:
            scale_name, offset_name = _PARAMETERS[node.op_type]
            scale = node.constant_input(scale_name)
            if scale is None or scale.size != 1:
                continue
            value = float(node.scalar(scale_name))
            if value < 0:
                multiple = round(-value / _UNIT) - 1
                yield multiple * _OFFSETS + int(node.scalar(offset_name, 0)), node


def is_untouched(node: Node, weight: torch.Tensor, number: int) -> bool:
    """Whether a stand-in in a program still holds what coremltools first made from ``weight``."""
    data_name = "quantized_data" if node.op_type == "constexpr_affine_dequantize" else "data"
    constant = node.constant_input(data_name)
    if constant is None or constant.shape != tuple(weight.shape):
        return False
    scale, offset = _parameters(number)
    # the same steps, in the same format
    dense = weight.detach().cpu().numpy()
    codes = np.round(dense / np.full((1,) * dense.ndim, scale, np.float32)) + offset
    low, high = (0, 255) if codes.min() >= 0 else (-128, 127)
    return np.array_equal(np.clip(codes, low, high), constant.value())


def without_folding(pipeline: Any) -> Any:
    """Return a copy of a ``coremltools.PassPipeline`` (None: the default one) without that pass."""
    import coremltools

    copied = coremltools.PassPipeline() if pipeline is None else copy.deepcopy(pipeline)
    copied.remove_passes({FOLDING_PASS})
    return copied


def _parameters(number: int) -> tuple[float, int]:
    """Return scale and offset of the stand-in of a number."""
    multiple, offset = divmod(number, _OFFSETS)
    return -_UNIT * (1 + multiple), offset


def state_with(
    state: Mapping[str, torch.Tensor], palettes: Mapping[int, list[CarriedPalette]]
) -> dict[str, torch.Tensor]:
    """Return a state that describes palettized weights as the stand-ins of their numbers.

    Except those that are split into gates, which must be dense for that.
    """
    described = dict(state)
    for number, sharing in palettes.items():
        for palette in sharing:
            if palette.gates is None:
                described |= stand_in(palette, number)
    return described
