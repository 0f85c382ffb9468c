"""Random weights with the shape of trained ones: Gaussian, layers and channels of unequal sigma."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

CHANNEL_SPREAD = 0.3
"""Standard deviation of the logarithm of a channel's sigma: a mixture, heavier-tailed than one
Gaussian."""
LAYER_SPREAD = 0.3
"""Standard deviation of the logarithm of a layer's gain."""


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """float32 array of ``shape``, axis 0 the output channels, of sigma about ``fan_in ** -0.5``."""
    gain = np.exp(LAYER_SPREAD * rng.standard_normal()) * fan_in**-0.5
    per_channel = np.exp(CHANNEL_SPREAD * rng.standard_normal(shape[0], dtype=np.float32))
    weight = rng.standard_normal(shape, dtype=np.float32)
    weight *= (gain * per_channel).astype(np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return weight


def _set(parameter: torch.Tensor, value: np.ndarray) -> None:
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> nn.Module:
    """Fill every convolution, linear, embedding, LSTM and norm layer of ``module``; return it.

    In place. A layer of another kind that has parameters of its own is a TypeError: they would be
    others in the next process.
    """
    rng = np.random.default_rng(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            shape = tuple(layer.weight.shape)
            _set(layer.weight, random_weight(rng, shape, fan_in=int(np.prod(shape[1:]))))
            if layer.bias is not None:
                _set(layer.bias, 0.02 * rng.standard_normal(layer.bias.numel()))
        elif isinstance(layer, nn.BatchNorm2d):
            n = layer.num_features
            _set(layer.weight, 1 + 0.1 * rng.standard_normal(n))
            _set(layer.bias, 0.1 * rng.standard_normal(n))
            _set(layer.running_mean, 0.1 * rng.standard_normal(n))
            _set(layer.running_var, np.exp(0.3 * rng.standard_normal(n)))
        elif isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
            _set(layer.weight, 1 + 0.1 * rng.standard_normal(layer.weight.shape))
            _set(layer.bias, 0.1 * rng.standard_normal(layer.bias.shape))
        elif isinstance(layer, nn.Embedding):
            shape = tuple(layer.weight.shape)
            _set(layer.weight, random_weight(rng, shape, fan_in=shape[1]))
        elif isinstance(layer, nn.LSTM):
            for parameter in layer.parameters():
                shape = tuple(parameter.shape)
                if parameter.dim() == 1:
                    _set(parameter, 0.02 * rng.standard_normal(shape))
                else:
                    _set(parameter, random_weight(rng, shape, fan_in=shape[1]))
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"no random weights for {type(layer).__name__}")
    return module
