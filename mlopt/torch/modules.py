"""Parameters of a model and the modules that own them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel

from mlopt.errors import ConfigError
from mlopt.torch.adapters import Adapter, adapter_for


@attrs.frozen(eq=False)
class Owner:
    """A module that owns a parameter: its qualified name, itself, the parameter's name in it."""

    module_name: str
    module: nn.Module
    parameter_name: str

    @property
    def name(self) -> str:
        """The qualified name of the parameter."""
        return f"{self.module_name}.{self.parameter_name}".removeprefix(".")

    @property
    def kind(self) -> str:
        """The name of the module's class, ignoring parametrizations."""
        kind = type(self.module)
        return (kind.__bases__[0] if is_parametrized(self.module) else kind).__name__

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that palettizes this parameter; None where there is none."""
        return adapter_for(self.module, self.parameter_name)


@attrs.frozen(eq=False)
class ModelParameter:
    """One parameter and the modules (at least one) that own it; several where it is tied.

    tensor: its values; twins: further parameters that are the same view of the same memory, which
    ties them too; overlaps: whether it shares part of its memory with other parameters, or among
    its own elements.
    """

    tensor: torch.Tensor
    owners: tuple[Owner, ...]
    twins: tuple[torch.Tensor, ...] = ()
    overlaps: bool = False

    @property
    def name(self) -> str:
        """The first of its qualified names."""
        return self.owners[0].name

    @property
    def names(self) -> tuple[str, ...]:
        """All its qualified names, in the order of the modules."""
        return tuple(owner.name for owner in self.owners)

    @property
    def adapted(self) -> tuple[Owner, ...]:
        """The owners with an adapter for it."""
        return tuple(owner for owner in self.owners if owner.adapter is not None)

    @property
    def gates(self) -> int | None:
        """The number of gates into which coremltools splits it, for at least one of its owners.

        coremltools knows a tied weight by only one name, and cannot take a compressed weight then.
        """
        gates = (owner.adapter.gates for owner in self.owners if owner.adapter)
        return next((number for number in gates if number is not None), None)

    def channels_together(self, axis: int) -> int:
        """Return how many consecutive channels on an axis a vector may span, for all owners."""
        length = int(self.tensor.shape[axis])
        return min(
            (o.adapter.together(o.module, length, axis) for o in self.owners if o.adapter),
            default=length,
        )


def parameters_of(model: nn.Module) -> tuple[ModelParameter, ...]:
    """Return the parameters of a model in the order of its modules, each once.

    Raises
    ------
    ConfigError
        Some have no values yet (lazy modules, the meta device).
    """
    by_place: dict[object, tuple[list[torch.Tensor], list[Owner]]] = {}
    without_values = []
    for module_name, module in model.named_modules(remove_duplicate=False):
        for parameter_name, parameter in module._parameters.items():
            if parameter is None:
                continue
            owner = Owner(module_name, module, parameter_name)
            if nn.parameter.is_lazy(parameter) or parameter.is_meta:
                without_values.append(owner.name)
                continue
            tensors, owners = by_place.setdefault(_place(parameter), ([], []))
            if not any(tensor is parameter for tensor in tensors):
                tensors.append(parameter)
            owners.append(owner)
    if without_values:
        raise ConfigError(
            f"parameters without values cannot be palettized, got {', '.join(without_values)} (a "
            "lazy module before its first call, or the meta device); materialize the model first"
        )
    overlapping = _overlapping([tensors[0] for tensors, _ in by_place.values()])
    return tuple(
        ModelParameter(tensors[0], tuple(owners), tuple(tensors[1:]), id(tensors[0]) in overlapping)
        for tensors, owners in by_place.values()
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside a PyTorch wrapper that runs or averages it; others unchanged."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
    return model.get_submodule("module") if isinstance(model, wrappers) else model


def _place(tensor: torch.Tensor) -> object:
    """Return a key that is equal for parameters that view the same memory in the same way."""
    if not _has_memory(tensor):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie at strides in memory of its own process."""
    return tensor.layout is torch.strided and tensor.numel() > 0 and tensor.data_ptr() != 0


def _overlapping(tensors: Sequence[torch.Tensor]) -> set[int]:
    """Return the ids of parameters that share memory with others, or hold one element twice."""
    spans: dict[object, list[tuple[int, int, int]]] = {}
    overlapping = set()
    for tensor in filter(_has_memory, tensors):
        lengths = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((n - 1) * stride for n, stride in lengths)
        if any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
            overlapping.add(id(tensor))
        start = tensor.data_ptr()
        place = tensor.device, tensor.untyped_storage().data_ptr()
        end = start + extent * tensor.element_size()
        spans.setdefault(place, []).append((start, end, id(tensor)))
    for group in spans.values():
        group.sort()
        reach, last = -1, 0
        for start, end, identity in group:
            if start < reach:
                overlapping |= {last, identity}
            if end > reach:
                reach, last = end, identity
    return overlapping
