"""Restoring a model, whatever a loss function does with it and however that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def left_as_it_was(model: nn.Module, wanted: Iterable[Tensor]) -> Iterator[None]:
    """Prepare a model for gradients of some parameters, and undo that and all else at the end.

    In the block the wanted parameters require gradients, the others do not, and no parameter has
    one. After it, also when it raises, these are as before:

    - the training flag of each submodule;
    - for each parameter whether it requires a gradient, and ``.grad``: the same tensor, whose
      values nothing has added to;
    - the buffers: the same tensors with the same values. One that was replaced by a tensor of
      another shape stays: so do caches that grow, and their modules know their size;
    - torch's random generators, on the CPU and on the model's CUDA devices;
    - whether cuDNN is used: not in the block where recurrent modules are in evaluation mode, whose
      gradients it does not have.

    Memory: a copy of the buffers. Parameters are not copied, since gradients do not change them.
    """
    with contextlib.ExitStack() as stack:
        cuda = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        stack.enter_context(_training_flags(model))
        if any(isinstance(m, nn.RNNBase) and not m.training for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(_buffers(model))
        stack.enter_context(_gradients([*model.parameters(), *model.buffers()]))
        stack.enter_context(_requirements(model, wanted))
        yield


@contextlib.contextmanager
def _training_flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, is_training in flags:
            module.training = is_training


@contextlib.contextmanager
def _gradients(tensors: list[Tensor]) -> Iterator[None]:
    gradients = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]
    try:
        for tensor, gradient in gradients:
            if gradient is not None:
                tensor.grad = None
        yield
    finally:
        for tensor, gradient in gradients:
            if tensor.grad is not gradient:
                tensor.grad = gradient


@contextlib.contextmanager
def _requirements(model: nn.Module, wanted: Iterable[Tensor]) -> Iterator[None]:
    ids = {id(parameter) for parameter in wanted}
    # an inference tensor cannot require a gradient, and is not asked for one
    flags = [(p, p.requires_grad) for p in model.parameters() if not p.is_inference()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in ids)
        yield
    finally:
        for parameter, is_required in flags:
            parameter.requires_grad_(is_required)


@contextlib.contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    owners = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()  # also those that no state dict has
    ]
    copies = {id(b): b.detach().clone() for _, _, b in owners if b is not None}
    try:
        yield
    finally:
        for module, name, buffer in owners:
            now = module._buffers.get(name)
            if buffer is None or now is None or now.shape == buffer.shape:
                module._buffers[name] = buffer
            if buffer is not None:
                _restore_values(buffer, copies[id(buffer)])


def _restore_values(buffer: Tensor, values: Tensor) -> None:
    if buffer.shape != values.shape:
        buffer.data = values
    # Writing what is there already would disturb a graph of the caller's that holds the buffer.
    elif not torch.equal(buffer, values):
        with torch.inference_mode():  # in which inference tensors may be written to as well
            buffer.copy_(values)
