"""Weights that hold the places of palettes while coremltools converts a model.

coremltools converts a weight that its state describes as quantized into a constexpr operation, and
from then on treats it as what it is, constant and not to be computed with: no pass folds it into
something else. So every palettized weight goes through the conversion as an 8-bit quantized one
whose parameters are a number that names it. No quantized weight has a scale below 0, so a stand-in
cannot be mistaken for one. In the converted program each is found by its number, and nothing has to
be searched or guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from mlopt.mil.program import Node, Program
from mlopt.torch.carried import QUANTIZATION, CarriedPalette

# float16, which a conversion may round to, holds all integers to 2**11; offsets are int8.
_SCALES, _OFFSETS = 1 << 11, 1 << 7
MOST = _SCALES * _OFFSETS
"""Stand-ins that one model can have."""

# by operation: its scale and its offset
_PARAMETERS = {
    "constexpr_affine_dequantize": ("scale", "zero_point"),  # up to iOS17
    "constexpr_blockwise_shift_scale": ("scale", "offset"),
}


def stand_in(palette: CarriedPalette, number: int) -> dict[str, torch.Tensor]:
    """Entries of a model's state that make a weight the stand-in of a number below ``MOST``."""
    one = (1,) * palette.weight.dim()
    offset, scale = divmod(number, _SCALES)
    fields = {
        "compression_type": torch.tensor([QUANTIZATION]),
        "quantization_n_bits": torch.tensor(8),
        "quantization_scale": torch.full(one, -1.0 - scale),
        "zero_point": torch.full(one, offset, dtype=torch.int8),
    }
    return {palette.prefix + name: tensor for name, tensor in fields.items()}


def stand_ins(program: Program) -> Iterator[tuple[int, Node]]:
    """The stand-ins of a converted program by number."""
    for node in program.nodes():
        if node.op_type in _PARAMETERS:
            scale_name, offset_name = _PARAMETERS[node.op_type]
            scale = node.constant_input(scale_name)
            if scale is None or scale.size != 1:
                continue
            value = float(node.scalar(scale_name))
            if value < 0:
                yield int(-value) - 1 + _SCALES * int(node.scalar(offset_name, 0)), node


def state_with(
    state: Mapping[str, torch.Tensor], palettes: Mapping[int, list[CarriedPalette]]
) -> dict[str, torch.Tensor]:
    """A state in which palettized weights are described as the stand-ins of their numbers."""
    described = dict(state)
    for number, sharing in palettes.items():
        for palette in sharing:
            described |= stand_in(palette, number)
    return described
