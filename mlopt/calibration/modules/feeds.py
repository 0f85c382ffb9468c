"""Feeds of a module: the moments that are summed when its submodules are called."""

from __future__ import annotations

import attrs
from torch import nn

from mlopt.calibration.choice import chosen_readers
from mlopt.calibration.feeds import Feed, Feeds, Moments
from mlopt.calibration.modules.readers import module_reader, observed_module, title_of
from mlopt.calibration.readers import NoStatisticsError, Reader
from mlopt.choices import Statistics
from mlopt.statistics import WeightStatistics, content_of
from mlopt.torch.modules import ModelParameter, Owner, parameters_of
from mlopt.torch.tensors import FLOATS, as_array


@attrs.frozen(eq=False)
class ModuleFeeds:
    """Feeds, and the modules that they are observed at, by identity, with their titles."""

    feeds: Feeds
    modules: dict[int, tuple[str, nn.Module]]


def feeds_of_module(model: nn.Module, statistics: Statistics) -> ModuleFeeds:
    """Return what the calibration of a module does.

    Each weight has moments of its own; those that turn out to be equal are kept once.

    Raises
    ------
    ConfigError
        Some parameters have no values.
    """
    weights: list[WeightStatistics] = []
    without: dict[str, str] = {}
    remarks: list[str] = []
    moments: list[Moments] = []
    by_module: dict[int, list[Feed]] = {}
    modules: dict[int, tuple[str, nn.Module]] = {}
    for parameter in parameters_of(model):
        readers, reasons = _readers(model, parameter)
        if not readers:
            without[parameter.name] = reasons[0]
            continue
        titled = [(title_of(owner), reader) for owner, reader in readers]
        numbers, remark = chosen_readers(parameter.name, titled, reasons)
        if remark is not None:
            remarks.append(remark)
        first = readers[numbers[0]][1]
        key = str(len(moments))
        for owner, reader in (readers[number] for number in numbers):
            module = observed_module(owner, _parent(model, owner))
            by_module.setdefault(id(module), []).append(Feed(reader, len(moments), 1))
            modules.setdefault(id(module), (title_of(owner), module))
        moments.append(
            Moments(
                key=key,
                blocks=first.arrangement.blocks,
                columns=first.arrangement.columns,
                has_second=statistics == "hessian" and not first.is_lookup,
            )
        )
        weights.append(
            WeightStatistics(
                name=parameter.name,
                names=parameter.names,
                shape=tuple(parameter.tensor.shape),
                content=content_of(as_array(parameter.tensor)),
                moments=key,
                arrangement=first.arrangement,
            )
        )
    feeds = Feeds(
        moments=tuple(moments),
        by_operation=by_module,
        weights=tuple(weights),
        without=without,
        remarks=tuple(remarks),
    )
    return ModuleFeeds(feeds, modules)


def _readers(
    model: nn.Module, parameter: ModelParameter
) -> tuple[list[tuple[Owner, Reader]], list[str]]:
    """Return the modules that multiply inputs by a parameter, and why others do not."""
    if parameter.tensor.dtype not in FLOATS:
        return [], [f"its dtype is {parameter.tensor.dtype}"]
    readers: list[tuple[Owner, Reader]] = []
    reasons: list[str] = []
    # one module may have several names, and is observed once
    owners: dict[tuple[int, str], Owner] = {}
    for owner in parameter.owners:
        owners.setdefault((id(owner.module), owner.parameter_name), owner)
    for owner in owners.values():
        try:
            readers.append((owner, module_reader(owner, _parent(model, owner))))
        except NoStatisticsError as error:
            reasons.append(str(error))
    return readers, list(dict.fromkeys(reasons))


def _parent(model: nn.Module, owner: Owner) -> nn.Module | None:
    """Return the module that an owner is a part of; None for the model itself."""
    outer = owner.module_name.rpartition(".")[0]
    return model.get_submodule(outer) if owner.module_name else None
