"""Calibration: the samples that sensitivities are computed from, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from torch import Tensor, nn

from mlopt.errors import ConfigError

LossFunction = Callable[[nn.Module, Any], Tensor]
"""Computes the loss of a model, a tensor of one element, on one sample."""


@attrs.frozen(eq=False, kw_only=True)
class Calibration:
    """The arguments of ``compute_sensitivities`` besides the model, under the same names."""

    dataloader: Iterable[Any]
    loss_fn: LossFunction
    nsamples: int
    workers: int
    samples_are_sharded: bool
    rank0_only: bool

    def check(self) -> None:
        """Raise ``ConfigError`` for an argument that is not as the function describes it."""
        given: Any = self  # whose types are not guaranteed
        if not isinstance(given.dataloader, Iterable) and not hasattr(
            given.dataloader, "__getitem__"
        ):
            raise ConfigError(
                f"dataloader must yield samples, got {type(given.dataloader).__name__}, which "
                f"cannot be iterated over: give a DataLoader or a list"
            )
        if not callable(given.loss_fn):
            raise ConfigError(
                f"loss_fn must be a function of the model and a sample, got "
                f"{type(given.loss_fn).__name__}"
            )
        for name in ("nsamples", "workers"):
            number = getattr(given, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {number!r}")
