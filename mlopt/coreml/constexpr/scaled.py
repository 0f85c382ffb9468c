"""A palette and the scale of its channels taken together: one gather instead of two passes.

What is multiplied and how it is rounded is the same, so the values are too.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlopt.coreml.constexpr import lut
from mlopt.coreml.constexpr.operations import Checked, is_old_form
from mlopt.coreml.constexpr.parameters import BYTES
from mlopt.mil.program import Variable
from mlopt.palette.value.palettized import Palettized

_LUT = "constexpr_lut_to_dense"
_SCALE = "constexpr_blockwise_shift_scale"


def scaled_lut(links: Sequence[Checked]) -> Checked | None:
    """The operation of a chain whose palette the last one scales channel by channel, if it does."""
    last = links[-1]
    if last.node.op_type != _SCALE or "offset" in last.parameters:
        return None
    data, scale = last.node.inputs["data"][0], last.parameters["scale"]
    if isinstance(last.node.inputs["scale"][0], Variable):
        return None
    long_axes = [axis for axis, n in enumerate(scale.shape) if n > 1]
    shape = last.parameters["data"].shape
    if len(long_axes) > 1 or any(scale.shape[axis] != shape[axis] for axis in long_axes):
        return None
    # Integers of a table are scaled, and converted, by the formula alone.
    if (not long_axes and 1 not in shape) or scale.dtype != last.parameters["data"].dtype:
        return None
    return next(
        (
            link
            for link in links
            if link.node.op_type == _LUT and any(data is output for output in link.node.outputs)
        ),
        None,
    )


def palette(table: Checked, scale: Checked | None) -> Palettized | None:
    """The palette of a ``constexpr_lut_to_dense``; None if its table holds integers.

    ``scale``: the operation for which ``table`` is the ``scaled_lut``, None without one.
    """
    if table.parameters["lut"].dtype in BYTES:
        return None
    parts = lut.old_palette_parts if is_old_form(table.node) else lut.palette_parts
    entries, indices, axis = parts(table.parameters)
    factors = None if scale is None else scale.parameters["scale"].read()
    return Palettized(entries, indices, axis, factors)
