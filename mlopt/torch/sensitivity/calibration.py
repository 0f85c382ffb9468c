"""The samples that sensitivities are computed from, and what is done with them."""

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
    """What ``compute_sensitivities`` is told beside the model, under the same names."""

    dataloader: Iterable[Any]
    loss_fn: LossFunction
    nsamples: int
    workers: int
    samples_are_sharded: bool
    rank0_only: bool

    def check(self) -> None:
        """Raise ``ConfigError`` for what is not as the function describes it."""
        given: Any = self  # whose types are only hoped for
        if not isinstance(given.dataloader, Iterable) and not hasattr(
            given.dataloader, "__getitem__"
        ):
            raise ConfigError(
                f"dataloader has to yield samples, and got {type(given.dataloader).__name__}, "
                f"which cannot be iterated over: give a DataLoader or a list"
            )
        if not callable(given.loss_fn):
            raise ConfigError(
                f"loss_fn has to be a function of the model and a sample, got "
                f"{type(given.loss_fn).__name__}"
            )
        for name in ("nsamples", "workers"):
            number = getattr(given, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} has to be an integer of at least 1, got {number!r}")
