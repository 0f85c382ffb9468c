"""The palette for a weight: a request, fitted to its shape, readers and target."""

from __future__ import annotations

import attrs

from mlopt.coreml.channels import channels_of_one_group, output_axes
from mlopt.coreml.joint import strategy_of
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.opsets import FunctionTargets
from mlopt.coreml.weights import Weight, shown_consumers
from mlopt.errors import ConfigError
from mlopt.mil.constexpr_forms import index_bits
from mlopt.palette.palettize import NoPaletteError
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.forms import PaletteForm
from mlopt.requests.keep import Keep, without_unusable_codes
from mlopt.requests.layout import ChosenLayout, choose_layout
from mlopt.statistics.guidance import UNGUIDED


@attrs.frozen
class ChosenSpec:
    """The palette that a weight gets.

    config: the request, as far as it concerns the weight; notes: differences from the request.
    """

    spec: PaletteSpec
    config: OpPalettizerConfig
    notes: tuple[str, ...] = ()


def choose_spec(
    weight: Weight, config: OpPalettizerConfig, targets: FunctionTargets
) -> ChosenSpec | Keep:
    """The palette for a weight whose rule is `config`, or why there is none.

    Parameters
    ----------
    targets
        Determines the index widths that the functions of the weight can express.

    Raises
    ------
    ConfigError
        The weight has no such channel axis.
    """
    config, notes = _without_scales(weight, config)
    axis = _channel_axis(weight, config)
    if isinstance(axis, Keep):
        return axis
    scale_axis = _scale_axis(weight, config)
    if isinstance(scale_axis, Keep):
        return scale_axis
    layout = _layout(weight, config, axis)
    if isinstance(layout, Keep):
        return layout
    spec = PaletteSpec(
        mode=config.mode,
        nbits=config.nbits,
        channel_axis=layout.channel_axis,
        group_size=layout.group_size,
        cluster_dim=config.cluster_dim,
        scale_axis=scale_axis,
        lut_function=config.lut_function,
        lut_dtype=config.lut_dtype,
    )
    notes += layout.notes
    if spec.lut_dtype is not None:  # else the values are not read
        spec, change = without_unusable_codes(spec, weight.value())
        notes += change
        weight.release()
    # What the model may be raised to is not what it will be: unique and custom raise nothing
    target = max(form_of(weight, spec).needed_target, targets.oldest(weight))
    spec = attrs.evolve(spec, allowed_nbits=index_bits(target))
    return _reason_of_values(weight, spec) or ChosenSpec(spec, config, notes)


def form_of(weight: Weight, spec: PaletteSpec) -> PaletteForm:
    """The form of a palette of a weight."""
    return PaletteForm.of_spec(spec, is_joint=weight.is_compressed)


def _without_scales(
    weight: Weight, config: OpPalettizerConfig
) -> tuple[OpPalettizerConfig, tuple[str, ...]]:
    """The request for a weight, without scales if it is quantized and has its own."""
    if not strategy_of(weight).has_scales or not (
        config.enable_per_channel_scale or config.lut_dtype is not None
    ):
        return config, ()
    note = "its tables hold the integers that it has, with its own scales"
    return attrs.evolve(config, enable_per_channel_scale=False, lut_dtype=None), (note,)


def _channel_axis(weight: Weight, config: OpPalettizerConfig) -> int | Keep | None:
    """The axis of groups and vectors, 0 or more; None if neither is requested."""
    if not config.is_grouped and config.cluster_dim == 1:
        return None
    if not config.is_grouped or config.channel_axis is None:
        return _output_axis(weight)
    rank = len(weight.shape)
    if not -rank <= config.channel_axis < rank:
        raise ConfigError(
            f"channel_axis must be in [{-rank}, {rank}) for the shape {list(weight.shape)}, got "
            f"{config.channel_axis}; choose another, or None"
        )
    return config.channel_axis % rank


def _scale_axis(weight: Weight, config: OpPalettizerConfig) -> int | Keep | None:
    return _output_axis(weight) if config.enable_per_channel_scale else None


def _output_axis(weight: Weight) -> int | Keep:
    """The output channel axis on which all operations that read a weight agree."""
    axes = output_axes(weight.consumers, len(weight.shape))
    if len(axes) == 1:
        return axes.pop()
    users = ", ".join(shown_consumers(weight.consumers))
    return Keep(
        f"its users want different output channel axes ({sorted(axes)}): {users}",
        "its users want different channel axes",
    )


def _layout(weight: Weight, config: OpPalettizerConfig, axis: int | None) -> ChosenLayout | Keep:
    if axis is None:
        return ChosenLayout()
    return choose_layout(
        weight.shape,
        axis,
        group_size=(config.group_size or weight.shape[axis]) if config.is_grouped else None,
        cluster_dim=config.cluster_dim,
        channels_together=channels_of_one_group(weight.consumers, weight.shape, axis),
        on_indivisible=config.on_indivisible,
    )


def _reason_of_values(weight: Weight, spec: PaletteSpec) -> Keep | None:
    """Why no palette can hold the values, as far as that is known without clustering.

    Checked early, so that no target is raised for a weight that is kept in the end.
    """
    strategy = strategy_of(weight)
    try:
        strategy.check(weight, spec)
        if spec.mode == "unique":
            strategy.palettize(weight, spec, 1, UNGUIDED)
    except NoPaletteError as reason:
        return Keep(str(reason))
    finally:
        weight.release()
    return None
