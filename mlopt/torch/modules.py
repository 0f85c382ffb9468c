"""The parameters of a model, and what they are to the modules that own them."""

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
    """A module that has a parameter: its qualified name, itself, and the parameter's name in it."""

    module_name: str
    module: nn.Module
    parameter_name: str

    @property
    def name(self) -> str:
        """The qualified name of the parameter."""
        return f"{self.module_name}.{self.parameter_name}".removeprefix(".")

    @property
    def kind(self) -> str:
        """The name of the module's class, as it is without parametrizations."""
        kind = type(self.module)
        return (kind.__bases__[0] if is_parametrized(self.module) else kind).__name__

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that palettizes this parameter; None where there is none."""
        return adapter_for(self.module, self.parameter_name)


@attrs.frozen(eq=False)
class ModelParameter:
    """One parameter and the modules (at least one) that have it; several where it is tied.

    tensor: its values; twins: further parameters that are the same view of the same memory, which
    ties them as well; overlaps: whether other parameters have a part of its memory, or some of its
    own elements do.
    """

    tensor: torch.Tensor
    owners: tuple[Owner, ...]
    twins: tuple[torch.Tensor, ...] = ()
    overlaps: bool = False

    @property
    def name(self) -> str:
        """The qualified name that it has first."""
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
        """So many gates coremltools takes it apart into, for one of its owners at least.

        It knows a tied weight by one name alone, so that it takes no compressed weight then.
        """
        gates = (owner.adapter.gates for owner in self.owners if owner.adapter)
        return next((number for number in gates if number is not None), None)

    def channels_together(self, axis: int) -> int:
        """The most consecutive channels on an axis that a vector may reach across, to any owner."""
        length = int(self.tensor.shape[axis])
        return min(
            (o.adapter.together(o.module, length, axis) for o in self.owners if o.adapter),
            default=length,
        )


def parameters_of(model: nn.Module) -> tuple[ModelParameter, ...]:
    """The parameters of a model in the order of its modules, each once.

    Raises
    ------
    ConfigError
        Some have no values yet (lazy modules, the meta device).
    """
    found: dict[object, tuple[list[torch.Tensor], list[Owner]]] = {}
    without_values = []
    for module_name, module in model.named_modules(remove_duplicate=False):
        for parameter_name, parameter in module._parameters.items():
            if parameter is None:
                continue
            owner = Owner(module_name, module, parameter_name)
            if nn.parameter.is_lazy(parameter) or parameter.is_meta:
                without_values.append(owner.name)
                continue
            tensors, owners = found.setdefault(_place(parameter), ([], []))
            if not any(tensor is parameter for tensor in tensors):
                tensors.append(parameter)
            owners.append(owner)
    if without_values:
        raise ConfigError(
            f"parameters without values cannot be palettized, got {', '.join(without_values)} (a "
            "lazy module before its first call, or the meta device); materialize the model first"
        )
    overlapping = _overlapping([tensors[0] for tensors, _ in found.values()])
    return tuple(
        ModelParameter(tensors[0], tuple(owners), tuple(tensors[1:]), id(tensors[0]) in overlapping)
        for tensors, owners in found.values()
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside a wrapper of PyTorch's that runs or averages it; another module itself."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
    return model.get_submodule("module") if isinstance(model, wrappers) else model


def _place(tensor: torch.Tensor) -> object:
    """What two parameters have in common that are the same memory seen in the same way."""
    if not _has_memory(tensor):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie at strides in memory of its own process."""
    return tensor.layout is torch.strided and tensor.numel() > 0 and tensor.data_ptr() != 0


def _overlapping(tensors: Sequence[torch.Tensor]) -> set[int]:
    """The ids of those whose memory others have a part of, or that has one element twice."""
    spans: dict[object, list[tuple[int, int, int]]] = {}
    found = set()
    for tensor in filter(_has_memory, tensors):
        lengths = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((n - 1) * stride for n, stride in lengths)
        if any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
            found.add(id(tensor))
        start = tensor.data_ptr()
        place = tensor.device, tensor.untyped_storage().data_ptr()
        end = start + extent * tensor.element_size()
        spans.setdefault(place, []).append((start, end, id(tensor)))
    for group in spans.values():
        group.sort()
        reach, last = -1, 0
        for start, end, identity in group:
            if start < reach:
                found |= {last, identity}
            if end > reach:
                reach, last = end, identity
    return found
