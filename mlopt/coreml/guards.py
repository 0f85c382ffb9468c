"""Why a weight stays as it is, before anyone asks how it would be palettized."""

from __future__ import annotations

from mlopt.coreml.joint import can_be_palettized
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.weights import Weight, is_mask
from mlopt.palette.palettize import is_finite
from mlopt.requests.keep import NOT_FINITE, Keep, low_rank
from mlopt.requests.rules import Resolution

_FLOATS = ("float16", "float32")
COMPRESSED = "compressed already"
"""The category of weights that stay because joint compression does not reach them."""


def reason_to_keep(
    weight: Weight,
    resolution: Resolution[OpPalettizerConfig],
    *,
    joint_compression: bool,
) -> Keep | None:
    """Why a weight stays: its use, its type, the rules, its values; None if it does not."""
    reason = _of_use(weight) or _of_type(weight)
    if reason is not None:
        return reason
    if weight.is_compressed and not (joint_compression and can_be_palettized(weight)):
        return Keep(COMPRESSED)
    if resolution.config is None:
        return resolution.reason_to_keep
    if weight.size <= resolution.config.weight_threshold:
        return Keep(
            f"{weight.size} elements, not more than weight_threshold "
            f"{resolution.config.weight_threshold}",
            "not more elements than weight_threshold",
        )
    return _of_values(weight)


def _of_use(weight: Weight) -> Keep | None:
    """Who reads it needs it as it is."""
    if weight.is_part:
        return Keep("part of something compressed already")
    if any(user.op_type == "custom_layer" for user in weight.consumers):
        return Keep(
            "a custom layer reads it, and its code gets it as it is stored",
            "read by a custom layer",
        )
    if weight.inline:
        return Keep("an attribute of its operation")
    return None


def _of_type(weight: Weight) -> Keep | None:
    """No table can stand for it, or nothing that reads tables reads it."""
    if weight.dtype not in _FLOATS:
        return Keep(
            f"{weight.dtype}; only {' and '.join(_FLOATS)} can be palettized", "not a float"
        )
    if len(weight.shape) < 2:
        return low_rank(len(weight.shape))
    if weight.is_block_output:
        return Keep("a block returns it as it is", "returned by a block")
    if not weight.consumers:
        return Keep("no operation reads it", "read by no operation")
    return None


def _of_values(weight: Weight) -> Keep | None:
    """What it holds is not for a table; the values are read for this, and released."""
    value = weight.value()
    try:
        if not is_finite(value):
            return NOT_FINITE
        if not weight.is_compressed and is_mask(weight, value):
            return Keep("it looks like an attention mask", "attention mask")
    finally:
        weight.release()
    return None
