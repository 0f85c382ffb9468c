"""What has to change in an operation when its function is raised by one opset.

Most operations that a newer opset redefines only accept more types. Those whose signature or
meaning changed each have a rule in ``RULES``; larger rules have files of their own. New parameters
are written out although they are optional, because the Core ML compiler rejects an operation that
lacks them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlopt.mil import opset_compressed, opset_crop_resize
from mlopt.mil.opset_change import Change, Rule, Unraisable
from mlopt.mil.opset_indices import along_axis, into_leading_axes
from mlopt.mil.values import immediate_value


def _defaults(**values: Any) -> Rule:
    """Return a rule that writes out new parameters with the values they stand for when absent."""

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
    """Return a rule that gives up for ``reason``."""

    def rule(change: Change) -> None:
        raise Unraisable(reason)

    return rule


def _upsample_bilinear(change: Change) -> None:
    """Pixel centres were at halves exactly where corners were not aligned."""
    try:
        aligned = change.node.scalar("align_corners", True)
    except ValueError:
        raise Unraisable(
            "align_corners is computed, and half_pixel_centers follows from it"
        ) from None
    change.set_default("half_pixel_centers", immediate_value(np.bool_(not aligned)))


def _topk(change: Change) -> None:
    """The type of the indices is named, and only where there are indices."""
    try:
        has_indices = change.node.scalar("return_indices", True)
    except ValueError:
        raise Unraisable(
            "return_indices is computed, and decides whether output_indices_dtype may be given"
        ) from None
    if has_indices:
        change.set_default("output_indices_dtype", immediate_value("int32"))


def _clip(change: Change) -> None:
    """Equal or swapped bounds are rejected since CoreML7."""
    try:
        low, high = change.node.scalar("alpha"), change.node.scalar("beta")
    except ValueError:
        return
    if low is not None and high is not None and not low < high:
        raise Unraisable(f"it clips to [{low}, {high}], and alpha has to be less than beta")


def _gru(change: Change) -> None:
    """The reset gate came before the product, and there was one bias."""
    change.set_default("reset_after", immediate_value(np.bool_(False)))
    weight = change.node.constant_input("weight_hh")
    if weight is None:
        raise Unraisable("weight_hh, from which the shape of input_bias follows, is computed")
    zeros = np.zeros(weight.shape[:1], np.float32)
    change.set_default("input_bias", immediate_value(zeros, weight.dtype))


_VALIDATE = _defaults(validate_indices=np.bool_(False))

#: What each opset changed: new opset -> operation type -> rule.
RULES: dict[str, dict[str, Rule]] = {
    "CoreML5": {},
    "CoreML6": {
        "gather": _defaults(batch_dims=np.int32(0)),
        "gather_nd": _defaults(batch_dims=np.int32(0)),
        "topk": _defaults(sort=np.bool_(True), return_indices=np.bool_(True)),
        "upsample_bilinear": _upsample_bilinear,
        "crop_resize": opset_crop_resize.pad_value,
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
        "crop_resize": opset_crop_resize.boxes,
        "non_maximum_suppression": _refuse(
            "the newer opset orders boxes along the last axis, has no score_threshold and does not "
            "return the number of boxes"
        ),
    },
    "CoreML8": {
        "gru": _gru,
        "constexpr_cast": opset_compressed.cast,
        "constexpr_lut_to_dense": opset_compressed.lut_to_dense,
        "constexpr_sparse_to_dense": opset_compressed.sparse_to_dense,
        "constexpr_affine_dequantize": opset_compressed.affine_dequantize,
    },
    "CoreML9": {},
}
