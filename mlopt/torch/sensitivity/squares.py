"""Sums over samples of the squared gradients of each sample."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlopt.errors import ConfigError
from mlopt.torch.sensitivity.calibration import LossFunction

Total = tuple[str, Tensor, float]
"""Name of a parameter, the sum of its squared gradients, the largest magnitude among these."""

_PIECE = 1 << 20
"""Elements, about, that are squared at a time: intermediates take 4 MiB, not a whole gradient."""

_LARGEST = math.sqrt(torch.finfo(torch.float32).max)


class SquareSums:
    """Sums of squared gradients, filled from inside the backward pass.

    A hook on each parameter takes its gradient as soon as it is complete, and frees it: at no time
    do the gradients of all parameters exist.

    Autograd completes a gradient once in a backward pass, however often the parameter was used,
    with one exception: reentrant checkpoints run passes of their own, and what is used in several
    of them gets its gradient in parts, to be added *before* squaring. The first sample tells which
    parameters those are: then the sums hold gradients, and are squared at its end. From the second
    sample on the gradients of these parameters stay until the pass has ended.

    Attributes
    ----------
    parameters
        Name -> leaf tensor that requires a gradient, and has none.
    sums
        Name -> float32, contiguous, of the parameter's shape and on its device.
    in_parts
        Names of the parameters whose gradients come in parts; None before the first sample.
    largest
        Name -> the largest magnitude that an element of its gradient has had. What had no gradient
        is not there.
    latest
        Names of what had a gradient in the latest sample.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], in_parts: Collection[str] | None = None
    ) -> None:
        self.parameters = dict(parameters)
        self.sums = {
            name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
            for name, p in self.parameters.items()
        }
        self.in_parts = None if in_parts is None else frozenset(in_parts)
        self.largest: dict[str, float] = {}
        self.latest: frozenset[str] = frozenset()
        self._peaks: dict[str, Tensor] = {}
        self._arrivals: dict[str, int] = {}
        self._is_collecting = False
        self._has_dependence = False

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Install the hooks for the block."""
        with contextlib.ExitStack() as stack:
            for name, parameter in self.parameters.items():
                handle = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._hook(name)
                )
                stack.callback(handle.remove)
            yield

    def add_sample(self, model: nn.Module, sample: Any, loss_fn: LossFunction, index: int) -> bool:
        """Add one sample's squared gradients; call it within ``hooked``, in gradient mode.

        Returns
        -------
        Whether the loss had a gradient: not if no requested parameter takes part.

        Raises
        ------
        ConfigError
            The loss is not a scalar, depends on no parameter, or a gradient cannot be squared.
        """
        self._peaks, self._arrivals = {}, dict.fromkeys(self.parameters, 0)
        loss = loss_fn(model, sample)
        if self._is_beside(loss, model, sample, loss_fn):
            self.latest = frozenset()
            return False
        loss = checked_loss(loss, index)
        self._has_dependence = True
        self._is_collecting = True
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._is_collecting = False
        arrived = [name for name, count in self._arrivals.items() if count]
        if self.in_parts is None:
            self.in_parts = frozenset(name for name in arrived if self._arrivals[name] > 1)
            self._peaks = {name: square_(self.sums[name]) for name in arrived}
        else:
            for name in self.in_parts:
                self._take(name)
            self._check_arrivals(index)
        self.latest = frozenset(arrived)
        note_largest(self.largest, self._peaks, loss, index)
        return True

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def take(_: Tensor) -> None:
            if self._is_collecting:
                self._arrivals[name] += 1
                if self.in_parts is None or name not in self.in_parts:
                    self._take(name)

        return take

    def _take(self, name: str) -> None:
        parameter = self.parameters[name]
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if self.in_parts is None:
            add(self.sums[name], gradient.detach())
        else:
            self._peaks[name] = add_square(self.sums[name], gradient.detach())

    def _is_beside(self, loss: Any, model: nn.Module, sample: Any, loss_fn: LossFunction) -> bool:
        """Whether a loss depends on parameters of the model, but on none of the requested ones.

        An expert that a sample is not sent to, or a layer that is never used, may be all that is
        wanted; a loss that was detached is a mistake. The first time, the loss is computed once
        more with gradients for the other parameters, to tell the two apart.
        """
        if not isinstance(loss, Tensor) or loss.requires_grad:
            return False
        others = [
            p
            for p in model.parameters()
            if not p.requires_grad and p.is_floating_point() and not p.is_inference()
        ]
        if not others or self._has_dependence:
            return bool(others)
        try:
            for parameter in others:
                parameter.requires_grad_(True)
            again = loss_fn(model, sample)
        finally:
            for parameter in others:
                parameter.requires_grad_(False)
        self._has_dependence = isinstance(again, Tensor) and again.requires_grad
        return self._has_dependence

    def _check_arrivals(self, index: int) -> None:
        for name, count in self._arrivals.items():
            if count > 1 and name not in (self.in_parts or ()):
                raise ConfigError(
                    f"the gradient of {name!r} came in {count} parts for sample {index}, and in "
                    f"one for the first: a reentrant checkpoint that only some samples go through "
                    f"is not supported; use torch.utils.checkpoint with use_reentrant=False"
                )


def checked_loss(loss: Any, index: int) -> Tensor:
    """Return a loss that a gradient can be taken of, or raise ``ConfigError``."""
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"loss_fn must return a tensor of one element, got {type(loss).__name__} for sample "
            f"{index}: return the loss itself, not its item() nor the model's whole output"
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"loss_fn must return a tensor of one element, got shape {tuple(loss.shape)} for "
            f"sample {index}: reduce it, for example with mean()"
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"the loss of sample {index} depends on none of the parameters that sensitivities "
            f"are computed for: loss_fn must run the model that it is given, with gradients (no "
            f"detach, no torch.no_grad within it), and these parameters must take part"
        )
    return loss


def add_square(total: Tensor, gradient: Tensor) -> Tensor:
    """Add the square of a gradient, in float32, and return its largest magnitude.

    Parameters
    ----------
    total
        float32, changed in place.
    gradient
        Of its shape, any floating dtype and layout, dense or sparse (COO). It is left alone: other
        gradients may share its memory.

    Returns
    -------
    float32, 0-dimensional, on the same device: NaN where the gradient has one.
    """
    return _accumulate(total, gradient, is_squared=True)


def add(total: Tensor, gradient: Tensor) -> None:
    """Add a gradient itself; all else is as for ``add_square``."""
    _accumulate(total, gradient, is_squared=False)


@torch.no_grad()
def _accumulate(total: Tensor, gradient: Tensor, *, is_squared: bool) -> Tensor:
    if gradient.is_sparse:
        gradient = gradient.coalesce()  # a row that was used twice has two gradients, to be added
        values = gradient.values().float()
        addend = values.square() if is_squared else values
        total.index_put_(tuple(gradient.indices()), addend, accumulate=True)
        return _magnitude(values)
    pieces = _pieces(gradient)
    # One buffer for all, since the allocator would not reuse one that was freed.
    scratch = torch.empty(pieces[0].shape, dtype=torch.float32, device=total.device)
    peak = torch.zeros((), dtype=torch.float32, device=total.device)
    for into, piece in zip(_pieces(total), pieces, strict=True):
        values = scratch[: len(piece)].copy_(piece)
        peak = torch.maximum(peak, _magnitude(values))
        into.add_(values.square_() if is_squared else values)
    return peak


@torch.no_grad()
def square_(total: Tensor) -> Tensor:
    """Square a float32 tensor in place, and return the largest magnitude that it had."""
    peak = torch.stack([_magnitude(piece) for piece in _pieces(total)]).amax()
    total.square_()
    return peak


def note_largest(
    largest: dict[str, float], peaks: Mapping[str, Tensor], loss: Tensor, index: int
) -> None:
    """Record the largest magnitudes of a sample's gradients.

    Raises
    ------
    ConfigError
        A gradient has an element that is not finite, or whose square float32 does not hold.
    """
    by_device: dict[torch.device, list[str]] = {}
    for name, peak in peaks.items():
        by_device.setdefault(peak.device, []).append(name)
    for names in by_device.values():  # one transfer per device, not per parameter
        numbers = torch.stack([peaks[name] for name in names]).tolist()
        for name, number in zip(names, numbers, strict=True):
            if not number <= _LARGEST:
                raise ConfigError(unusable_gradient(name, number, float(loss.detach()), index))
            largest[name] = max(largest.get(name, 0.0), number)


def unusable_gradient(name: str, peak: float, loss: float, index: int) -> str:
    """Say what is wrong with a gradient of this largest magnitude."""
    if math.isfinite(peak):
        return (
            f"the gradient of {name!r} reaches {peak:.3g} for sample {index}, and its square "
            f"does not fit float32: scale the loss down"
        )
    return (
        f"the gradient of {name!r} has elements that are {peak} for sample {index}, whose loss "
        f"is {loss:.6g}: gradients must be finite; check the sample, and the range of the "
        f"model's dtype"
    )


def _magnitude(values: Tensor) -> Tensor:
    if not values.numel():
        return values.new_zeros(())
    low, high = torch.aminmax(values)  # with a NaN both are NaN; many times as fast as a norm
    return torch.maximum(-low, high)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Split a tensor that has elements into views of whole rows."""
    rows = torch.atleast_1d(tensor)  # type: ignore[no-untyped-call]
    height = max(1, _PIECE * len(rows) // max(1, rows.numel()))
    return tuple(rows.split(height))
