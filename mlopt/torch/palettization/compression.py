"""Compression of a model: its parameters are clustered, and it takes their palettes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from mlopt.choices import Method
from mlopt.errors import ConfigError
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.report import Report
from mlopt.statistics.fitting import fit
from mlopt.statistics.guidance import CalibrationSource, Guidance
from mlopt.threads import done_together, share_of
from mlopt.torch.carried import attach, mark
from mlopt.torch.copies import computed_tensors
from mlopt.torch.modules import ModelParameter
from mlopt.torch.palettization.calibrated import (
    corrected,
    guides_of,
    importance_of_outputs,
    with_notes_on_biases,
)
from mlopt.torch.palettization.config import OptimizationConfig
from mlopt.torch.palettization.decisions import ParameterDecision, decide
from mlopt.torch.palettization.module_configs import ModuleConfigT
from mlopt.torch.palettization.rows import Computed, row_of
from mlopt.torch.tensors import as_array, as_tensor

Importance = Callable[[ModelParameter], tuple[torch.Tensor | None, str | None]]
"""The importance of a parameter's elements (of its shape; None: all alike), and a note about it."""


def compress(
    model: nn.Module,
    config: OptimizationConfig[ModuleConfigT],
    *,
    importance: Importance | None,
    workers: int,
    inplace: bool,
    notes: Sequence[str] = (),
    calibration: CalibrationSource | None = None,
    method: Method = "auto",
    correct_biases: bool = True,
) -> tuple[nn.Module, Report]:
    """Palettize the parameters of a model as a configuration says.

    Parameters
    ----------
    importance
        For each parameter, by what its squared errors are weighted; where there is a calibration,
        by what those of its outputs are (:func:`importance_of_outputs`). None: all alike.
    workers
        Threads, at least as many as PyTorch has. The result does not depend on it.
    inplace
        Change the model itself, once all parameters are clustered: an error leaves it as it was.
        False: change a copy.
    notes
        For the report.
    calibration, method, correct_biases
        As for :meth:`PostTrainingPalettizer.compress`.

    Returns
    -------
    The palettized model, and the report on every parameter. Weights hold what their palettes stand
    for, in their own dtype and on their device; modules carry the palettes in buffers.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"the model must be a torch.nn.Module, got {type(model).__name__}; a traced or "
            "exported model must be palettized before it is traced"
        )
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"num_kmeans_workers must be an integer of at least 1, got {workers!r}")
    workers = max(workers, torch.get_num_threads())
    decisions, unmatched = decide(model, config)
    guides = guides_of(decisions, calibration, method=method, correct_biases=correct_biases)
    jobs = [
        _job(decision, importance, guides.of(decision.weight), workers) for decision in decisions
    ]
    sizes = [decision.weight.tensor.numel() for decision in decisions]
    with contextlib.closing(done_together(jobs, sizes, workers)) as results:
        outcomes = list(results) if inplace else results
        taker = _Taker(model, decisions, inplace=inplace)
        rows = []
        noted = with_notes_on_biases(decisions, guides)
        for decision, computed in zip(noted, outcomes, strict=True):
            if computed is not None:
                taker.take(decision.weight, computed.palettized)
                if computed.bias is not None:
                    taker.take_bias(*computed.bias)
            rows.append(row_of(decision, computed))
    if any(row.is_palettized for row in rows):
        mark(taker.model)
    return taker.model, Report(rows=rows, unmatched_rules=unmatched, notes=(*notes, *guides.notes))


def _job(
    decision: ParameterDecision,
    importance: Importance | None,
    guidance: Guidance[ModelParameter],
    workers: int,
) -> Callable[[], Computed] | None:
    """Cluster a parameter; None where it is kept."""
    if not isinstance(decision.result, PaletteSpec):
        return None
    share = share_of(decision.weight.tensor.numel(), workers)
    return partial(_compute, decision.weight, decision.result, importance, guidance, share)


def _compute(
    parameter: ModelParameter,
    spec: PaletteSpec,
    importance: Importance | None,
    guidance: Guidance[ModelParameter],
    workers: int,
) -> Computed:
    weights, note = (None, None) if importance is None else importance(parameter)
    fitted = fit(
        as_array(parameter.tensor),
        spec,
        guidance,
        importance=None if weights is None else importance_of_outputs(as_array(weights), guidance),
        workers=workers,
    )
    bias = None
    if guidance.bias is not None and fitted.mean_error is not None:
        bias = guidance.bias, corrected(guidance.bias, fitted.mean_error)
    return Computed(
        palettized=fitted.palettized,
        distortion=fitted.distortion,
        notes=(*filter(None, (note,)), *fitted.notes),
        method=guidance.method,
        output_snr_db=fitted.output_snr_db,
        bias=bias,
    )


def store(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Write values into a parameter, which keeps device, dtype and identity."""
    with torch.inference_mode() if parameter.is_inference() else torch.no_grad():
        parameter.copy_(values)


class _Taker:
    """Return the model that takes the palettes: the one given, or a copy.

    Parameters that will be palettized are not copied, since they get new values anyway.
    """

    def __init__(
        self, model: nn.Module, decisions: Iterable[ParameterDecision], *, inplace: bool
    ) -> None:
        self._is_copy = not inplace
        if inplace:
            self.model = model
            return
        memo = computed_tensors(model)
        for decision in decisions:
            parameter = decision.weight
            is_new = isinstance(decision.result, PaletteSpec)
            if not is_new and not parameter.twins:
                continue
            values = parameter.tensor.detach()
            values = torch.empty_like(values) if is_new else values.clone()
            for old in (parameter.tensor, *parameter.twins):
                if type(old) is nn.Parameter:
                    new = nn.Parameter(values, old.requires_grad)
                    new.__dict__.update(old.__dict__)
                    memo[id(old)] = new
        self.model = copy.deepcopy(model, memo)

    def take(self, parameter: ModelParameter, palettized: Palettized) -> None:
        """Give a parameter the values of a palette, and its modules the palette."""
        owners = [
            (self.model.get_submodule(owner.module_name), owner.parameter_name)
            for owner in parameter.owners
        ]
        module, name = owners[0]
        taking = module._parameters[name]
        assert taking is not None
        is_alone = self._is_copy and not parameter.twins
        if is_alone and taking.device.type == "cpu" and taking.is_contiguous():
            # the new parameter's own memory is still uninitialized
            taking.data = as_tensor(palettized.dequantize())
        else:
            store(taking, as_tensor(palettized.dequantize()))
        for module, name in {(id(m), n): (m, n) for m, n in owners}.values():
            attach(module, name, palettized, parameter.gates)

    def take_bias(self, bias: ModelParameter, values: torch.Tensor) -> None:
        """Give a bias new values."""
        owner = bias.owners[0]
        taking = self.model.get_submodule(owner.module_name)._parameters[owner.parameter_name]
        assert taking is not None
        store(taking, values)
