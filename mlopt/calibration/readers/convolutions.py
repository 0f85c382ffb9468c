"""Convolutions: the patches that their kernels meet."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mlopt.calibration.readers.patches import (
    conv_arrangement,
    conv_patches,
    results_at_patches,
    transposed_arrangement,
    transposed_patches,
)
from mlopt.calibration.readers.reader import Arguments, Reader, Use
from mlopt.runtime.ops.convolution import padded, padding_amounts, transposed_crops


def conv_reader(use: Use) -> Reader:
    """Return the reader of a conv's weight [O, I/g, *K]: by the patches of each group."""
    kernel = use.shape[2:]
    rank = len(kernel)
    groups = int(use.constant("groups", 1))
    strides = use.constant("strides", (1,) * rank)
    dilations = use.constant("dilations", (1,) * rank)
    pad_type, pad = use.constant("pad_type", "valid"), use.constant("pad", None)
    lengths = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = arguments["x"]
        amounts = padding_amounts(pad_type, pad, x.shape[2:], lengths, strides)
        return conv_patches(
            padded(x, amounts, 0.0), kernel, strides=strides, dilations=dilations, groups=groups
        )

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        return results_at_patches(result, groups * math.prod(use.shape[1:]), groups)

    return Reader(
        arrangement=conv_arrangement(use.shape, groups),
        sources=use.sources("x"),
        geometry=("conv", kernel, groups, strides, dilations, pad_type, pad),
        inputs=inputs,
        outputs=outputs,
    )


def conv_transpose_reader(use: Use) -> Reader:
    """Return the reader of a conv_transpose's weight [I, O/g, *K]: by patches, as for a conv."""
    kernel = use.shape[2:]
    rank = len(kernel)
    groups = int(use.constant("groups", 1))
    strides = use.constant("strides", (1,) * rank)
    dilations = use.constant("dilations", (1,) * rank)
    cropping = {
        name: use.constant(name, default)
        for name, default in (("pad", None), ("output_shape", None), ("pad_type", "valid"))
    }

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = arguments["x"]
        crops = transposed_crops(
            x.shape, use.shape, strides=strides, dilations=dilations, groups=groups, **cropping
        )
        return transposed_patches(
            x, kernel, strides=strides, dilations=dilations, groups=groups, crops=crops
        )

    def outputs(arguments: Arguments, result: Tensor) -> Iterable[Tensor]:
        return results_at_patches(result, use.shape[0] * math.prod(kernel), groups)

    return Reader(
        arrangement=transposed_arrangement(use.shape, groups),
        sources=use.sources("x"),
        geometry=("conv_transpose", use.shape, groups, strides, dilations, *cropping.values()),
        inputs=inputs,
        outputs=outputs,
    )
