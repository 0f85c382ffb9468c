"""Plain forms of modules that coremltools cannot convert: linear layers and products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def has_plain_form(module: nn.Module) -> bool:
    """Whether a module computes the same as one of the forms here."""
    return _plain_forward(module) is not None


def use_plain_form(module: nn.Module) -> None:
    """Make a module compute the same in operations that coremltools converts, where needed.

    Its class changes to one that is derived from its own.
    """
    forward = _plain_forward(module)
    if forward is not None:
        module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def _plain_forward(module: nn.Module) -> Callable[..., Any] | None:
    # a derived class that computes something else stays as it is
    return next((f for cls, f in _FORMS.items() if type(module).forward is cls.forward), None)


def _lstm_cell(
    cell: nn.LSTMCell, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Compute ``torch.nn.LSTMCell``; without a batch as with a batch of one."""
    if input.dim() == 1:
        states = None if hx is None else (hx[0][None], hx[1][None])
        hidden, memory = _lstm_cell(cell, input[None], states)
        return hidden[0], memory[0]
    if hx is None:
        zeros = torch.zeros(input.shape[0], cell.hidden_size, dtype=input.dtype)
        hx = zeros, zeros
    hidden, memory = hx
    sums = linear(input, cell.weight_ih, cell.bias_ih) + linear(
        hidden, cell.weight_hh, cell.bias_hh
    )
    taken, kept, new, shown = sums.chunk(4, 1)
    memory = kept.sigmoid() * memory + taken.sigmoid() * new.tanh()
    return shown.sigmoid() * memory.tanh(), memory


def _gru_cell(cell: nn.GRUCell, input: Tensor, hx: Tensor | None = None) -> Tensor:
    """Compute ``torch.nn.GRUCell``; without a batch as with a batch of one."""
    if input.dim() == 1:
        return _gru_cell(cell, input[None], None if hx is None else hx[None])[0]
    if hx is None:
        hx = torch.zeros(input.shape[0], cell.hidden_size, dtype=input.dtype)
    of_input = linear(input, cell.weight_ih, cell.bias_ih).chunk(3, 1)
    of_state = linear(hx, cell.weight_hh, cell.bias_hh).chunk(3, 1)
    reset = (of_input[0] + of_state[0]).sigmoid()
    update = (of_input[1] + of_state[1]).sigmoid()
    new = (of_input[2] + reset * of_state[2]).tanh()
    return new + update * (hx - new)


def _bilinear(module: nn.Bilinear, input1: Tensor, input2: Tensor) -> Tensor:
    """Compute y[n, o] = sum over i, j of x1[n, i] W[o, i, j] x2[n, j], plus the bias."""
    shape = input1.shape[:-1]
    first = input1.reshape(-1, module.in1_features).t()
    second = input2.reshape(-1, module.in2_features).t()
    # [outputs, first inputs, n]: the weight is read as it is, for it to be stored as it is
    products = torch.matmul(module.weight, second) * first
    outputs = products.sum(1).t()
    if module.bias is not None:
        outputs = outputs + module.bias
    return outputs.reshape(*shape, module.out_features)


_FORMS: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.LSTMCell: _lstm_cell,
    nn.GRUCell: _gru_cell,
    nn.Bilinear: _bilinear,
}
