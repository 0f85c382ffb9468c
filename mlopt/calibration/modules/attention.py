"""Readers of the weights of ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mlopt.calibration.modules.called import argument, floats
from mlopt.calibration.readers import NoStatisticsError, Reader
from mlopt.calibration.readers.products import matrix_arrangement
from mlopt.calibration.readers.reader import Arguments
from mlopt.palette.moments import Arrangement

_INPUTS = ("query", "key", "value")


def attention_reader(module: nn.MultiheadAttention, name: str, *, is_output: bool) -> Reader:
    """Return how attention multiplies inputs by one of its parameters; errors do not name it.

    Parameters
    ----------
    name
        ``"in_proj_weight"``, which has the matrices of query, key and value one after the other, or
        that of one of them alone; or the weight of ``out_proj``.
    is_output
        Whether it is a parameter of ``out_proj``.

    Raises
    ------
    NoStatisticsError
        It is no matrix, or the module has a forward of its own.
    """
    if type(module).forward is not nn.MultiheadAttention.forward:
        raise NoStatisticsError("in a forward of its own, whose products are not measured")
    if is_output and name == "weight":
        return _output_reader(module)
    if name == "in_proj_weight":
        return _joint_reader(module)
    for position, each in enumerate(_INPUTS):
        if name == f"{each[0]}_proj_weight":
            shape = module._parameters[name].shape  # type: ignore[union-attr]
            return _single_reader(position, (shape[0], shape[1]))
    raise NoStatisticsError("which multiplies no inputs")


def _single_reader(position: int, shape: tuple[int, int]) -> Reader:
    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        return [_rows(arguments, position, shape[1])[None]]

    return Reader(arrangement=matrix_arrangement(shape), inputs=inputs)


def _joint_reader(module: nn.MultiheadAttention) -> Reader:
    """Return the reader of the matrices of query, key and value, which are blocks."""
    width = module.embed_dim
    arrangement = Arrangement(
        shape=(3 * width, width),
        split=(3, width, width),
        order=(0, 1, 2),
        blocks=3,
        rows=width,
        columns=width,
    )

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        parts = [_rows(arguments, position, width) for position in range(3)]
        # positions that a shorter one lacks add nothing
        longest = max(len(part) for part in parts)
        padded = [nn.functional.pad(part, (0, 0, 0, longest - len(part))) for part in parts]
        return [torch.stack(padded)]

    return Reader(arrangement=arrangement, inputs=inputs)


def _output_reader(module: nn.MultiheadAttention) -> Reader:
    """Return the reader of ``out_proj``, whose inputs are what the module gives without it.

    The module calls it as a function: no hook sees its input, and attention is computed again.
    """
    width = module.embed_dim

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        weight = module.out_proj.weight
        without = nn.Linear(width, width, device="meta")
        without.weight = nn.Parameter(torch.eye(width, dtype=weight.dtype, device=weight.device))
        without.bias = nn.Parameter(torch.zeros_like(without.weight[0]))
        twin = copy.copy(module)
        twin.__dict__["_modules"] = {**module._modules, "out_proj": without.eval()}
        result = floats(twin.forward(*arguments["args"], **arguments["kwargs"])[0])
        return [result.reshape(1, -1, width)]

    return Reader(arrangement=matrix_arrangement((width, width)), inputs=inputs)


def _rows(arguments: Arguments, position: int, width: int) -> Tensor:
    x = floats(argument(arguments, position, _INPUTS[position]), columns=width)
    return x.reshape(-1, width)
