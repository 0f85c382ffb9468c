"""Decisions about the parameters of a model, before anything is clustered."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.palette.palettize import is_finite
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.decisions import Decision
from mlopt.requests.keep import NOT_FINITE, Keep, low_rank, without_unusable_codes
from mlopt.requests.layout import choose_layout
from mlopt.requests.rules import UnmatchedRule
from mlopt.torch.adapters import adapters_of, check_registered
from mlopt.torch.modules import ModelParameter, Owner, parameters_of
from mlopt.torch.palettization.config import OptimizationConfig
from mlopt.torch.palettization.module_configs import ModuleConfigT, ModuleOptimizationConfig
from mlopt.torch.palettization.rules import resolve_shared, unmatched_rules
from mlopt.torch.sensitivity.sharded import is_sharded
from mlopt.torch.tensors import FLOATS, as_array, dtype_name

ParameterDecision: TypeAlias = Decision[ModelParameter, ModuleOptimizationConfig]


def decide(
    model: nn.Module, config: OptimizationConfig[ModuleConfigT]
) -> tuple[tuple[ParameterDecision, ...], tuple[UnmatchedRule, ...]]:
    """Decide about every parameter of a model; also return rules that match no module with weights.

    Raises
    ------
    ConfigError
        Some parameters have no values or are distributed over processes, or modules differ from
        what was registered for them.
    """
    if is_sharded(model):
        raise ConfigError(
            "parameters that are sharded over processes cannot be palettized; save their "
            "sensitivities with compute_sensitivity(..., sensitivity_path=...), and palettize the "
            "model as it is before it is sharded with that sensitivity_path"
        )
    for module_name, module in model.named_modules():
        check_registered(module_name, module)
    parameters = parameters_of(model)
    weighted = {owner.module_name for p in parameters for owner in p.adapted}
    unmatched = unmatched_rules(config, list(model.named_modules(remove_duplicate=False)), weighted)
    return tuple(_decide(parameter, config) for parameter in parameters), unmatched


def _decide(
    parameter: ModelParameter, config: OptimizationConfig[ModuleConfigT]
) -> ParameterDecision:
    reason = _reason_to_keep(parameter)
    if reason is not None:
        return Decision(parameter, reason, "no rule")
    owners = [(owner.module_name, owner.module) for owner in parameter.adapted]
    resolution = resolve_shared(config, owners)

    def kept(reason: Keep) -> ParameterDecision:
        return Decision(parameter, reason, resolution.rule, resolution.notes)

    if resolution.config is None:
        return kept(resolution.reason_to_keep)
    values = as_array(parameter.tensor)
    if not is_finite(values):
        return kept(NOT_FINITE)
    spec = choose_spec(parameter, resolution.config)
    if isinstance(spec, Keep):
        return kept(spec)
    spec, change = without_unusable_codes(spec, values)
    notes = resolution.notes + change
    return Decision(parameter, spec, resolution.rule, notes, resolution.config)


def _reason_to_keep(parameter: ModelParameter) -> Keep | None:
    """Return why a parameter is kept regardless of the configuration, or None."""
    tensor, first = parameter.tensor, parameter.owners[0]
    kind = type(first.module).__name__
    if tensor.dtype not in FLOATS:
        wanted = ", ".join(map(dtype_name, FLOATS))
        return Keep(
            f"{dtype_name(tensor.dtype)}; only {wanted} can be palettized", "not such a float"
        )
    if tensor.dim() < 2:
        return low_rank(tensor.dim())
    if not tensor.numel():
        return Keep("it has no elements", "no elements")
    if tensor.layout is not torch.strided:
        return Keep(f"its layout is {tensor.layout}; make it dense first", "not dense")
    if parameter.overlaps:
        return Keep(
            "it shares memory with another parameter, or is expanded; clone it first",
            "shares memory",
        )
    if any(getattr(owner.module, "max_norm", None) is not None for owner in parameter.adapted):
        return Keep(
            f"{kind} rewrites it in every pass, for max_norm; set max_norm to None first",
            "rewritten by its module",
        )
    return None if parameter.adapted else _without_adapter(first)


def _without_adapter(owner: Owner) -> Keep:
    """Return why no adapter palettizes a parameter."""
    module = owner.module
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return Keep(
            "the weight is computed from it by a parametrization; make that permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations first",
            "part of a reparametrization",
        )
    name, _, suffix = owner.parameter_name.rpartition("_")
    if suffix == "orig" and hasattr(module, f"{name}_mask"):
        return Keep(
            f"{name} is computed from it by pruning; make that permanent with "
            "torch.nn.utils.prune.remove first",
            "part of a reparametrization",
        )
    if suffix in ("g", "v") and hasattr(module, name):
        return Keep(
            f"{name} is computed from it by weight_norm; make that permanent with "
            "torch.nn.utils.remove_weight_norm first",
            "part of a reparametrization",
        )
    remedy = "" if adapters_of(module) else "; mlopt.torch.register_module adds one"
    return Keep(
        f"no adapter palettizes {owner.parameter_name!r} of {type(module).__name__}{remedy}",
        "no adapter for its module",
    )


def choose_spec(parameter: ModelParameter, config: ModuleOptimizationConfig) -> PaletteSpec | Keep:
    """Return the palette that a configuration asks for, fitted to the shape and the modules."""
    shape = tuple(parameter.tensor.shape)
    axes = {o.adapter.axes(len(shape)) for o in parameter.adapted if o.adapter}
    is_cut = config.group_size_for(shape) is not None or config.vector_length > 1
    if len(axes) > 1 and (is_cut or config.enable_per_channel_scale):
        return Keep(
            f"its modules have their channels on different axes: {', '.join(parameter.names)}",
            "its modules have different channel axes",
        )
    output_axis, input_axis = next(iter(axes))
    axis = output_axis if config.channel_axis == 0 else input_axis
    permutation = config.permutation_for(len(shape))
    axis = axis if permutation is None else permutation[0]
    group_size = config.group_size_for(shape, axis)
    if isinstance(group_size, Keep):
        return group_size
    layout = choose_layout(
        shape,
        axis,
        group_size=group_size,
        cluster_dim=config.vector_length,
        channels_together=parameter.channels_together(axis),
    )
    if isinstance(layout, Keep):
        return layout
    return PaletteSpec(
        mode="kmeans",
        nbits=config.n_bits,
        channel_axis=layout.channel_axis,
        group_size=layout.group_size,
        cluster_dim=config.vector_length,
        scale_axis=output_axis if config.enable_per_channel_scale else None,
        lut_dtype=config.lut_dtype_name,
    )
