"""Deployment targets that decisions need: programs to raise, and requests to refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.opsets import FunctionTargets, raised_note, with_compression
from mlopt.coreml.specs import form_of
from mlopt.coreml.weights import Weight
from mlopt.errors import TargetError
from mlopt.mil.package import Package
from mlopt.mil.program import Program
from mlopt.mil.raising.upgrade import OpsetRaise, plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.decisions import Decision
from mlopt.requests.forms import BEFORE_IOS18
from mlopt.requests.rules import UnmatchedRule

WeightDecision: TypeAlias = Decision[Weight, OpPalettizerConfig]


@attrs.frozen(eq=False)
class Plan:
    """All decisions of a run, in program order, and the targets they lead to.

    Parameters
    ----------
    decisions
        One for each weight.
    target, target_after
        The newest target of a program before and after.
    target_reason
        Why programs are raised; None where no decision needs it.
    raises
        The changes to the programs that are raised.
    notes
        Notes on functions that are raised for another reason.
    unmatched_rules
        Rules that apply to no weight.
    joint_compression
        Whether joint compression was requested.
    """

    decisions: tuple[WeightDecision, ...]
    target: Target
    target_after: Target
    target_reason: str | None
    raises: tuple[OpsetRaise, ...]
    notes: tuple[str, ...]
    unmatched_rules: tuple[UnmatchedRule, ...]
    joint_compression: bool


def needs(decision: WeightDecision) -> Target:
    """Return the oldest target that can express the result of a decision."""
    if isinstance(decision.result, PaletteSpec):
        return form_of(decision.weight, decision.result).needed_target
    return Target.iOS15


def current_target(program: Program) -> Target:
    """Return the present target of a program."""
    return Target.of_specification(program.specification_version)


def check_targets(decisions: Sequence[WeightDecision], minimum: Target | None) -> None:
    """Refuse requests that no allowed target can express, all of them at once.

    Parameters
    ----------
    minimum
        The newest target that the result may have. None: the model's own, or iOS16 if that is
        older.

    Raises
    ------
    TargetError
        There are such requests.
    """
    violations = []
    for decision in decisions:
        current = current_target(decision.weight.program)
        limit = max(current, minimum or Target.iOS16)
        if needs(decision) > limit:
            is_asked_for = minimum is not None and limit != current
            violations.append(_violation(decision, limit, is_asked_for=is_asked_for))
    if violations:
        raise TargetError(
            f"{len(violations)} requests cannot be expressed for the deployment target:\n"
            + "\n".join(f"- {violation}" for violation in violations)
        )


_REMEDIES = {
    "group_size": "granularity='per_tensor'",
    "cluster_dim": "cluster_dim=1",
    "has_scale": "enable_per_channel_scale=False",
    "nbits": "nbits=4",
    "lut_dtype": "lut_dtype=None",
    "is_joint": "joint_compression=False",
}
"""What to request instead of each part of a form that needs iOS18."""


def _violation(decision: WeightDecision, limit: Target, *, is_asked_for: bool) -> str:
    """Return the message for a refused request: weight, rule, request, what is allowed, remedy."""
    assert decision.config is not None and isinstance(decision.result, PaletteSpec)
    form = form_of(decision.weight, decision.result)
    needed, changes = form.needed_target, ", ".join(_REMEDIES[part] for part in form.new_parts)
    if limit < Target.iOS16:
        allowed, remedy = "nothing palettized", "minimum_deployment_target=iOS16 or newer"
        if needed > Target.iOS16:
            remedy += f" with {changes}"
    else:
        allowed = BEFORE_IOS18
        remedy = f"{changes}, or minimum_deployment_target={needed} ({needed.macos})"
    where = f"minimum_deployment_target={limit}" if is_asked_for else f"{limit}"
    return (
        f"{decision.weight.name} ({decision.rule}): {decision.config.summary} needs {needed}; "
        f"{where} allows {allowed}. Use {remedy}."
    )


def plan_for(
    package: Package,
    decisions: Sequence[WeightDecision],
    unmatched: tuple[UnmatchedRule, ...],
    *,
    joint_compression: bool,
    targets: FunctionTargets,
) -> Plan:
    """Return the plan for the decisions, with the programs that must be raised for them.

    Raises
    ------
    TargetError
        Some operations cannot be raised; all are listed.
    """
    raises: list[OpsetRaise] = []
    reasons: list[str] = []
    notes: list[str] = []
    refusals: list[str] = []
    for program in package.programs:
        current = current_target(program)
        palettized = [
            d
            for d in decisions
            if d.weight.program is program and isinstance(d.result, PaletteSpec)
        ]
        needing = [d for d in palettized if needs(d) > targets.oldest(d.weight)]
        target = max([current, *map(needs, needing)])
        functions = _raised_together(needing, palettized)
        behind = _behind(program, palettized, needing, target, targets) - functions
        if not functions and not behind:
            continue
        if behind:
            notes.append(raised_note(program, behind, target))
        try:
            raises.append(plan_opset_raise(program, target, functions | behind))
        except TargetError as error:
            refusals.append(str(error))
        if needing:
            reasons.append(_reason(needing))
    if refusals:
        raise TargetError("\n".join(refusals))
    before = max(map(current_target, package.programs))
    return Plan(
        decisions=tuple(decisions),
        target=before,
        target_after=max([before, *(each.target for each in raises)]),
        target_reason="; ".join(reasons) or None,
        raises=tuple(raises),
        notes=tuple(notes),
        unmatched_rules=unmatched,
        joint_compression=joint_compression,
    )


def _behind(
    program: Program,
    palettized: Sequence[WeightDecision],
    needing: Sequence[WeightDecision],
    target: Target,
    targets: FunctionTargets,
) -> set[str]:
    """Return the functions whose opset would be older than the new version of the model."""
    names = {name for d in palettized for name in d.weight.functions}
    if needing or targets.below(program, names, current_target(program)):
        names |= with_compression(program)
    return targets.below(program, names, target)


def _raised_together(
    needing: Sequence[WeightDecision], palettized: Sequence[WeightDecision]
) -> set[str]:
    """Return the functions that some decisions of a program raise.

    These are the functions with the weights, and those that share a palettized weight with them,
    since it is stored once, in one form.
    """
    shared = [set(d.weight.functions) for d in palettized]
    functions = {name for d in needing for name in d.weight.functions}
    while more := [s for s in shared if s & functions and not s <= functions]:
        functions.update(*more)
    return functions


def _reason(needing: Sequence[WeightDecision]) -> str:
    """Return why a program is raised: the first of the weights that need the newest target."""
    newest = max(map(needs, needing))
    first = next(d for d in needing if needs(d) == newest)
    assert first.config is not None
    others = f" and {len(needing) - 1} more" if len(needing) > 1 else ""
    return f"{first.config.summary} of {first.weight.name}{others} needs {newest}"
