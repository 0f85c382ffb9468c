"""What is to be done with each weight, before anything is clustered.

Every weight is either kept, with a reason, or has a spec for its palette and a deployment target
that can express it. What no target in reach can express is collected and refused at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from mlopt.coreml.channels import channels_of_one_group, output_axes
from mlopt.coreml.config import OpPalettizerConfig, OptimizationConfig
from mlopt.coreml.constexpr.weights import is_part
from mlopt.coreml.elementwise import ElementwiseReaders
from mlopt.coreml.joint import JointWeight, check_joint, palettize_joint, with_joint_weights
from mlopt.coreml.opsets import FunctionTargets, raised_note, with_compression
from mlopt.coreml.rules import resolve, unmatched_rules
from mlopt.coreml.weights import Weight, is_mask, shown_consumers, weights_of
from mlopt.errors import ConfigError, TargetError
from mlopt.mil.package import Package
from mlopt.mil.program import Node
from mlopt.mil.raising.upgrade import OpsetRaise, plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.palette.palettize import (
    NoPaletteError,
    can_quantize_table,
    is_finite,
    palettize,
)
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep, float_table_note
from mlopt.requests.rules import Resolution, UnmatchedRule

_FLOATS = ("float16", "float32")
COMPRESSED = "compressed already"
"""The category of weights that stay because joint compression does not reach them."""

_PART = "part of something compressed already"
_NBITS_BEFORE_IOS18 = (1, 2, 4, 6, 8)


@attrs.frozen(eq=False)
class Decision:
    """What happens to one weight.

    ``outcome`` is a ``PaletteSpec`` or ``Keep``; ``config`` is what was asked for (None: nothing),
    ``group_size`` what is stored (None without groups), ``needs`` the oldest target that can
    express it, ``is_elementwise`` whether only elementwise operations read the weight.
    """

    weight: Weight | JointWeight
    outcome: PaletteSpec | Keep
    rule: str
    note: str | None = None
    config: OpPalettizerConfig | None = None
    group_size: int | None = None
    needs: Target = Target.iOS15
    is_elementwise: bool = False


@attrs.frozen(eq=False)
class Plan:
    """All decisions of a run, in program order, and the targets they lead to.

    ``target`` is the newest target before, ``raises`` what has to be done to the programs that have
    to be raised, ``target_reason`` why, and ``notes`` what there is to say about functions that are
    raised for another reason; ``joint_compression`` as it was asked for.
    """

    decisions: tuple[Decision, ...]
    target: Target
    target_after: Target
    target_reason: str | None
    raises: tuple[OpsetRaise, ...]
    unmatched_rules: tuple[UnmatchedRule, ...]
    joint_compression: bool
    notes: tuple[str, ...] = ()


def decide(
    package: Package,
    config: OptimizationConfig,
    *,
    minimum_deployment_target: Any = None,
    strict: bool = False,
    joint_compression: bool = False,
) -> Plan:
    """Decide about every weight of a package.

    Parameters
    ----------
    joint_compression
        Sparse and quantized weights count as weights whose data can be palettized.
    minimum_deployment_target
        The newest target that the result may have. None: the model's own, or iOS16 if that is
        older, which is what coremltools does too.
    strict
        A rule that matches no weight is an error.

    Raises
    ------
    ConfigError
        Rules match nothing (``strict``), or do not fit the weights they match; all are listed.
    TargetError
        Requests that need a newer target than allowed; all are listed.
    """
    weights, nodes_of_programs = subjects_of(package)
    users = [(w.name, [(user.op_name, user.op_type) for user in w.consumers]) for w in weights]
    nodes = [node for nodes in nodes_of_programs for node in nodes]
    unmatched = unmatched_rules(
        config,
        [
            *(
                (name, used_by)
                for weight, (_, used_by) in zip(weights, users, strict=True)
                if isinstance(weight, JointWeight)
                for name in weight.names
            ),
            # all constants, so that a rule for a small one counts as matched; but no rule reaches
            # the parts of a compressed weight
            *(
                (c.name, [(u.op_name, u.op_type) for u in c.consumers])
                for program, ns in zip(package.programs, nodes_of_programs, strict=True)
                for c in program.constants(ns)
                if not is_part(c)
            ),
        ],
        op_names=[node.name for node in nodes],
        op_types=[node.op_type for node in nodes],
    )
    if strict and unmatched:
        raise ConfigError(
            "rules of the configuration apply to no weight (strict):\n"
            + "\n".join(f"- {rule}" for rule in unmatched)
        )

    targets = FunctionTargets()
    problems: list[str] = []
    violations: list[str] = []
    decisions = []
    readers = {
        id(program): ElementwiseReaders(ns)
        for program, ns in zip(package.programs, nodes_of_programs, strict=True)
    }
    for weight, (name, consumers) in zip(weights, users, strict=True):
        current = Target.of_specification(weight.program.specification_version)
        limit = _limit(current, minimum_deployment_target)
        try:
            aliases = weight.names[1:]
            resolution = resolve(config, name, consumers, aliases=aliases)
            decision = _decide(weight, resolution, targets, joint_compression)
        except ConfigError as error:
            problems.append(f"{name}: {error}")
            continue
        if decision.needs > limit:
            violations.append(_violation(decision, current, limit, minimum_deployment_target))
        is_elementwise = readers[id(weight.program)].are_all(weight.consumers)
        decisions.append(attrs.evolve(decision, is_elementwise=is_elementwise))
    if problems:
        raise ConfigError(
            "the configuration does not fit some weights:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    if violations:
        raise TargetError(
            f"{len(violations)} requests cannot be expressed for the deployment target:\n"
            + "\n".join(f"- {violation}" for violation in violations)
        )
    return _with_targets(package, tuple(decisions), unmatched, joint_compression, targets)


def subjects_of(package: Package) -> tuple[list[Weight | JointWeight], list[list[Node]]]:
    """What decisions are made about, in program order, and the nodes of each program."""
    weights, nodes_of_programs = weights_of(package)
    return with_joint_weights(package, weights, nodes_of_programs), nodes_of_programs


def _limit(current: Target, minimum_deployment_target: Any) -> Target:
    """The newest target that the result may have."""
    if minimum_deployment_target is None:
        return max(current, Target.iOS16)
    return max(current, Target.parse(minimum_deployment_target))


def _decide(
    weight: Weight | JointWeight,
    resolution: Resolution[OpPalettizerConfig],
    targets: FunctionTargets,
    joint_compression: bool,
) -> Decision:
    config, rule = resolution.config, resolution.rule

    def kept(reason: str, category: str | None = None) -> Decision:
        return Decision(weight, Keep(reason, category or reason), rule, resolution.note, config)

    reason = _untouchable(weight)
    if reason is not None:
        return kept(*reason)
    if isinstance(weight, JointWeight) and not (joint_compression and weight.can_be_palettized):
        return kept(COMPRESSED)
    if config is None:
        return kept("no rule applies" if rule == "no rule" else f"left alone by {rule}")
    if weight.size <= config.weight_threshold:
        return kept(
            f"{weight.size} elements, not more than weight_threshold {config.weight_threshold}",
            "not more elements than weight_threshold",
        )
    value = weight.value()
    if not is_finite(value):
        return kept("it holds an infinity or a NaN", "infinity or NaN")
    if isinstance(weight, Weight) and is_mask(weight, value):
        return kept("it looks like an attention mask", "attention mask")
    weight.release()
    return _palettized(weight, config, resolution, targets, kept)


def _untouchable(weight: Weight | JointWeight) -> tuple[str, str] | None:
    """Why a weight has to stay as it is whatever the configuration says: reason and category."""
    for user in weight.consumers:
        if user.op_type.startswith("constexpr_"):
            return _PART, _PART
        if user.op_type == "custom_layer":
            return (
                "a custom layer reads it, and its code gets it as it is stored",
                "read by a custom layer",
            )
    if weight.inline:
        return "an attribute of its operation", "an attribute of its operation"
    if weight.dtype not in _FLOATS:
        return f"{weight.dtype}; only {' and '.join(_FLOATS)} can be palettized", "not a float"
    if len(weight.shape) < 2:
        return f"rank {len(weight.shape)}; Core ML wants rank 2 or more", "rank 0 or 1"
    if weight.is_block_output:
        return "a block returns it as it is", "returned by a block"
    if not weight.consumers:
        return "no operation reads it", "read by no operation"
    return None


def _palettized(
    weight: Weight | JointWeight,
    config: OpPalettizerConfig,
    resolution: Resolution[OpPalettizerConfig],
    targets: FunctionTargets,
    kept: Callable[..., Decision],
) -> Decision:
    rank, note = len(weight.shape), resolution.note
    if isinstance(weight, JointWeight) and not weight.is_sparse:
        config, change = _without_scales(config)
        note = "; ".join(filter(None, (note, change))) or None
    outputs = output_axes(weight.consumers, rank)
    channel_axis: int | None = None
    grouped = config.is_grouped
    if grouped or config.cluster_dim > 1:
        if grouped and config.channel_axis is not None:
            if not -rank <= config.channel_axis < rank:
                raise ConfigError(
                    f"channel_axis has to be in [{-rank}, {rank}) for the shape "
                    f"{list(weight.shape)}, got {config.channel_axis}; choose another, or None"
                )
            channel_axis = config.channel_axis % rank
        elif len(outputs) > 1:
            return kept(_disagreement(weight, outputs), "its users want different channel axes")
        else:
            channel_axis = next(iter(outputs))
    if config.enable_per_channel_scale and len(outputs) > 1:
        return kept(_disagreement(weight, outputs), "its users want different channel axes")

    group_size = config.group_size if grouped else None
    if group_size is not None and channel_axis is not None:
        channels = weight.shape[channel_axis]
        group_size = group_size or channels
        if channels % group_size:
            what = f"{channels} channels on axis {channel_axis} do not divide into groups of"
            fallback, change = _fallback(config, channels)
            if change is None:
                return kept(f"{what} {group_size}", "channels do not divide into groups")
            note = "; ".join(filter(None, (note, f"{what} {group_size}: {change}")))
            group_size = fallback
    if group_size is not None and group_size % config.cluster_dim:
        return kept(
            f"cluster_dim {config.cluster_dim} does not divide groups of {group_size} channels; a "
            "vector cannot belong to two groups",
            "cluster_dim does not divide the channels",
        )
    if config.cluster_dim > 1 and channel_axis is not None:
        together = channels_of_one_group(weight.consumers, weight.shape, channel_axis)
        if together % config.cluster_dim:
            return kept(
                f"cluster_dim {config.cluster_dim} does not divide the {together} channels on axis "
                f"{channel_axis}"
                + ("" if together == weight.shape[channel_axis] else " of a group"),
                "cluster_dim does not divide the channels",
            )
    elif group_size is None:
        channel_axis = None
    if channel_axis is not None and group_size == weight.shape[channel_axis]:
        # one group is one table; the target need not know of groups then
        group_size = None
        channel_axis = channel_axis if config.cluster_dim > 1 else None

    spec = PaletteSpec(
        mode=config.mode,
        nbits=config.nbits,
        channel_axis=channel_axis,
        group_size=group_size,
        cluster_dim=config.cluster_dim,
        scale_axis=next(iter(outputs)) if config.enable_per_channel_scale else None,
        lut_function=config.lut_function,
        lut_dtype=config.lut_dtype,
    )
    if spec.lut_dtype is not None and not can_quantize_table(weight.value(), spec):
        note = "; ".join(filter(None, (note, float_table_note(spec.lut_dtype, weight.dtype))))
        spec = attrs.evolve(spec, lut_dtype=None)
        weight.release()
    needs = Target.iOS18 if isinstance(weight, JointWeight) else _needed_target(spec)
    if max(needs, targets.oldest(weight)) < Target.iOS18:
        # What the model may be raised to is not what it will be: unique and custom raise nothing
        spec = attrs.evolve(spec, allowed_nbits=_NBITS_BEFORE_IOS18)
    # known now, so that a target is not raised for a weight that is kept in the end
    try:
        if isinstance(weight, JointWeight):
            check_joint(weight, spec)
            if spec.mode == "unique":
                palettize_joint(weight, spec)
        elif spec.mode == "unique":
            palettize(weight.value(), spec)
    except NoPaletteError as reason:
        return kept(str(reason))
    finally:
        weight.release()
    return Decision(weight, spec, resolution.rule, note, config, group_size, needs)


def _without_scales(config: OpPalettizerConfig) -> tuple[OpPalettizerConfig, str | None]:
    """What of a request a quantized weight has already, and a note about it."""
    if not config.enable_per_channel_scale and config.lut_dtype is None:
        return config, None
    return (
        attrs.evolve(config, enable_per_channel_scale=False, lut_dtype=None),
        "its tables hold the integers that it has, with its own scales",
    )


def _fallback(config: OpPalettizerConfig, channels: int) -> tuple[int | None, str | None]:
    """The group size to take instead of one that does not divide, and what to say of it.

    (None, None): the weight is to be kept.
    """
    if config.on_indivisible == "per_tensor":
        return None, "one table for the tensor instead"
    if config.on_indivisible == "divisor":
        for size in range(min(config.group_size, channels), 0, -1):
            if channels % size == 0 and size % config.cluster_dim == 0:
                return size, f"groups of {size} instead"
    return None, None


def _disagreement(weight: Weight | JointWeight, axes: set[int]) -> str:
    users = ", ".join(shown_consumers(weight.consumers))
    return f"its users want different output channel axes ({sorted(axes)}): {users}"


def _needed_target(spec: PaletteSpec) -> Target:
    """The oldest target that can express a request."""
    newer = (
        spec.group_size is not None
        or spec.cluster_dim > 1
        or spec.scale_axis is not None
        or spec.nbits == 3
        or spec.lut_dtype is not None
    )
    return Target.iOS18 if newer else Target.iOS16


def _violation(
    decision: Decision, current: Target, limit: Target, minimum_deployment_target: Any
) -> str:
    """One request too many: the weight, the rule, what was asked, what is allowed, the fix."""
    config = decision.config
    assert config is not None
    fixes = []
    if decision.group_size is not None:
        fixes.append("granularity='per_tensor'")
    if config.cluster_dim > 1:
        fixes.append("cluster_dim=1")
    if config.enable_per_channel_scale:
        fixes.append("enable_per_channel_scale=False")
    if config.nbits == 3:
        fixes.append("nbits=4")
    if isinstance(decision.outcome, PaletteSpec) and decision.outcome.lut_dtype is not None:
        fixes.append("lut_dtype=None")
    if isinstance(decision.weight, JointWeight):
        fixes.append("joint_compression=False")
    if limit < Target.iOS16:
        allowed, remedy = "nothing palettized", "minimum_deployment_target=iOS16 or newer"
        if decision.needs > Target.iOS16:
            remedy += f" with {', '.join(fixes)}"
    else:
        allowed = "one scalar table of floats for a weight at 1, 2, 4, 6 or 8 bits, without scale"
        remedy = (
            f"{', '.join(fixes)}, or minimum_deployment_target={decision.needs} "
            f"({decision.needs.macos})"
        )
    place = (
        f"{limit}"
        if limit == current or minimum_deployment_target is None
        else (f"minimum_deployment_target={limit}")
    )
    return (
        f"{decision.weight.name} ({decision.rule}): {config.summary} needs {decision.needs}; "
        f"{place} allows {allowed}. Use {remedy}."
    )


def _with_targets(
    package: Package,
    decisions: tuple[Decision, ...],
    unmatched: tuple[UnmatchedRule, ...],
    joint_compression: bool,
    targets: FunctionTargets,
) -> Plan:
    """Find out which programs have to be raised, and that they can be."""
    before = [Target.of_specification(p.specification_version) for p in package.programs]
    raises: list[OpsetRaise] = []
    reasons, refusals, notes = [], [], []
    for program, current in zip(package.programs, before, strict=True):
        palettized = [
            d
            for d in decisions
            if d.weight.program is program and isinstance(d.outcome, PaletteSpec)
        ]
        needing = [d for d in palettized if d.needs > targets.oldest(d.weight)]
        target = max([current, *(d.needs for d in needing)])
        names = {name for d in palettized for name in d.weight.functions}
        if needing or targets.below(program, names, current):
            names |= with_compression(program)
        functions = _raised_together(needing, palettized)
        behind = targets.below(program, names, target) - functions
        if not functions and not behind:
            continue
        if behind:
            notes.append(raised_note(program, behind, target))
        functions |= behind
        try:
            raises.append(plan_opset_raise(program, target, functions))
        except TargetError as error:
            refusals.append(str(error))
        if needing:
            newest = max(d.needs for d in needing)
            first = next(d for d in needing if d.needs == newest)
            assert first.config is not None
            others = f" and {len(needing) - 1} more" if len(needing) > 1 else ""
            reasons.append(f"{first.config.summary} of {first.weight.name}{others} needs {newest}")
    if refusals:
        raise TargetError("\n".join(refusals))
    after = max([*before, *(each.target for each in raises)])
    return Plan(
        decisions,
        max(before),
        after,
        "; ".join(reasons) or None,
        tuple(raises),
        unmatched,
        joint_compression,
        tuple(notes),
    )


def _raised_together(needing: list[Decision], palettized: list[Decision]) -> set[str]:
    """The functions that some decisions of a program raise.

    Those with the weights, and those that share a palettized weight with them: it is stored once,
    in one form.
    """
    shared = [set(d.weight.functions) for d in palettized]
    functions = {name for d in needing for name in d.weight.functions}
    while more := [s for s in shared if s & functions and not s <= functions]:
        functions.update(*more)
    return functions
