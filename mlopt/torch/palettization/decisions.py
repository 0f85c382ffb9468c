"""What is to be done with each parameter of a model, before anything is clustered."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import nn

from mlopt.errors import ConfigError
from mlopt.palette.palettize import can_quantize_table, is_finite
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep, float_table_note
from mlopt.requests.rules import UnmatchedRule
from mlopt.torch.adapters import adapters_of, check_registered
from mlopt.torch.modules import ModelParameter, parameters_of
from mlopt.torch.palettization.config import ModuleConfigT, OptimizationConfig
from mlopt.torch.palettization.module_configs import ModuleOptimizationConfig
from mlopt.torch.palettization.rules import resolve_shared, unmatched_rules
from mlopt.torch.sensitivity.sharded import is_sharded
from mlopt.torch.tensors import FLOATS, as_array, dtype_name


@attrs.frozen(eq=False)
class Decision:
    """What happens to one parameter.

    ``outcome``: the palette that is wanted, or why it is kept; ``rule``: the rule that decided;
    ``notes``: what a reader should know beside it; ``config``: what was asked for, None for what is
    kept.
    """

    parameter: ModelParameter
    outcome: PaletteSpec | Keep
    rule: str
    notes: tuple[str, ...] = ()
    config: ModuleOptimizationConfig | None = None


def decide(
    model: nn.Module, config: OptimizationConfig[ModuleConfigT]
) -> tuple[tuple[Decision, ...], tuple[UnmatchedRule, ...]]:
    """Decide about every parameter of a model; also the rules that match no module with weights.

    Raises
    ------
    ConfigError
        Some parameters have no values, or they are distributed over processes; or modules are not
        as they were registered.
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


def _decide(parameter: ModelParameter, config: OptimizationConfig[ModuleConfigT]) -> Decision:
    reason = _untouchable(parameter)
    if reason is not None:
        return Decision(parameter, Keep(*reason), "no rule")
    owners = [(owner.module_name, owner.module) for owner in parameter.adapted]
    resolution = resolve_shared(config, owners)
    notes: tuple[str, ...] = (resolution.note,) if resolution.note else ()

    def kept(reason: str, category: str | None = None) -> Decision:
        return Decision(parameter, Keep(reason, category or reason), resolution.rule, notes)

    if resolution.keep is not None:
        return kept(resolution.keep.reason, resolution.keep.category)
    if resolution.config is None:
        rule = resolution.rule
        return kept("no rule applies" if rule == "no rule" else f"left alone by {rule}")
    if not is_finite(as_array(parameter.tensor)):
        return kept("it holds an infinity or a NaN", "infinity or NaN")
    return _palettized(parameter, resolution.config, resolution.rule, notes, kept)


def _untouchable(parameter: ModelParameter) -> tuple[str, str] | None:
    """Why a parameter stays whatever the configuration says: reason and category."""
    tensor, first = parameter.tensor, parameter.owners[0]
    kind = type(first.module).__name__
    if tensor.dtype not in FLOATS:
        wanted = ", ".join(map(dtype_name, FLOATS))
        return f"{dtype_name(tensor.dtype)}; only {wanted} can be palettized", "not such a float"
    if tensor.dim() < 2:
        return f"rank {tensor.dim()}; Core ML wants rank 2 or more", "rank 0 or 1"
    if not tensor.numel():
        return "it has no elements", "no elements"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}; make it dense first", "not dense"
    if parameter.overlaps:
        return (
            "some of its memory is that of another parameter, or is expanded; clone it first",
            "shares memory",
        )
    if any(getattr(owner.module, "max_norm", None) is not None for owner in parameter.adapted):
        return (
            f"{kind} rewrites it in every pass, for max_norm; set max_norm to None first",
            "rewritten by its module",
        )
    if parameter.adapted:
        return None
    if isinstance(first.module, nn.utils.parametrize.ParametrizationList):
        return (
            "the weight is computed from it by a parametrization; make that permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations first",
            "part of a reparametrization",
        )
    name, _, suffix = first.parameter_name.rpartition("_")
    if suffix == "orig" and hasattr(first.module, f"{name}_mask"):
        return (
            f"{name} is computed from it by pruning; make that permanent with "
            "torch.nn.utils.prune.remove first",
            "part of a reparametrization",
        )
    if suffix in ("g", "v") and hasattr(first.module, name):
        return (
            f"{name} is computed from it by weight_norm; make that permanent with "
            "torch.nn.utils.remove_weight_norm first",
            "part of a reparametrization",
        )
    remedy = "" if adapters_of(first.module) else "; mlopt.torch.register_module makes one"
    return (
        f"no adapter palettizes {first.parameter_name!r} of {kind}{remedy}",
        "no adapter for its module",
    )


def _palettized(
    parameter: ModelParameter,
    config: ModuleOptimizationConfig,
    rule: str,
    notes: tuple[str, ...],
    kept: Callable[..., Decision],
) -> Decision:
    tensor = parameter.tensor
    axes = {o.adapter.axes(tensor.dim()) for o in parameter.adapted if o.adapter}
    shape = tuple(tensor.shape)
    is_cut = config.group_size_for(shape) is not None or config.vector_length > 1
    needs_axis = is_cut or config.enable_per_channel_scale
    if needs_axis and len(axes) > 1:
        return kept(
            f"its modules have their channels on different axes: {', '.join(parameter.names)}",
            "its modules have different channel axes",
        )
    output_axis, input_axis = next(iter(axes))
    axis = output_axis if config.channel_axis == 0 else input_axis
    permutation = config.permutation_for(tensor.dim())
    axis = axis if permutation is None else permutation[0]
    channels = int(tensor.shape[axis])
    group_size = config.group_size_for(shape, axis)
    if isinstance(group_size, Keep):
        return kept(group_size.reason, group_size.category)
    if group_size is not None and channels % group_size:
        return kept(
            f"{channels} channels on axis {axis} do not divide into groups of {group_size}",
            "channels do not divide into groups",
        )
    if group_size is not None and group_size % config.vector_length:
        return kept(
            f"cluster_dim {config.vector_length} does not divide groups of {group_size} channels; "
            "a vector cannot belong to two groups",
            "cluster_dim does not divide the channels",
        )
    if config.vector_length > 1:
        together = parameter.channels_together(axis)
        if together % config.vector_length:
            return kept(
                f"cluster_dim {config.vector_length} does not divide the {together} channels on "
                f"axis {axis}" + ("" if together == channels else " of a group"),
                "cluster_dim does not divide the channels",
            )
    if group_size == channels:
        group_size = None  # one group is one table; the target need not know of groups then
    spec = PaletteSpec(
        mode="kmeans",
        nbits=config.n_bits,
        channel_axis=axis if group_size is not None or config.vector_length > 1 else None,
        group_size=group_size,
        cluster_dim=config.vector_length,
        scale_axis=output_axis if config.enable_per_channel_scale else None,
        lut_dtype=config.lut_dtype_name,
    )
    if spec.lut_dtype is not None and not can_quantize_table(as_array(tensor), spec):
        notes += (float_table_note(spec.lut_dtype, dtype_name(tensor.dtype)),)
        spec = attrs.evolve(spec, lut_dtype=None)
    return Decision(parameter, spec, rule, notes, config)
