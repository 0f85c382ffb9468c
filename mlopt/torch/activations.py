"""Activations in 8 bits: ranges of outputs are observed and simulated in training, then fixed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

NAME = "activation_quantizer"
"""Name of a quantizer in the module whose output it takes."""

_MOMENTUM = 0.01
"""Share of a new range in the moving average of ranges."""


@attrs.frozen
class Codes:
    """Codes from ``least`` to ``greatest``, stored as ``torch.qint8`` or ``torch.quint8``."""

    least: int
    greatest: int
    dtype: torch.dtype


class FakeQuantizedActivation(nn.Module):
    """Simulates activations in 8-bit codes; the gradient passes inside the range.

    The range is a moving average of the smallest and largest activations of the batches in
    training, zero included. Codes are affine: ``(code - zero_point) * scale``.
    """

    low: Tensor
    high: Tensor
    enabled: Tensor
    started: Tensor

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.codes = codes
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("enabled", torch.tensor(0, dtype=torch.int8))
        self.register_buffer("started", torch.tensor(0, dtype=torch.int8))

    def enable(self, enabled: bool = True) -> None:
        """Switch quantization on or off."""
        self.enabled.fill_(enabled)

    def forward(self, activations: Tensor) -> Tensor:
        """The activations as stored, of their own dtype."""
        if not self.enabled or not activations.numel():
            return activations
        if self.training and not _is_in_backward():
            self._watch(activations.detach())
        if not self.started:
            return activations
        scale, zero_point = self.scale_and_zero_point()
        stored = torch.fake_quantize_per_tensor_affine(
            activations.float(), scale, zero_point, self.codes.least, self.codes.greatest
        )
        return stored.to(activations.dtype)

    def scale_and_zero_point(self) -> tuple[float, int]:
        """Return the scale of the codes, and the code of zero; a scale of 1 for an empty range."""
        least, greatest = self.codes.least, self.codes.greatest
        low, high = float(self.low), float(self.high)
        scale = (high - low) / (greatest - least)
        if scale < torch.finfo(torch.float16).tiny:
            # subnormal in float16, which Core ML computes in
            scale = float(torch.finfo(torch.float16).tiny) if high > low else 1.0
        return scale, min(max(round(least - low / scale), least), greatest)

    def frozen(self) -> QuantizedActivation:
        """Return a quantizer with the present range."""
        return QuantizedActivation(self.codes, *self.scale_and_zero_point())

    @torch.no_grad()
    def _watch(self, activations: Tensor) -> None:
        low, high = torch.aminmax(activations.float())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            return  # a batch that training will skip says nothing about the range
        low, high = low.clamp(max=0.0).to(self.low), high.clamp(min=0.0).to(self.high)
        share = 1.0 if not self.started else _MOMENTUM
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.started.fill_(1)


class QuantizedActivation(nn.Module):
    """Quantizes activations and dequantizes them, in operations of Core ML (from iOS17 on)."""

    def __init__(self, codes: Codes, scale: float, zero_point: int) -> None:
        super().__init__()
        self.codes, self.scale, self.zero_point = codes, scale, zero_point

    def forward(self, activations: Tensor) -> Tensor:
        """The activations as stored, of their own dtype."""
        limits = torch.iinfo(torch.int8 if self.codes.dtype is torch.qint8 else torch.uint8)
        if (limits.min, limits.max) != (self.codes.least, self.codes.greatest):
            ends = (self.codes.least, self.codes.greatest)
            low, high = ((end - self.zero_point) * self.scale for end in ends)
            activations = activations.clamp(low, high)
        with warnings.catch_warnings():
            # PyTorch intends to drop quantized tensors, but these are what coremltools converts
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            codes = torch.quantize_per_tensor(
                activations.float(), self.scale, self.zero_point, self.codes.dtype
            )
        return codes.dequantize().to(activations.dtype)

    def get_extra_state(self) -> Tensor:
        """Return its part of a model's state.

        float64[5]: scale, zero point, least and greatest code, and whether codes have a sign.
        """
        codes = self.codes
        is_signed = codes.dtype is torch.qint8
        numbers = [self.scale, self.zero_point, codes.least, codes.greatest, is_signed]
        return torch.tensor(numbers, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the result of :meth:`get_extra_state`."""
        scale, zero_point, least, greatest, is_signed = state.tolist()
        dtype = torch.qint8 if is_signed else torch.quint8
        self.codes = Codes(int(least), int(greatest), dtype)
        self.scale, self.zero_point = scale, int(zero_point)

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        return f"scale={self.scale:.6g}, zero_point={self.zero_point}, dtype={self.codes.dtype}"


def _is_in_backward() -> bool:
    """Whether a backward pass is running: checkpointing repeats a pass that was observed."""
    graph_task: int = torch._C._current_graph_task_id()
    return graph_task != -1


def attach_quantizer(module: nn.Module, codes: Codes) -> FakeQuantizedActivation:
    """Quantize the output of a module, the first of several."""
    quantizer = FakeQuantizedActivation(codes)
    module.add_module(NAME, quantizer)
    module.register_forward_hook(_quantize_output)
    return quantizer


def is_quantizer_state(key: str) -> bool:
    """Whether a key of a model's state is that of the quantizer of a module."""
    return key.endswith(f"{NAME}._extra_state")


def remove_quantizers(model: nn.Module) -> None:
    """Remove the quantizers of all modules."""
    for module in model.modules():
        if module._modules.pop(NAME, None) is not None:
            for number, hook in list(module._forward_hooks.items()):
                if hook is _quantize_output:
                    del module._forward_hooks[number]


def attach_quantizers(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give modules exactly the quantizers that a state has."""
    remove_quantizers(model)
    modules = dict(model.named_modules())
    for key, numbers in state.items():
        name = key.removesuffix(f"{NAME}._extra_state").removesuffix(".")
        if not is_quantizer_state(key) or name not in modules:
            continue
        module = modules[name]
        module.register_forward_hook(_quantize_output)
        quantizer = QuantizedActivation(Codes(0, 255, torch.quint8), 1.0, 0)
        quantizer.set_extra_state(numbers)
        module._modules[NAME] = quantizer.train(module.training)


def freeze_quantizers(model: nn.Module) -> None:
    """Fix the ranges of all quantizers of a model; one without a range becomes the identity."""
    for module in model.modules():
        quantizer = module._modules.get(NAME)
        if isinstance(quantizer, FakeQuantizedActivation):
            is_used = bool(quantizer.enabled) and bool(quantizer.started)
            module._modules[NAME] = quantizer.frozen() if is_used else nn.Identity()


def quantizes_activations(model: Any) -> bool:
    """Whether a module quantizes activations, which Core ML then must do too."""
    return isinstance(model, nn.Module) and any(
        isinstance(module, QuantizedActivation) for module in model.modules()
    )


def _quantize_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook; it looks the quantizer up by name, so that copies of a module use their own."""
    quantizer = module._modules[NAME]
    assert quantizer is not None
    if isinstance(output, tuple):
        first, *others = output
        if isinstance(first, PackedSequence):
            return (first._replace(data=quantizer(first.data)), *others)
        return (quantizer(first), *others)
    return quantizer(output)
