"""A palettized weight as the value that the library works with."""

from __future__ import annotations

from mlopt.coreml.constexpr import lut
from mlopt.coreml.constexpr.chains import chain_of
from mlopt.coreml.constexpr.evaluation import value_of
from mlopt.coreml.constexpr.operations import checked, is_old_form
from mlopt.coreml.constexpr.parameters import BYTES, refusal
from mlopt.mil.program import Node
from mlopt.palette.palettized import Palettized

_LUT = "constexpr_lut_to_dense"
_SCALE = "constexpr_blockwise_shift_scale"


def palette_of(node: Node) -> Palettized:
    """The palette that a ``constexpr_lut_to_dense`` holds, with the scale if ``node`` is one.

    ``node``: either operation of the forms that :mod:`mlopt.coreml.emission` writes.

    Raises
    ------
    ModelFormatError
        It is of another form, or damaged.
    """
    links = [checked(link, value_of) for link in chain_of(node)]
    link = links[-1]
    scale = None
    if node.op_type == _SCALE and len(links) > 1 and "offset" not in link.parameters:
        scale = link.parameters["scale"].read()
        link = links[-2]
    if link.node.op_type != _LUT or link.parameters["lut"].dtype in BYTES:
        raise refusal(node, "it is no palette of floats, nor one with a scale")
    parts = lut.old_palette_parts if is_old_form(link.node) else lut.palette_parts
    table, indices, axis = parts(link.parameters)
    return Palettized(table, indices, axis, scale)
