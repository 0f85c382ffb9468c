"""A palettized weight as the value that the library works with."""

from __future__ import annotations

from mlopt.coreml.constexpr.chains import chain_of
from mlopt.coreml.constexpr.evaluation import value_of
from mlopt.coreml.constexpr.operations import checked
from mlopt.coreml.constexpr.parameters import refusal
from mlopt.coreml.constexpr.scaled import palette, scaled_lut
from mlopt.mil.program import Node
from mlopt.palette.value.palettized import Palettized


def palette_of(node: Node) -> Palettized:
    """The palette that a ``constexpr_lut_to_dense`` holds, with the scale if ``node`` is one.

    ``node``: either operation of the forms that :mod:`mlopt.coreml.emission` writes.

    Raises
    ------
    ModelFormatError
        It is of another form, or damaged.
    """
    links = [checked(link, value_of) for link in chain_of(node)]
    last, scaled = links[-1], scaled_lut(links)
    table, scale = (last, None) if scaled is None else (scaled, last)
    found = palette(table, scale) if table.node.op_type == "constexpr_lut_to_dense" else None
    if found is None:
        raise refusal(node, "it is no palette of floats, nor one with a scale of channels")
    return found
