"""Recurrent layers (MIL, ``defs/*/recurrent.py``).

``x`` is [steps, batch, inputs], a state [batch, hidden]. Without ``output_sequence`` the first
output has the last step only. ``"reverse"`` goes through ``x`` from its end, and puts its steps out
in the order in which it takes them, as Core ML does.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from mlopt.runtime.ops.fused_recurrent import (
    Layer,
    can_be_fused,
    fused_gru,
    fused_lstm,
    fused_rnn,
)
from mlopt.runtime.registry import operation

Activation = Callable[[Tensor], Tensor]


def _hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


def _linear(x: Tensor) -> Tensor:
    return x


_ACTIVATIONS: dict[str, Activation] = {
    "hard_sigmoid": _hard_sigmoid,
    "linear": _linear,
    "relu": torch.relu,
    # no operation has inputs for its two factors, which are 1 where nothing is said
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": _hard_sigmoid,
    "tanh": torch.tanh,
}


@operation("rnn", keeps_nothing=True)
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """``h = activation(weight_ih x + weight_hh h + bias)`` at each step."""
    initial_h = _copied_if_unchanged(initial_h, x)
    _check_weights(weight_ih, weight_hh, 1)
    activate = _activation(activation)
    _check_direction(direction, ("forward", "reverse"))
    is_usual = activate in (torch.tanh, torch.relu)
    layer = Layer(weight_ih, weight_hh, bias)
    if is_usual and can_be_fused(x, [initial_h], [layer], 1):
        is_relu = activate is torch.relu
        sequence, last = fused_rnn(_taken(x, direction), initial_h, layer, is_relu=is_relu)
        return (sequence if output_sequence else last[None]), last
    hidden, outputs = initial_h, []
    for inputs in _steps(functional.linear(x, weight_ih, bias), direction):
        hidden = activate(inputs + functional.linear(hidden, weight_hh))
        outputs.append(hidden)
    return _output(outputs, hidden, output_sequence), hidden


@operation("gru", keeps_nothing=True)
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A gated recurrent unit; weights and biases in the order reset, output, update.

    The reset gate multiplies the state before ``weight_hh``, as in coremltools' tests of what
    devices compute; the formula of the definition can be read either way. With ``reset_after`` it
    multiplies what ``weight_hh`` and ``bias`` make of the state, and ``input_bias`` stays outside.
    """
    initial_h = _copied_if_unchanged(initial_h, x)
    size = _check_weights(weight_ih, weight_hh, 3)
    gate, activate = _activation(recurrent_activation), _activation(activation)
    _check_direction(direction, ("forward", "reverse"))
    is_usual = reset_after and gate is torch.sigmoid and activate is torch.tanh
    layer = Layer(weight_ih, weight_hh, input_bias, bias)
    if is_usual and can_be_fused(x, [initial_h], [layer], 3):
        sequence, last = fused_gru(_taken(x, direction), initial_h, layer)
        return (sequence if output_sequence else last[None]), last
    shift = weight_hh.new_zeros(3 * size) if bias is None else bias
    of_r, of_o, of_z = weight_hh.chunk(3)
    of_gates, shift_o = torch.cat((of_r, of_z)), shift[size : 2 * size]
    shift_gates = torch.cat((shift[:size], shift[2 * size :]))
    hidden, outputs = initial_h, []
    for inputs in _steps(functional.linear(x, weight_ih, input_bias), direction):
        x_r, x_o, x_z = inputs.chunk(3, dim=-1)
        h_r, h_z = functional.linear(hidden, of_gates, shift_gates).chunk(2, dim=-1)
        reset, update = gate(x_r + h_r), gate(x_z + h_z)
        if reset_after:
            proposed = activate(x_o + reset * functional.linear(hidden, of_o, shift_o))
        else:
            proposed = activate(x_o + functional.linear(reset * hidden, of_o, shift_o))
        hidden = (1 - update) * proposed + update * hidden
        outputs.append(hidden)
    return _output(outputs, hidden, output_sequence), hidden


@operation("lstm", keeps_nothing=True)
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory; weights in the order input, forget, output, cell.

    ``peephole`` has the factors of the cell in the first three gates: of the last step's cell in
    input and forget, of the new one in output. ``clip`` bounds the cell itself, as in coremltools'
    tests of what devices compute. ``"bidirectional"`` has the layer of the ``_back`` inputs too,
    which goes through ``x`` from its end; its states are the second halves, and its outputs are
    next to those of the same steps of ``x``.
    """
    initial_h, initial_c = (_copied_if_unchanged(state, x) for state in (initial_h, initial_c))
    gates = _activation(recurrent_activation)
    functions = _Functions(gates, _activation(cell_activation), _activation(activation), clip)
    _check_direction(direction, ("forward", "reverse", "bidirectional"))
    ahead = _LstmLayer(weight_ih, weight_hh, bias, peephole=peephole)
    layers = [ahead]
    if direction == "bidirectional":
        if weight_ih_back is None or weight_hh_back is None:
            raise ValueError("a bidirectional layer needs weight_ih_back and weight_hh_back")
        back = _LstmLayer(weight_ih_back, weight_hh_back, bias_back, peephole=peephole_back)
        layers.append(back)
    for layer in layers:
        _check_weights(layer.weight_ih, layer.weight_hh, 4)
    is_usual = functions.are_usual and all(layer.peephole is None for layer in layers)
    if is_usual and can_be_fused(x, [initial_h, initial_c], layers, 4):
        sequence, hidden, cell = fused_lstm(_taken(x, direction), initial_h, initial_c, layers)
        return (sequence if output_sequence else hidden[None]), hidden, cell
    if direction != "bidirectional":
        outputs, hidden, cell = _run_lstm(x, initial_h, initial_c, ahead, functions, direction)
        return _output(outputs, hidden, output_sequence), hidden, cell
    first_h, second_h = initial_h.chunk(2, dim=-1)
    first_c, second_c = initial_c.chunk(2, dim=-1)
    outputs, hidden, cell = _run_lstm(x, first_h, first_c, ahead, functions, "forward")
    others, hidden_back, cell_back = _run_lstm(x, second_h, second_c, back, functions, "reverse")
    both = (
        _output(outputs, hidden, output_sequence),
        _output(others[::-1], hidden_back, output_sequence),
    )
    return (
        torch.cat(both, dim=-1),
        torch.cat((hidden, hidden_back), dim=-1),
        torch.cat((cell, cell_back), dim=-1),
    )


@attrs.frozen(eq=False)
class _LstmLayer(Layer):
    """The weights of one direction of an LSTM, and the peephole weights of its gates."""

    peephole: Tensor | None = attrs.field(kw_only=True)


@attrs.frozen(eq=False)
class _Functions:
    """The functions of an LSTM's gates, its cell and its output, and the bound of its cell."""

    gate: Activation
    cell: Activation
    output: Activation
    clip: float | None

    @property
    def are_usual(self) -> bool:
        """Whether they are those of PyTorch's own layer."""
        tanh = self.cell is torch.tanh and self.output is torch.tanh
        return tanh and self.gate is torch.sigmoid and self.clip is None


def _run_lstm(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    layer: _LstmLayer,
    functions: _Functions,
    direction: str,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return outputs in the order of computation, the last hidden state and the last cell."""
    none = (None, None, None)
    peephole = none if layer.peephole is None else layer.peephole.chunk(3)
    outputs = []
    for inputs in _steps(functional.linear(x, layer.weight_ih, layer.bias_ih), direction):
        sums = inputs + functional.linear(hidden, layer.weight_hh)
        for_i, for_f, for_o, for_z = sums.chunk(4, dim=-1)
        enter = functions.gate(_seen(for_i, cell, peephole[0]))
        keep = functions.gate(_seen(for_f, cell, peephole[1]))
        cell = keep * cell + enter * functions.cell(for_z)
        if functions.clip is not None:
            cell = torch.clamp(cell, -functions.clip, functions.clip)
        hidden = functions.gate(_seen(for_o, cell, peephole[2])) * functions.output(cell)
        outputs.append(hidden)
    return outputs, hidden, cell


def _seen(gate: Tensor, cell: Tensor, factors: Tensor | None) -> Tensor:
    return gate if factors is None else gate + factors * cell


def _copied_if_unchanged(state: Tensor, x: Tensor) -> Tensor:
    """Return an initial state, copied if it is also a result since there are no steps."""
    return state if len(x) else state.clone()


def _check_direction(direction: str, allowed: tuple[str, ...]) -> None:
    if direction not in allowed:
        raise ValueError(f"direction must be one of {', '.join(allowed)}, got {direction!r}")


def _taken(sequence: Tensor, direction: str) -> Tensor:
    """A sequence in the order in which its steps are taken."""
    return sequence.flip(0) if direction == "reverse" else sequence


def _steps(sequence: Tensor, direction: str) -> tuple[Tensor, ...]:
    return _taken(sequence, direction).unbind(0)


def _output(outputs: list[Tensor], last: Tensor, output_sequence: bool) -> Tensor:
    if not output_sequence:
        return last.unsqueeze(0)
    return torch.stack(outputs) if outputs else last.new_zeros((0, *last.shape))


def _activation(name: str) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise ValueError(f"an activation must be one of {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name.lower()]


def _check_weights(weight_ih: Tensor, weight_hh: Tensor, gates: int) -> int:
    """Return the hidden size, after checking that both weights have the rows of all gates."""
    if weight_ih.dim() != 2 or weight_hh.dim() != 2:
        raise ValueError(
            f"weights must be matrices, got shapes {list(weight_ih.shape)} and "
            f"{list(weight_hh.shape)}"
        )
    size = weight_hh.shape[1]
    if weight_ih.shape[0] != gates * size or weight_hh.shape[0] != gates * size:
        raise ValueError(
            f"weight_ih and weight_hh need {gates} * {size} rows, got {weight_ih.shape[0]} and "
            f"{weight_hh.shape[0]}"
        )
    return size
