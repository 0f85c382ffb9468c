"""Readers of the weights of recurrent modules: their inputs, and their states before each step.

A module of several layers computes them in one operation. Its layers are run again one by one, so
that the inputs of each and its states are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from mlopt.calibration.modules.called import UnfitError, argument, floats
from mlopt.calibration.readers import NoStatisticsError, Reader
from mlopt.calibration.readers.products import matrix_arrangement
from mlopt.calibration.readers.reader import Arguments

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
_FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
_CELLS = (nn.LSTMCell.forward, nn.GRUCell.forward, nn.RNNCell.forward)


@attrs.frozen(eq=False)
class _Layer:
    """What a layer was given: its inputs, and for each direction its states before each step.

    All are [positions, columns].
    """

    inputs: Tensor
    states: tuple[Tensor, ...]


def cell_reader(module: nn.RNNCellBase, name: str) -> Reader:
    """Return how a cell multiplies its input, or its state, by a parameter.

    Errors do not name the module.

    Raises
    ------
    NoStatisticsError
        It is no matrix, or the module has a forward of its own.
    """
    shape = _shape_of(module, name, _CELLS)

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        if name == "weight_ih":
            return [floats(arguments["x"], columns=shape[1]).reshape(1, -1, shape[1])]
        state = argument(arguments, 1, "hx")
        state = state[0] if isinstance(state, tuple | list) else state
        if state is None:
            state = floats(arguments["x"]).new_zeros((*arguments["x"].shape[:-1], shape[1]))
        return [floats(state, columns=shape[1]).reshape(1, -1, shape[1])]

    return Reader(arrangement=matrix_arrangement(shape), inputs=inputs)


def recurrent_reader(module: nn.RNNBase, name: str) -> Reader:
    """Return how a recurrent module multiplies inputs, or states, by a parameter.

    Errors do not name the module.

    Raises
    ------
    NoStatisticsError
        It is no matrix, it projects the states of an LSTM, or the module has a forward of its own.
    """
    shape = _shape_of(module, name, _FORWARDS)
    if name.startswith("weight_hr"):
        raise NoStatisticsError("which multiplies states that are not put out")
    is_back = int(name.endswith("_reverse"))
    layer = int(name.removesuffix("_reverse").rpartition("_l")[2])

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        given = _layers(module, cast("MutableMapping[str, Any]", arguments))[layer]
        read = given.inputs if name.startswith("weight_ih") else given.states[is_back]
        return [read[None]]

    return Reader(arrangement=matrix_arrangement(shape), inputs=inputs)


def _shape_of(module: nn.Module, name: str, forwards: tuple[Any, ...]) -> tuple[int, int]:
    if type(module).forward not in forwards:
        raise NoStatisticsError("in a forward of its own, whose products are not measured")
    if not name.startswith("weight"):
        raise NoStatisticsError("which multiplies no inputs")
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter.shape[0], parameter.shape[1]


def _layers(module: nn.RNNBase, arguments: MutableMapping[str, Any]) -> list[_Layer]:
    """Return what the layers of a module were given; computed once for all readers of a call."""
    key = f"layers of {id(module)}"
    if key not in arguments:
        arguments[key] = list(_run_layers(module, arguments))
    layers: list[_Layer] = arguments[key]
    return layers


def _run_layers(module: nn.RNNBase, arguments: Arguments) -> Iterable[_Layer]:
    given, sizes, order = arguments["x"], None, None
    if isinstance(given, PackedSequence):
        sizes, order = given.batch_sizes, given.sorted_indices
    x = floats(given if sizes is None else given.data, columns=module.input_size)
    has_batch = sizes is not None or x.dim() == 3
    if sizes is None:
        x = x if has_batch else x[:, None]
        x = x.transpose(0, 1) if module.batch_first and has_batch else x
    count = int(sizes[0]) if sizes is not None else x.shape[1]
    firsts = _first_states(module, argument(arguments, 1, "hx"), x, count)
    if order is not None:
        firsts = [each.index_select(1, order) for each in firsts]
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        part = slice(layer * directions, (layer + 1) * directions)
        own = [each[part].contiguous() for each in firsts]
        y = _run_layer(module, layer, x, sizes, own)
        columns = y.shape[-1] // directions
        yield _Layer(
            x.reshape(-1, x.shape[-1]),
            tuple(
                _before(y[..., d * columns : (d + 1) * columns], own[0][d], sizes, is_back=d == 1)
                for d in range(directions)
            ),
        )
        x = y


def _first_states(module: nn.RNNBase, given: Any, x: Tensor, count: int) -> list[Tensor]:
    """Return the states before the first step, [layers * directions, count, width] each."""
    directions = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size]
    widths += [module.hidden_size] if module.mode == "LSTM" else []
    if given is None:
        return [x.new_zeros(directions, count, width) for width in widths]
    states = [floats(each) for each in (given if module.mode == "LSTM" else (given,))]
    states = [each if each.dim() == 3 else each[:, None] for each in states]
    shapes = [(directions, count, width) for width in widths]
    if [tuple(each.shape) for each in states] != shapes:
        raise UnfitError
    return states


def _run_layer(
    module: nn.RNNBase, layer: int, x: Tensor, sizes: Tensor | None, states: list[Tensor]
) -> Tensor:
    """Return the outputs of one layer, of steps [T, N, columns] or of those that are packed."""
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] if module.bias else []
    kinds += ["weight_hr"] if module.proj_size else []
    ends = ["", "_reverse"] if module.bidirectional else [""]
    weights = [getattr(module, f"{kind}_l{layer}{end}") for end in ends for kind in kinds]
    first: Any = states if module.mode == "LSTM" else states[0]
    options = (module.bias, 1, 0.0, False, module.bidirectional)
    operation = _OPERATIONS[module.mode]
    if sizes is not None:
        result: Tensor = operation(x, sizes, first, weights, *options)[0]
        return result
    result = operation(x, first, weights, *options, False)[0]
    return result


def _before(y: Tensor, first: Tensor, sizes: Tensor | None, *, is_back: bool) -> Tensor:
    """Return the states before each step of one direction, [positions, columns].

    y: those after each, [T, N, columns] or packed; first: those before the first, [N, columns].
    """
    if sizes is None:
        parts = (y[1:], first[None]) if is_back else (first[None], y[:-1])
        return torch.cat(parts).reshape(-1, y.shape[-1])
    padded, lengths = pad_packed_sequence(PackedSequence(y, sizes))
    steps = torch.arange(len(padded))[:, None]
    if is_back:
        before = torch.cat((padded[1:], first[None]))
        is_last = (steps == lengths - 1).to(y.device)
        before = torch.where(is_last[..., None], first, before)
    else:
        before = torch.cat((first[None], padded[:-1]))
    return before[(steps < lengths).to(y.device)]
