"""Adapters: the parameters of a kind of module that can be palettized, and their axes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from mlopt.errors import ConfigError


def _channels(module: nn.Module, length: int, axis: int) -> int:
    return length


def _convolution_channels(module: nn.Module, length: int, axis: int) -> int:
    # on axis 0 of its weight, a convolution in groups keeps their channels apart
    return length // int(module.groups) if axis == 0 else length  # type: ignore[arg-type]


def _gate_channels(gates: int) -> Callable[[nn.Module, int, int], int]:
    # on axis 0, the rows of all gates stand one after another, and Core ML has them otherwise
    return lambda module, length, axis: length // gates if axis == 0 else length


@attrs.frozen
class Adapter:
    """How certain weights of a kind of module are palettized.

    Attributes
    ----------
    parameters
        The names of these weights, or regular expressions for whole names; those that a module
        lacks are skipped.
    output_axis, input_axis
        Axes of these weights; negative ones count from the end. Without an input axis, it is the
        first other axis.
    together
        Maps the number of channels on an axis to how many consecutive ones a vector may span.
    is_linear
        Whether they are the matrices of linear maps, which differentiable k-means gives more bits
        by default.
    gates
        Number of equal runs of rows into which coremltools splits a weight when it converts the
        module, so that it cannot take a compressed weight there. None: it takes the weight whole.
    is_registered
        Whether a user of the library registered it.
    """

    parameters: tuple[str, ...] = ("weight",)
    output_axis: int = 0
    input_axis: int | None = 1
    together: Callable[[nn.Module, int, int], int] = _channels
    is_linear: bool = False
    gates: int | None = None
    is_registered: bool = False

    def is_for(self, parameter_name: str) -> bool:
        """Whether this adapter palettizes the parameter of a module with this name."""
        return any(re.fullmatch(pattern, parameter_name) for pattern in self.parameters)

    def axes(self, rank: int) -> tuple[int, int]:
        """Return output and input axis of a weight, 0 to ``rank`` - 1 (at least 2)."""
        output_axis = self.output_axis % rank
        others = (axis for axis in range(rank) if axis != output_axis)
        return output_axis, next(others) if self.input_axis is None else self.input_axis % rank


def _recurrent(gates: int | None) -> tuple[Adapter, ...]:
    """Return the adapters of a recurrent module: for its gates and the projection of its state."""
    together = _channels if gates is None else _gate_channels(gates)
    weights = (r"weight_(ih|hh)_l\d+(_reverse)?",)
    projections = (r"weight_hr_l\d+(_reverse)?",)
    return (
        Adapter(weights, together=together, is_linear=True, gates=gates),
        Adapter(projections, is_linear=True),
    )


_CONVOLUTION = (Adapter(together=_convolution_channels),)
_TRANSPOSED = (Adapter(output_axis=1, input_axis=0, together=_convolution_channels),)
_CONV1D = (Adapter(output_axis=1, input_axis=0, is_linear=True),)

# by class, or by the qualified name of a class that is not imported here
_KNOWN: Mapping[type[nn.Module] | str, tuple[Adapter, ...]] = {
    nn.Linear: (Adapter(is_linear=True),),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.Embedding: (Adapter(),),
    nn.LayerNorm: (Adapter(),),
    nn.MultiheadAttention: (
        Adapter(("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
    ),
    nn.LSTM: _recurrent(4),
    nn.GRU: _recurrent(3),
    nn.RNN: _recurrent(None),
    nn.LSTMCell: (Adapter(("weight_ih", "weight_hh"), is_linear=True),),
    nn.GRUCell: (Adapter(("weight_ih", "weight_hh"), is_linear=True),),
    nn.RNNCell: (Adapter(("weight_ih", "weight_hh"), is_linear=True),),
    # [outputs, first inputs, second inputs]
    nn.Bilinear: (Adapter(is_linear=True),),
    # a linear layer with its weight transposed, [inputs, outputs]
    "transformers.pytorch_utils.Conv1D": _CONV1D,
    "transformers.modeling_utils.Conv1D": _CONV1D,
}

_registered: dict[type[nn.Module], tuple[Adapter, ...]] = {}


def adapters_of(module: nn.Module) -> tuple[Adapter, ...]:
    """Return the adapters for the nearest class of a module that has some, possibly none."""
    for cls in type(module).__mro__:
        adapters = _registered.get(cls) or _known(cls)
        if adapters:
            return adapters
    return ()


def known_modules() -> tuple[type[nn.Module], ...]:
    """Return the classes that have adapters, registered ones too, but not those known by name."""
    return (*(cls for cls in _KNOWN if isinstance(cls, type)), *_registered)


def _known(cls: type) -> tuple[Adapter, ...]:
    return _KNOWN.get(cls) or _KNOWN.get(_shown(cls)) or ()


def adapter_for(module: nn.Module, parameter_name: str) -> Adapter | None:
    """Return the adapter that palettizes a parameter of a module; None where there is none."""
    adapter = next((a for a in adapters_of(module) if a.is_for(parameter_name)), None)
    if adapter is None or not adapter.is_registered:
        return adapter
    # a class derived from a known one computes the same with the known one's weights
    known = (a for cls in type(module).__mro__ for a in _known(cls) if a.is_for(parameter_name))
    return next(
        (
            attrs.evolve(adapter, together=a.together, is_linear=a.is_linear, gates=a.gates)
            for a in known
        ),
        adapter,
    )


def weights_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return a module's own parameters of rank 2 or more that have an adapter, with names."""
    adapters = adapters_of(module)
    for name, parameter in module._parameters.items():
        if parameter is None or parameter.dim() < 2:
            continue
        if any(adapter.is_for(name) for adapter in adapters):
            yield name, parameter


def is_linear(module: nn.Module) -> bool:
    """Whether the weights of a module are the matrices of linear maps."""
    return any(adapter.is_linear for cls in type(module).__mro__ for adapter in _known(cls))


def register_module(
    module_type: type[nn.Module],
    parameters: str | Iterable[str],
    output_axis: int | Mapping[str, int] = 0,
) -> None:
    """Register a class of modules of your own, so that its weights are palettized.

    All palettizers include them from then on, also in derived classes, and rules reach them by the
    name or the class of the module. Adapters of a derived class itself, registered or built in,
    take precedence; registering a class again replaces its previous registration.

    Parameters
    ----------
    module_type
        A class derived from ``torch.nn.Module``. Not one that mlopt has an adapter for itself, such
        as ``torch.nn.Linear``; a class derived from such a one can be registered, and then only
        what is named here is palettized in it.
    parameters
        The name, or the names, of its weights; each may be a regular expression for whole names,
        such as ``"weight_[0-9]+"``. Weights of rank 0 and 1 are kept.
    output_axis
        The axis of a weight that its output channels are on, for groups and scales of channels;
        negative counts from the end. A mapping has one for each of ``parameters``. The input
        channels of a rule with ``channel_axis`` 1 are on the first other axis.

    Raises
    ------
    ConfigError
        An argument is not as described. A module without a parameter of such a name, or a weight
        without such an axis, is reported when a model is palettized.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import mlopt.torch
    >>> class Mixing(nn.Module):
    ...     def __init__(self, inputs, outputs):
    ...         super().__init__()
    ...         self.kernel = nn.Parameter(torch.randn(inputs, outputs))
    ...
    ...     def forward(self, x):
    ...         return x @ self.kernel
    >>> mlopt.torch.register_module(Mixing, "kernel", output_axis=1)
    >>> palettizer = mlopt.torch.palettization.PostTrainingPalettizer(Mixing(8, 4))
    >>> palettizer.compress().kernel.unique().numel()
    16
    """
    _check_type(module_type)
    names = _checked_names(parameters)
    axes = _checked_axes(output_axis, names)
    _registered[module_type] = tuple(
        Adapter((name,), axis, input_axis=None, is_registered=True) for name, axis in axes.items()
    )


def _check_type(module_type: Any) -> None:
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        got = module_type if isinstance(module_type, type) else type(module_type)
        raise ConfigError(
            "register_module takes a class derived from torch.nn.Module, got "
            f"{'the class' if got is module_type else 'an object of'} {_shown(got)}"
        )
    if module_type is nn.Module:
        raise ConfigError(
            "register_module got torch.nn.Module, which every module is derived from; register the "
            "class of your modules"
        )
    if module_type in _KNOWN or _shown(module_type) in _KNOWN:
        raise ConfigError(
            f"mlopt palettizes {_shown(module_type)} itself; register a class derived from it"
        )


def _checked_names(parameters: Any) -> tuple[str, ...]:
    is_several = isinstance(parameters, Iterable) and not isinstance(parameters, str)
    names = tuple(parameters) if is_several else (parameters,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            "parameters must be the names of a module's weights, at least one, got "
            f"{list(names) if is_several else parameters!r}"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"parameters must be distinct names, got {', '.join(names)}")
    for name in names:
        try:
            re.compile(name)
        except (re.error, OverflowError) as error:
            raise ConfigError(
                f"the parameter {name!r} is neither a name nor a regular expression: {error}"
            ) from error
    return names


def _checked_axes(output_axis: Any, names: tuple[str, ...]) -> dict[str, int]:
    axes = output_axis if isinstance(output_axis, Mapping) else dict.fromkeys(names, output_axis)
    if set(axes) != set(names):
        raise ConfigError(
            "a mapping for output_axis must have one axis for each of "
            f"{', '.join(names)}, got {', '.join(map(repr, axes)) or 'none'}"
        )
    for axis in axes.values():
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ConfigError(
                f"output_axis must be an integer or a mapping to integers, got {axis!r}"
            )
    return {name: axes[name] for name in names}


def check_registered(module_name: str, module: nn.Module) -> None:
    """Check a module against what was registered for its class.

    Raises
    ------
    ConfigError
        It lacks a parameter that was registered, or the parameter lacks the output axis.
    """
    for adapter in adapters_of(module):
        if not adapter.is_registered:
            continue
        where = f"{type(module).__name__} {module_name!r}"
        (name,) = adapter.parameters
        if not any(adapter.is_for(own) for own in _names_in(module)):
            raise ConfigError(
                f"{where} has no parameter {name!r}, which was registered for its class; it has "
                f"{', '.join(module._parameters) or 'none'}. Correct the name in register_module"
            )
        for own, parameter in module._parameters.items():
            if parameter is None or not adapter.is_for(own):
                continue
            rank, axis = parameter.dim(), adapter.output_axis
            if rank >= 2 and not -rank <= axis < rank:
                raise ConfigError(
                    f"{where}: {own!r} is of rank {rank}, but output_axis {axis} was registered "
                    f"for it; allowed are {-rank} to {rank - 1}. Correct it in register_module"
                )


def _names_in(module: nn.Module) -> Iterator[str]:
    """Return the names of a module's parameters, including those computed from others."""
    yield from module._parameters
    # old-style pruning and weight_norm
    yield from (name for name, value in vars(module).items() if isinstance(value, Tensor))
    parametrizations = module._modules.get("parametrizations")
    if parametrizations is not None:
        yield from parametrizations._modules


def _shown(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
