"""Compression of a model: its parameters are clustered, and it takes their palettes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.palette.palettize import palettize
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.lookahead import done_together, share_of
from mlopt.requests.report import Report
from mlopt.torch.carried import attach, mark
from mlopt.torch.copies import computed_tensors
from mlopt.torch.modules import ModelParameter
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
) -> tuple[nn.Module, Report]:
    """Palettize the parameters of a model as a configuration says.

    Parameters
    ----------
    importance
        For each parameter, by what its squared errors are weighted. None: all alike.
    workers
        Threads, at least as many as PyTorch has. The result does not depend on it.
    inplace
        Change the model itself, once all parameters are clustered: an error leaves it as it was.
        False: change a copy.
    notes
        For the report.

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
    jobs = [_job(decision, importance, workers) for decision in decisions]
    sizes = [decision.weight.tensor.numel() for decision in decisions]
    with contextlib.closing(done_together(jobs, sizes, workers)) as results:
        outcomes = list(results) if inplace else results
        taker = _Taker(model, decisions, inplace=inplace)
        rows = []
        for decision, computed in zip(decisions, outcomes, strict=True):
            if computed is not None:
                taker.take(decision.weight, computed.palettized)
            rows.append(row_of(decision, computed))
    if any(row.is_palettized for row in rows):
        mark(taker.model)
    return taker.model, Report(rows=rows, unmatched_rules=unmatched, notes=notes)


def _job(
    decision: ParameterDecision, importance: Importance | None, workers: int
) -> Callable[[], Computed] | None:
    """Cluster a parameter; None where it is kept."""
    if not isinstance(decision.result, PaletteSpec):
        return None
    share = share_of(decision.weight.tensor.numel(), workers)
    return partial(_compute, decision.weight, decision.result, importance, share)


def _compute(
    parameter: ModelParameter, spec: PaletteSpec, importance: Importance | None, workers: int
) -> Computed:
    weights, note = (None, None) if importance is None else importance(parameter)
    palettized, distortion = palettize(
        as_array(parameter.tensor),
        spec,
        importance=None if weights is None else as_array(weights),
        workers=workers,
    )
    return Computed(palettized, distortion, tuple(filter(None, (note, distortion.note))))


def store(parameter: torch.Tensor, palettized: Palettized) -> None:
    """Write the values of a palette into a parameter, which keeps device, dtype and identity."""
    values = as_tensor(palettized.dequantize())
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
            store(taking, palettized)
        for module, name in {(id(m), n): (m, n) for m, n in owners}.values():
            attach(module, name, palettized, parameter.gates)
