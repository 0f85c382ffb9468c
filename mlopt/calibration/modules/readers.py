"""Readers of parameters: which inputs a module multiplies by its weight, for each kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mlopt.calibration.modules.attention import attention_reader
from mlopt.calibration.modules.called import UnfitError, floats
from mlopt.calibration.modules.recurrent import cell_reader, recurrent_reader
from mlopt.calibration.readers import NoStatisticsError, Reader
from mlopt.calibration.readers.lookups import lookup_arrangement, row_counts
from mlopt.calibration.readers.patches import (
    conv_arrangement,
    conv_patches,
    transposed_arrangement,
    transposed_patches,
)
from mlopt.calibration.readers.products import matrix_arrangement, stacked_arrangement
from mlopt.calibration.readers.reader import Arguments
from mlopt.palette.moments import Arrangement
from mlopt.torch.modules import Owner

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def observed_module(owner: Owner, parent: nn.Module | None) -> nn.Module:
    """Return the module whose calls show what is multiplied by a parameter of a module.

    Attention does not call the linear layer that is a part of it.
    """
    return parent if isinstance(parent, nn.MultiheadAttention) else owner.module


def title_of(owner: Owner) -> str:
    """Return a module's kind and name, as reports have them."""
    return f"{owner.kind}({owner.module_name})"


def module_reader(owner: Owner, parent: nn.Module | None) -> Reader:
    """Return how a module multiplies inputs by one of its parameters.

    The reader's arguments are those of :func:`mlopt.calibration.modules.called.call_of`, its result
    is what the module returned. It raises :class:`UnfitError` where that cannot be what it
    multiplies. Its geometry is () where equal inputs may give other columns.

    Parameters
    ----------
    parent
        The module that the owner is a part of.

    Raises
    ------
    NoStatisticsError
        It does not, or not so that there are statistics of it; the message says why.
    """
    module, name = owner.module, owner.parameter_name
    try:
        if isinstance(parent, nn.MultiheadAttention):
            return attention_reader(parent, name, is_output=True)
        if isinstance(module, nn.MultiheadAttention):
            return attention_reader(module, name, is_output=False)
        if isinstance(module, nn.RNNBase):
            return recurrent_reader(module, name)
        if isinstance(module, nn.RNNCellBase):
            return cell_reader(module, name)
        return _layer_reader(owner)
    except NoStatisticsError as error:
        raise NoStatisticsError(f"{title_of(owner)} reads it as {name}, {error}") from None


def _layer_reader(owner: Owner) -> Reader:
    """Return the reader of a module that computes one product; errors do not name it."""
    module, name = owner.module, owner.parameter_name
    parameter = module._parameters[name]
    assert parameter is not None
    shape = tuple(parameter.shape)
    if name == "weight" and 0 not in shape:
        if isinstance(module, nn.Linear):
            return _matrix_reader(matrix_arrangement((shape[0], shape[1])))
        if isinstance(module, _CONVOLUTIONS):
            return _conv_reader(module, shape)
        if isinstance(module, _TRANSPOSED):
            return _transposed_reader(module, shape)
        if isinstance(module, nn.Embedding):
            return _lookup_reader(shape)
        adapter = owner.adapter
        if adapter is not None and adapter.is_linear and adapter.axes(len(shape)) == (1, 0):
            # Conv1D of transformers
            return _matrix_reader(stacked_arrangement(shape, has_rows_first=False))
    products = "no inputs" if len(shape) < 2 else "no inputs that are measured"
    raise NoStatisticsError(f"which multiplies {products}")


def _matrix_reader(arrangement: Arrangement) -> Reader:
    columns = arrangement.columns

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = floats(arguments["x"], columns=columns)
        return [x.reshape(1, -1, columns)]

    return Reader(arrangement=arrangement, geometry=("rows", columns), inputs=inputs)


def _conv_reader(module: Any, shape: tuple[int, ...]) -> Reader:
    kernel, groups, dilations = shape[2:], int(module.groups), module.dilation
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    amounts = _amounts(module, kernel)
    flat = [amount for both in reversed(amounts) for amount in both]

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = _batched(arguments["x"], rank=len(kernel), channels=shape[1] * groups)
        return conv_patches(
            functional.pad(x, flat, mode=mode) if any(flat) else x,
            kernel,
            strides=module.stride,
            dilations=dilations,
            groups=groups,
        )

    geometry = ("patches", mode, tuple(flat), kernel, module.stride, dilations, groups)
    return Reader(arrangement=conv_arrangement(shape, groups), geometry=geometry, inputs=inputs)


def _amounts(module: Any, kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return what a convolution pads its input with, before and after, for each axis."""
    if module.padding == "valid":
        return [(0, 0)] * len(kernel)
    if module.padding == "same":
        totals = [(k - 1) * d for k, d in zip(kernel, module.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(amount, amount) for amount in module.padding]


def _transposed_reader(module: Any, shape: tuple[int, ...]) -> Reader:
    kernel, groups = shape[2:], int(module.groups)

    def inputs(arguments: Arguments, results: tuple[Any, ...]) -> Iterable[Tensor]:
        x = _batched(arguments["x"], rank=len(kernel), channels=shape[0])
        # the call may have an output_size, so that only the result shows how much it is cropped
        (y,) = results
        lengths = _batched(y, rank=len(kernel), channels=shape[1] * groups).shape[2:]
        crops = [
            (before, (n - 1) * s + (k - 1) * d + 1 - before - length)
            for n, k, s, d, before, length in zip(
                x.shape[2:],
                kernel,
                module.stride,
                module.dilation,
                module.padding,
                lengths,
                strict=True,
            )
        ]
        return transposed_patches(
            x, kernel, strides=module.stride, dilations=module.dilation, groups=groups, crops=crops
        )

    return Reader(arrangement=transposed_arrangement(shape, groups), inputs=inputs)


def _lookup_reader(shape: tuple[int, ...]) -> Reader:
    def counts(arguments: Arguments, weights: Tensor | None) -> tuple[Tensor, int]:
        x = arguments["x"]
        if not isinstance(x, Tensor) or x.is_floating_point():
            raise UnfitError
        return row_counts(x.long(), shape[0], weights)

    geometry = ("counts", shape[0])
    return Reader(arrangement=lookup_arrangement(shape, 0), geometry=geometry, counts=counts)


def _batched(x: Any, *, rank: int, channels: int) -> Tensor:
    """Return [N, C, *D] of a tensor that may lack its first axis."""
    given = floats(x)
    batched = given[None] if given.dim() == rank + 1 else given
    if batched.dim() != rank + 2 or batched.shape[1] != channels:
        raise UnfitError
    return batched
