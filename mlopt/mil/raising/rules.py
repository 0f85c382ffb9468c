"""Rules for what must change in an operation when its function is raised by one opset.

Most operations that a newer opset redefines only accept more types. Those whose signature or
meaning changed each have a rule in ``RULES``; larger rules have files of their own. New parameters
are written even though they are optional, because the Core ML compiler rejects an operation without
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlopt.mil.raising import compressed, crop_resize
from mlopt.mil.raising.change import (
    FLOATS,
    Change,
    Rule,
    Unraisable,
    constant_scalar,
    dtype_of,
    sizes_of,
    type_of,
)
from mlopt.mil.raising.indices import along_axis, into_leading_axes
from mlopt.mil.values import immediate_value


def _defaults(**values: Any) -> Rule:
    """Return a rule that writes new parameters with their default values."""

    def rule(change: Change) -> None:
        for parameter, value in values.items():
            change.set_default(parameter, immediate_value(value))

    return rule


def _both(first: Rule, second: Rule) -> Rule:
    def rule(change: Change) -> None:
        first(change)
        second(change)

    return rule


def _refuse(reason: str) -> Rule:
    """Return a rule that refuses to raise, for ``reason``."""

    def rule(change: Change) -> None:
        raise Unraisable(reason)

    return rule


def _upsample_bilinear(change: Change) -> None:
    """Pixel centres were at halves exactly where corners were not aligned."""
    aligned = constant_scalar(
        change.node, "align_corners", True, bool, "half_pixel_centers follows from it"
    )
    change.set_default("half_pixel_centers", immediate_value(np.bool_(not aligned)))


def _topk(change: Change) -> None:
    """The type of the indices is named, but only if there are indices."""
    why = "it decides whether output_indices_dtype may be given"
    if constant_scalar(change.node, "return_indices", True, bool, why):
        change.set_default("output_indices_dtype", immediate_value("int32"))


def _clip(change: Change) -> None:
    """Equal or swapped bounds are rejected since CoreML7."""
    why = "alpha must be less than beta"
    low = constant_scalar(change.node, "alpha", None, float, why)
    high = constant_scalar(change.node, "beta", None, float, why)
    if low is not None and high is not None and not low < high:
        raise Unraisable(f"it clips to [{low}, {high}], and {why}")


def _gru(change: Change) -> None:
    """The reset gate came before the product, and there was one bias."""
    # The type is enough: the weight itself may be compressed.
    weight = type_of(change.node, "weight_hh")
    sizes, dtype = sizes_of(weight), dtype_of(weight)
    if sizes is None or len(sizes) != 2 or sizes[0] is None:
        raise Unraisable(
            "input_bias takes the rows of weight_hh, which is not a matrix of fixed size"
        )
    if dtype is None or dtype.name not in FLOATS:
        raise Unraisable(f"input_bias takes the type of weight_hh, which is not one of {FLOATS}")
    change.set_default("reset_after", immediate_value(np.bool_(False)))
    change.set_default("input_bias", immediate_value(np.zeros(sizes[0], np.float32), dtype))


_VALIDATE = _defaults(validate_indices=np.bool_(False))

#: What each opset changed: new opset -> operation type -> rule.
RULES: dict[str, dict[str, Rule]] = {
    "CoreML5": {},
    "CoreML6": {
        "gather": _defaults(batch_dims=np.int32(0)),
        "gather_nd": _defaults(batch_dims=np.int32(0)),
        "topk": _defaults(sort=np.bool_(True), return_indices=np.bool_(True)),
        "upsample_bilinear": _upsample_bilinear,
        "crop_resize": crop_resize.pad_value,
    },
    "CoreML7": {
        "gather": _both(along_axis("x"), _VALIDATE),
        "gather_along_axis": _both(along_axis("x"), _VALIDATE),
        "gather_nd": _both(into_leading_axes("x"), _VALIDATE),
        "scatter": _both(along_axis("data"), _VALIDATE),
        "scatter_along_axis": _both(along_axis("data"), _VALIDATE),
        "scatter_nd": _both(into_leading_axes("data"), _VALIDATE),
        "topk": _topk,
        "reduce_argmax": _defaults(output_dtype="int32"),
        "reduce_argmin": _defaults(output_dtype="int32"),
        "clip": _clip,
        "crop_resize": crop_resize.boxes,
        "non_maximum_suppression": _refuse(
            "the newer opset orders boxes along the last axis, has no score_threshold and does not "
            "return the number of boxes"
        ),
    },
    "CoreML8": {
        "gru": _gru,
        "constexpr_cast": compressed.cast,
        "constexpr_lut_to_dense": compressed.lut_to_dense,
        "constexpr_sparse_to_dense": compressed.sparse_to_dense,
        "constexpr_affine_dequantize": compressed.affine_dequantize,
    },
    "CoreML9": {},
}
