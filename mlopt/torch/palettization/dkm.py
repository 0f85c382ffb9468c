"""Palettization of a PyTorch model during training: differentiable k-means."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from mlopt.errors import ConfigError
from mlopt.palette.value.distortion import measure_distortion
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.report import Report
from mlopt.torch.activations import (
    NAME,
    Codes,
    FakeQuantizedActivation,
    attach_quantizer,
    freeze_quantizers,
)
from mlopt.torch.carried import attach, mark
from mlopt.torch.copies import computed_tensors
from mlopt.torch.modules import Owner, unwrapped
from mlopt.torch.palettization.base import Palettizer
from mlopt.torch.palettization.compression import store
from mlopt.torch.palettization.config import DKMPalettizerConfig
from mlopt.torch.palettization.decisions import ParameterDecision, decide
from mlopt.torch.palettization.dkm_config import ModuleDKMPalettizerConfig
from mlopt.torch.palettization.fake_options import options_for
from mlopt.torch.palettization.fake_palettize import FakePalettize
from mlopt.torch.palettization.recurrent import compute_weights_in_passes, keep_weights_again
from mlopt.torch.palettization.rows import Computed, row_of
from mlopt.torch.sensitivity.sharded import is_sharded
from mlopt.torch.tensors import as_array, as_tensor


class DKMPalettizer(Palettizer[DKMPalettizerConfig]):
    """Palettizes the weights of a model during training (DKM, arXiv 2108.12659).

    While the model is trained, each weight is replaced by a mean of the entries of its table, and
    the tables follow the weights; :meth:`finalize` leaves the nearest entries. The modules that are
    palettized are those of :class:`PostTrainingPalettizer`. Gradients of palettized weights are
    dense, also those of ``Embedding(sparse=True)``, which ``SparseAdam`` does not take.

    Parameters
    ----------
    model
        The model to be trained.
    config
        Which modules, and how. None: weights of more than 2048 elements, at 4 bits for linear,
        bilinear and recurrent layers, and 2 for all others.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from mlopt.torch.palettization import DKMPalettizer, DKMPalettizerConfig
    >>> model = nn.Sequential(nn.Linear(4, 500), nn.Sigmoid(), nn.Linear(500, 4))
    >>> rules = {nn.Linear: {"n_bits": 2, "weight_threshold": 1000}}
    >>> config = DKMPalettizerConfig.from_dict({"module_type_configs": rules})
    >>> palettizer = DKMPalettizer(model, config)
    >>> model = palettizer.prepare(inplace=True)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     model(torch.rand(8, 4)).square().mean().backward()
    ...     optimizer.step()
    ...     palettizer.step()
    >>> model = palettizer.finalize(inplace=True)
    >>> model[0].weight.unique().numel()
    4
    """

    config_class = DKMPalettizerConfig
    _decisions: tuple[ParameterDecision, ...] | None = None
    """The decision about each parameter, once the model is prepared."""

    def prepare(self, inplace: bool = False) -> nn.Module:
        """Palettize the weights from now on, or from their milestones on.

        Parameters
        ----------
        inplace
            Change the model itself: an optimizer of its parameters remains valid. False: a copy is
            prepared, which has parameters of its own.

        Returns
        -------
        The prepared model, in training mode. Its palettized weights are parametrized: the trained
        ones are ``module.parametrizations.weight.original``.

        Raises
        ------
        ConfigError
            The model is already prepared, or has parameters that have no values or are sharded over
            processes. A prepared model can be sharded.
        """
        if _is_prepared(self._model):
            raise ConfigError("the model is already prepared; train it, or finalize it first")
        if is_sharded(self._model):
            raise ConfigError(
                "the model is sharded over processes; prepare it first, and shard the prepared one"
            )
        model = self._model
        if not inplace:
            model = copy.deepcopy(model, computed_tensors(model))
        decisions, unmatched = decide(model, self._config)
        # all of them before the first change
        fakes = {
            decision.weight.name: _fake(decision)
            for decision in decisions
            if isinstance(decision.result, PaletteSpec)
        }
        self._model, self._decisions, self._unmatched = model, decisions, unmatched
        self._report = None
        for decision in decisions:
            if not isinstance(decision.result, PaletteSpec):
                continue
            fake = fakes[decision.weight.name].to(decision.weight.tensor.device)
            assert isinstance(decision.config, ModuleDKMPalettizerConfig)
            fake.enable(decision.config.milestone == 0)
            for owner in _each_once(decision):
                parametrize.register_parametrization(
                    owner.module, owner.parameter_name, fake, unsafe=True
                )
                compute_weights_in_passes(owner.module)
                if decision.config.quantize_activations and not isinstance(
                    owner.module._modules.get(NAME), FakeQuantizedActivation
                ):
                    quantizer = attach_quantizer(owner.module, _codes(decision.config))
                    quantizer.to(fake.centroids.device).enable(decision.config.milestone == 0)
        return model.train()

    def step(self) -> None:
        """Count a step, of training or an epoch, and palettize weights whose milestone is reached.

        A milestone of n is reached by the n-th call.
        """
        for decision, fake in self._palettized():
            assert isinstance(decision.config, ModuleDKMPalettizerConfig)
            fake.steps += 1
            if int(fake.steps) == decision.config.milestone:
                _enable(decision, fake, True)

    def enable_fake_palett(self, flag: bool) -> None:
        """Palettize all weights from now on, regardless of their milestones, or none."""
        for decision, fake in self._palettized():
            _enable(decision, fake, flag)

    def finalize(self, model: nn.Module | None = None, inplace: bool = False) -> nn.Module:
        """Replace the weights permanently by entries of their tables.

        Parameters
        ----------
        model
            The model that :meth:`prepare` returned, or a copy of it, such as an average over
            training. None: the one that it returned.
        inplace
            Change the model itself. False: change a copy.

        Returns
        -------
        A plain model in evaluation mode, whose modules carry their palettes in buffers, as
        :meth:`PostTrainingPalettizer.compress` returns it.

        Raises
        ------
        ConfigError
            The model is not prepared, or it is sharded over processes: its full state dict must be
            loaded into a prepared model that is not.
        """
        prepared = self._model if model is None else unwrapped(model)
        decisions = self._checked_decisions(prepared)
        if not inplace:
            prepared = copy.deepcopy(prepared, computed_tensors(prepared))
        # all of them before the first change
        computed = {
            decision.weight.name: _computed(decision, prepared)
            for decision in decisions
            if isinstance(decision.result, PaletteSpec)
        }
        rows = []
        for decision in decisions:
            result = computed.get(decision.weight.name)
            rows.append(row_of(decision, result))
            if result is None:
                continue
            owners = _owners_in(prepared, decision)
            _, weight = _parametrization(*owners[0])
            for module, name in owners:
                _remove_parametrization(module, name)
            store(weight, as_tensor(result.palettized.dequantize()))
            for module, name in owners:
                attach(module, name, result.palettized, decision.weight.gates)
        freeze_quantizers(prepared)
        mark(prepared)
        self._report = Report(rows=rows, unmatched_rules=self._unmatched)
        return prepared.eval()

    def report(self) -> Report:
        """Report on every parameter, as :meth:`finalize` would leave it now, or has left it.

        Raises
        ------
        ConfigError
            The model has not been prepared yet.
        """
        if self._report is None:
            self.finalize(inplace=False)
            report, self._report = self._report, None
            return cast(Report, report)
        return self._report

    def _checked_decisions(self, model: nn.Module) -> tuple[ParameterDecision, ...]:
        """The decisions that a model, or a copy of it, was prepared by."""
        if self._decisions is None:
            raise ConfigError("the model is not prepared; call prepare first, and train it")
        if not _is_prepared(model) and any(
            isinstance(decision.result, PaletteSpec) for decision in self._decisions
        ):
            raise ConfigError("the model is already finalized, or not a copy of the prepared one")
        if is_sharded(model):
            raise ConfigError(
                "the model is sharded over processes; load its full state dict into a prepared "
                "model that is not, and finalize that"
            )
        return self._decisions

    def _palettized(self) -> Iterator[tuple[ParameterDecision, FakePalettize]]:
        """The decisions to palettize, each with the parametrization of its weight.

        Nothing where the model has been finalized.
        """
        if self._decisions is None:
            raise ConfigError("the model is not prepared; call prepare first")
        for decision in self._decisions:
            if isinstance(decision.result, PaletteSpec):
                owner = decision.weight.owners[0]
                if parametrize.is_parametrized(owner.module, owner.parameter_name):
                    yield decision, _parametrization(owner.module, owner.parameter_name)[0]


def _is_prepared(model: nn.Module) -> bool:
    return any(isinstance(module, FakePalettize) for module in model.modules())


def _enable(decision: ParameterDecision, fake: FakePalettize, flag: bool) -> None:
    """Switch the palettization of a weight, and of its modules' outputs if requested, on or off."""
    fake.enable(flag)
    for owner in decision.weight.owners:
        quantizer = owner.module._modules.get(NAME)
        if isinstance(quantizer, FakeQuantizedActivation):
            quantizer.enable(flag)


def _codes(config: ModuleDKMPalettizerConfig) -> Codes:
    return Codes(config.quant_min, config.quant_max, config.dtype)


def _parametrization(module: nn.Module, name: str) -> tuple[FakePalettize, torch.Tensor]:
    """Return the parametrization of a prepared module's weight, and the weight that is trained."""
    parametrizations: Any = module.parametrizations
    return parametrizations[name][0], parametrizations[name].original


def _computed(decision: ParameterDecision, prepared: nn.Module) -> Computed:
    """Return the palette of a weight of a prepared model."""
    fake, weight = _parametrization(*_owners_in(prepared, decision)[0])
    name = decision.weight.name
    if not torch.isfinite(weight).all():
        raise ConfigError(
            f"{name}: the trained weight has an infinity or a NaN; go back to a state before that"
        )
    try:
        palettized = fake.palettized(weight)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    notes = () if fake.enabled else ("its milestone was not reached: never trained palettized",)
    return Computed(palettized, measure_distortion(as_array(weight), palettized), notes)


def _owners_in(model: nn.Module, decision: ParameterDecision) -> list[tuple[nn.Module, str]]:
    """Return the modules of a copy of the model that own a parameter, each once, with its name."""
    return [(model.get_submodule(o.module_name), o.parameter_name) for o in _each_once(decision)]


def _remove_parametrization(module: nn.Module, name: str) -> None:
    """Restore a module's plain parameter; copies of the module stay parametrized.

    PyTorch removes the parametrized name from the module's class, which copies of it share.
    """
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    keep_weights_again(module)


def _each_once(decision: ParameterDecision) -> list[Owner]:
    """Return the owners of a parameter, a module with several names once."""
    owners = {(id(o.module), o.parameter_name): o for o in reversed(decision.weight.owners)}
    return list(reversed(owners.values()))


def _fake(decision: ParameterDecision) -> FakePalettize:
    """Return the parametrization that palettizes a weight in training, as its decision says."""
    config, spec, parameter = decision.config, decision.result, decision.weight
    assert isinstance(config, ModuleDKMPalettizerConfig)
    assert isinstance(spec, PaletteSpec)
    shape = tuple(parameter.tensor.shape)
    return FakePalettize(options_for(parameter.name, shape, config, spec))
