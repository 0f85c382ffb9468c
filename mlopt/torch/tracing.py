"""Traced PyTorch models: the form that coremltools converts, and the state that describes it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.torch.carried import is_palette_field
from mlopt.torch.copies import computed_tensors
from mlopt.torch.plain_forms import use_plain_form

_NARROW = (torch.float16, torch.bfloat16, torch.float64)


def traced(model: Any, example_inputs: Any) -> Any:
    """Return a TorchScript module or an exported program of a model: itself, if it is one already.

    A module is traced in a copy that shares its weights as far as they are float32 on the CPU:
    coremltools reads no other.

    Raises
    ------
    ConfigError
        It is none of these, or does not go with ``example_inputs``.
    """
    is_traced = isinstance(model, (torch.jit.ScriptModule, torch.export.ExportedProgram))
    if is_traced and example_inputs is not None:
        raise ConfigError(
            f"example_inputs are for tracing a module, got them with a {type(model).__name__}, "
            "which is traced already; describe its inputs with inputs=[coremltools.TensorType(...)]"
        )
    if is_traced:
        return model
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "the model must be a torch.nn.Module, a TorchScript module or an exported program, "
            f"got {type(model).__name__}"
        )
    if example_inputs is None:
        raise ConfigError(
            "a module must be traced, got no example_inputs; give a tensor, a tuple of tensors "
            "or a dictionary of them, or convert torch.jit.trace(module, ...)"
        )
    module = _convertible(model).eval()
    examples = _converted(example_inputs)
    if isinstance(examples, dict):
        examples = {name: example for name, example in _in_order(model, examples) if name}
    with torch.no_grad(), _plain_attention(), warnings.catch_warnings():
        # it is what coremltools converts best, and no caller of this function can change it
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        if isinstance(examples, dict):
            return torch.jit.trace(module, example_kwarg_inputs=examples)  # type: ignore[no-untyped-call]
        return torch.jit.trace(module, examples)  # type: ignore[no-untyped-call]


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a traced or exported model by name."""
    state = model.state_dict
    return dict(state() if callable(state) else state)


def described_as(model: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """Return the same traced or exported model with another state; the model is not changed.

    coremltools takes weights from the graph, and their description from ``state_dict``.
    """
    if isinstance(model, torch.export.ExportedProgram):
        described = copy.copy(model)
        described._state_dict = dict(state)
        return described
    # a second wrapper around the same module
    wrapper = torch.jit._recursive.wrap_cpp_module(model._c)  # type: ignore[no-untyped-call]
    wrapper.__dict__["state_dict"] = lambda *args, **kwargs: dict(state)
    return wrapper


def input_types(module: nn.Module, example_inputs: Any) -> list[Any]:
    """Return a ``coremltools.TensorType`` per example, in the order of ``forward``'s arguments.

    Examples in a dictionary give the inputs their names.

    Raises
    ------
    ConfigError
        An example is not a tensor.
    """
    import coremltools

    types = []
    for name, example in _in_order(module, example_inputs):
        if not isinstance(example, torch.Tensor):
            raise ConfigError(
                f"example_inputs must be tensors, got {type(example).__name__}; describe such "
                "an input with inputs=[coremltools.TensorType(...), ...]"
            )
        dtype = {} if example.is_floating_point() else {"dtype": np.int32}
        types.append(coremltools.TensorType(name=name, shape=tuple(example.shape), **dtype))
    return types


def _in_order(module: nn.Module, example_inputs: Any) -> list[tuple[str | None, Any]]:
    """Return the examples as the traced graph has them, with their names in a dictionary."""
    if not isinstance(example_inputs, Mapping):
        is_one = not isinstance(example_inputs, (tuple, list))
        return [(None, each) for each in ([example_inputs] if is_one else example_inputs)]
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    unknown = [name for name in example_inputs if name not in names]
    if unknown:
        raise ConfigError(
            "example_inputs in a dictionary must be positional arguments of forward, got "
            f"{unknown[0]!r}; it has {', '.join(names) or 'none'}"
        )
    return [(name, example_inputs[name]) for name in names if name in example_inputs]


def _convertible(model: nn.Module) -> nn.Module:
    """Return a copy of a module for coremltools to convert.

    Its tensors are float32 on the CPU, and the module's own where those are; modules that
    coremltools cannot convert compute the same in a plainer form.
    """
    memo = computed_tensors(model)
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in memo:
                continue
            # the codes of palettes are integers; everything else in them is as wide as the weights
            dtype = torch.float32 if tensor.dtype in _NARROW else tensor.dtype
            plain = tensor.detach().to("cpu", dtype)
            is_field = is_palette_field(name)
            if name in module._buffers and not is_field:
                # tracing runs the model, which may write to its state
                plain = plain.clone() if plain.data_ptr() == tensor.data_ptr() else plain
                memo[id(tensor)] = plain
            elif plain.dtype == tensor.dtype and tensor.device.type == "cpu":
                memo[id(tensor)] = tensor
            else:
                is_parameter = isinstance(tensor, nn.Parameter) and not is_field
                memo[id(tensor)] = nn.Parameter(plain, False) if is_parameter else plain
    traceable = copy.deepcopy(model, memo)
    for module in traceable.modules():
        use_plain_form(module)
    return traceable


def _converted(example: Any) -> Any:
    """Return examples as ``_convertible`` needs them."""
    if isinstance(example, torch.Tensor):
        dtype = torch.float32 if example.dtype in _NARROW else example.dtype
        return example.detach().to("cpu", dtype)
    if isinstance(example, Mapping):
        return {name: _converted(value) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return type(example)(_converted(value) for value in example)
    return example


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Trace attention as operations that coremltools knows, not as one fused operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
