"""Recurrent layers by PyTorch's own kernels, which run all steps at once.

They have the usual activations only, and their gates stand in another order.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

_LSTM_ORDER = (0, 1, 3, 2)
"""Input, forget, output, cell as input, forget, cell, output."""
_GRU_ORDER = (0, 2, 1)
"""Reset, output, update as reset, update, output."""

_SINGLE_LAYER = (True, 1, 0.0, False)
"""For torch: there are biases, one layer, no dropout, no training."""


@attrs.frozen(eq=False)
class Layer:
    """The weights of one direction: [gates * hidden, inputs] and [gates * hidden, hidden].

    Biases, [gates * hidden], are added to the products with ``weight_ih`` and ``weight_hh``.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None = None


def can_be_fused(x: Tensor, states: Sequence[Tensor], layers: Sequence[Layer], gates: int) -> bool:
    """Return whether the kernels take the tensors, and round at least as often as steps do.

    The kernels do not check shapes: they would read and write outside a tensor.
    """
    if x.dim() != 3 or layers[0].weight_hh.dim() != 2:
        return False
    hidden, (steps, batch, inputs) = layers[0].weight_hh.shape[1], x.shape
    wanted: list[tuple[Tensor, tuple[int, ...]]] = []
    wanted += [(state, (batch, len(layers) * hidden)) for state in states]
    for layer in layers:
        wanted += [(layer.weight_ih, (gates * hidden, inputs))]
        wanted += [(layer.weight_hh, (gates * hidden, hidden))]
        biases = (layer.bias_ih, layer.bias_hh)
        wanted += [(bias, (gates * hidden,)) for bias in biases if bias is not None]
    return (
        x.dtype in (torch.float32, torch.float64)
        and x.device.type == "cpu"  # cuDNN wants all weights in one piece of memory
        and 0 not in (steps, inputs, hidden)
        and all(t.dtype == x.dtype and t.device == x.device for t, _ in wanted)
        and all(tuple(t.shape) == shape for t, shape in wanted)
    )


def fused_lstm(
    x: Tensor, hidden: Tensor, cell: Tensor, layers: Sequence[Layer]
) -> tuple[Tensor, Tensor, Tensor]:
    """All outputs [steps, batch, directions * hidden], the last hidden state and the last cell.

    x: [steps, batch, inputs]; hidden, cell: [batch, directions * hidden].
    """
    weights = [part for layer in layers for part in _weights(layer, _LSTM_ORDER)]
    count = len(layers)
    states = [torch.stack(state.chunk(count, dim=-1)) for state in (hidden, cell)]
    outputs, hidden, cell = torch.lstm(x, states, weights, *_SINGLE_LAYER, count == 2, False)
    return outputs, torch.cat(tuple(hidden), dim=-1), torch.cat(tuple(cell), dim=-1)


def fused_gru(x: Tensor, hidden: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """All outputs [steps, batch, hidden], and the last: reset after the product with the state."""
    weights = list(_weights(layer, _GRU_ORDER))
    outputs, last = torch.gru(x, hidden[None], weights, *_SINGLE_LAYER, False, False)
    return outputs, last[0]


def fused_rnn(x: Tensor, hidden: Tensor, layer: Layer, *, is_relu: bool) -> tuple[Tensor, Tensor]:
    """All outputs [steps, batch, hidden], and the last."""
    function = torch.rnn_relu if is_relu else torch.rnn_tanh
    weights = list(_weights(layer, (0,)))
    outputs, last = function(x, hidden[None], weights, *_SINGLE_LAYER, False, False)
    return outputs, last[0]


def _weights(layer: Layer, order: Sequence[int]) -> tuple[Tensor, ...]:
    zeros = layer.weight_hh.new_zeros(len(layer.weight_hh))
    parts = (
        layer.weight_ih,
        layer.weight_hh,
        zeros if layer.bias_ih is None else layer.bias_ih,
        zeros if layer.bias_hh is None else layer.bias_hh,
    )
    if len(order) == 1:
        return parts
    return tuple(torch.cat([part.chunk(len(order))[gate] for gate in order]) for part in parts)
