"""Losses whose gradients tell what errors at the outputs of operations cost.

``"squared"``: the squared error of the outputs, each relative to its sum of squares. The outputs
are multiplied by random numbers v ~ N(0, I): the mean of ``g g^T``, with g the gradient of the
product, is the Gauss-Newton matrix of that error.

``"kl"``: the Kullback-Leibler divergence of classes or next tokens. A class is drawn from the
probabilities in each row: with g the gradient of its logarithm the mean of ``g g^T`` is the Fisher
matrix, the Hessian of the divergence where it is 0 (Martens, *New Insights and Perspectives on the
Natural Gradient Method*, arXiv 1412.1193, section 5). No labels are needed for either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mlopt.choices import LOSSES, LossName
from mlopt.errors import ConfigError

Loss: TypeAlias = "LossName | Callable[[dict[str, Tensor]], Tensor]"
"""The name of a loss, or a function from the outputs by name to a scalar tensor."""

_ROUNDING = 0.02
"""By how much the sum of the probabilities in a row, as float16, may differ from 1."""


def loss_name(loss: Loss) -> str:
    """Return the name of a loss, ``"custom"`` for a function.

    Raises
    ------
    ConfigError
        It is neither a function nor a known name.
    """
    if callable(loss):
        return "custom"
    if loss not in LOSSES:
        allowed = " or ".join(map(repr, LOSSES))
        raise ConfigError(f"loss must be {allowed}, or a function of the outputs, got {loss!r}")
    return loss


def loss_of(loss: Loss, outputs: dict[str, Any], number: int) -> Tensor:
    """Return the scalar whose gradient is wanted; ``number``: of the sample, the seed.

    Raises
    ------
    ConfigError
        An output is NaN or infinite; or ``"kl"``, and no output has classes.
    """
    if callable(loss):
        return loss(outputs)
    floats = {
        name: output
        for name, output in outputs.items()
        if isinstance(output, Tensor) and output.is_floating_point()
    }
    for name, output in floats.items():
        if not bool(torch.isfinite(output.detach()).all()):
            raise ConfigError(
                f"sample {number}: output {name!r} has NaN or infinite elements, which have no "
                "gradients; leave the sample out, or use statistics='hessian'"
            )
    generator = torch.Generator().manual_seed(number)
    return (_likelihood if loss == "kl" else _product)(floats, generator)


def _product(outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Return the product of random numbers and all outputs, each of length 1."""
    total = torch.zeros(())
    for output in outputs.values():
        v = torch.randn(output.shape, generator=generator).to(output.device)
        length = math.sqrt(float(output.detach().double().square().sum()))
        if length and output.requires_grad:
            total = total.to(output.device) + (output.float() * v).sum() / length
    return total


def _likelihood(outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Return the sum of the logarithms of classes that are drawn, one for each row."""
    total, any_classes = torch.zeros(()), False
    for output in outputs.values():
        if output.dim() == 0 or output.shape[-1] < 2:
            continue
        any_classes = True
        rows = output.float().reshape(-1, output.shape[-1])
        logarithms = _logarithms(rows)
        probabilities = logarithms.detach().exp().cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator).to(rows.device)
        total = total.to(rows.device) + logarithms.gather(1, drawn).sum()
    if not any_classes:
        raise ConfigError(
            "loss 'kl' is for outputs of classes, and the model has none with two or more elements "
            "in the last axis; use loss='squared'"
        )
    return total


def _logarithms(rows: Tensor) -> Tensor:
    """Return the logarithms of the probabilities of classes; rows: these, or scores of them."""
    given = rows.detach()
    is_certain = bool((given >= 0).all() and ((given.sum(1) - 1).abs() < _ROUNDING).all())
    if is_certain:
        return rows.clamp(min=torch.finfo(torch.float32).tiny).log()
    return rows.log_softmax(1)
