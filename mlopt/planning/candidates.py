"""Candidates: the forms that each weight of a model can have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from mlopt.choices import Device, Method
from mlopt.coreml.biases import BiasPlace
from mlopt.coreml.calibrated import guides_of
from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.decisions import decide
from mlopt.coreml.foreseen import foreseen_nbytes
from mlopt.coreml.models import TargetName
from mlopt.coreml.neural_engine import reason_against
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.plans import WeightDecision
from mlopt.coreml.weights import Weight
from mlopt.errors import ConfigError, TargetError
from mlopt.mil.package import Package
from mlopt.mil.targets import Target
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.checked import shown
from mlopt.requests.keep import Keep
from mlopt.statistics.guidance import UNGUIDED, CalibrationSource, Guidance
from mlopt.text.names import shortlist

_GROUPED = tuple(
    OpPalettizerConfig(
        nbits=nbits, granularity="per_grouped_channel", group_size=16, on_indivisible="divisor"
    )
    for nbits in (2, 3, 4)
)
_PLAIN = (*(OpPalettizerConfig(nbits=nbits) for nbits in (1, 2, 3, 4, 6, 8)), *_GROUPED)
# where channels differ in size, no table suits all of them
_SCALED = tuple(
    attrs.evolve(each, enable_per_channel_scale=True)
    for each in (*(OpPalettizerConfig(nbits=nbits) for nbits in (3, 4, 6, 8)), *_GROUPED)
)
CANDIDATES: tuple[OpPalettizerConfig, ...] = (*_PLAIN, *_SCALED)
"""The forms that are considered unless others are given, as far as the target has them."""


def candidates_over(weight_threshold: int | None) -> list[OpPalettizerConfig] | None:
    """Return the usual forms for weights of more elements than a number; None for the default."""
    if weight_threshold is None:
        return None
    return [attrs.evolve(each, weight_threshold=weight_threshold) for each in CANDIDATES]


@attrs.frozen(eq=False)
class Form:
    """A form that a weight can have.

    config: what it asks for, None for the weight as it is; decision: as ``palettize`` makes it;
    guidance: how a calibration guides it; nbytes: see :class:`mlopt.planning.recipe.Tried`.
    """

    config: OpPalettizerConfig | None
    decision: WeightDecision
    guidance: Guidance[BiasPlace]
    nbytes: int


@attrs.frozen(eq=False)
class WeightForms:
    """A weight, and the forms that it can have, by bytes; reason: why it can have only one."""

    weight: Weight
    forms: tuple[Form, ...]
    reason: str = ""


@attrs.frozen(eq=False)
class Candidates:
    """The weights of a package in program order with their forms, and notes for the recipe.

    unmatched: why rules that pin forms match no weight, by their keys.
    """

    weights: tuple[WeightForms, ...]
    notes: tuple[str, ...]
    unmatched: Mapping[str, str] = attrs.Factory(dict)


def candidates_of(
    package: Package,
    configs: Sequence[OpPalettizerConfig] | None,
    *,
    target: TargetName | None,
    pinned: Mapping[str, OpPalettizerConfig | None],
    calibration: CalibrationSource | None,
    method: Method,
    devices: Collection[Device],
    joint_compression: bool,
) -> Candidates:
    """Return the forms of every weight.

    Parameters
    ----------
    configs
        The candidates; those that the target lacks are left out. None: ``CANDIDATES``. Each weight
        may also stay as it is.
    target
        The newest target that the result may need.
    joint_compression
        Whether weights that are sparse or quantized may be palettized as well.
    devices
        What runs on all of these, as far as it is known.
    pinned
        Rules by name or glob that leave nothing to choose; see :func:`check_pinned`.

    Raises
    ------
    ConfigError
        Two weights have the same name, or there is no candidate.
    TargetError
        The target has none of them.
    """
    _check_types(configs, pinned)
    found: dict[int, list[tuple[WeightDecision, Guidance[BiasPlace]]]] = {}
    notes: dict[str, None] = {}
    unmatched: dict[str, str] = {}
    reached: list[Target] = []
    refused: TargetError | None = None
    for config in CANDIDATES if configs is None else configs:
        rules = OptimizationConfig(global_config=config, op_name_configs=dict(pinned))
        try:
            plan = decide(
                package,
                rules,
                minimum_deployment_target=target,
                joint_compression=joint_compression,
            )
        except TargetError as error:
            refused = error
            continue
        reached.append(plan.target_after)
        guides = guides_of(plan.decisions, calibration, method=method)
        notes |= dict.fromkeys(guides.notes)
        rules_of_names = [each for each in plan.unmatched_rules if each.kind == "op_name_configs"]
        unmatched = {each.key: str(each) for each in rules_of_names}
        for number, decision in enumerate(plan.decisions):
            guided = decision, guides.of(decision.weight)
            found.setdefault(number, []).append(guided)
    if not reached:
        raise refused or ConfigError("candidates is empty; leave it out for the usual ones")
    weights = tuple(_weight_forms(each, max(reached), devices) for each in found.values())
    _check_names(weights)
    return Candidates(weights, tuple(notes), unmatched)


def check_pinned(found: Sequence[Candidates]) -> None:
    """Refuse rules that pin forms and match no weight of any of the packages.

    Raises
    ------
    ConfigError
        There are some.
    """
    first, *others = [each.unmatched for each in found]
    lines = [f"- {why}" for key, why in first.items() if all(key in each for each in others)]
    if lines:
        raise ConfigError("pinned forms of no weight:\n" + "\n".join(lines))


def _weight_forms(
    found: Sequence[tuple[WeightDecision, Guidance[BiasPlace]]],
    target: Target,
    devices: Collection[Device],
) -> WeightForms:
    """Return the forms that decisions about a weight lead to, and the weight as it is."""
    decision, guidance = found[0]
    if decision.rule.startswith("op_name_configs"):
        form = _form(decision, guidance, target)
        return WeightForms(decision.weight, (form,), f"pinned by {decision.rule}")
    forms: list[Form] = []
    reason = ""
    for decision, guidance in found:
        spec = decision.result
        if isinstance(spec, Keep):
            reason = reason or spec.reason
            continue
        against = reason_against(decision.weight, spec) if "neural-engine" in devices else None
        reason = reason or against or ""
        same = (spec, guidance.method)
        if against is None and all(
            same != (form.decision.result, form.guidance.method) for form in forms
        ):
            forms.append(_form(decision, guidance, target))
    plain = _plain(decision, target)
    if not forms:
        return WeightForms(decision.weight, (plain,), reason)
    smaller = [form for form in forms if form.nbytes < plain.nbytes]
    every = sorted((*smaller, plain), key=lambda form: form.nbytes)
    return WeightForms(decision.weight, tuple(every))


def _form(decision: WeightDecision, guidance: Guidance[BiasPlace], target: Target) -> Form:
    spec = decision.result
    if not isinstance(spec, PaletteSpec):
        return _plain(decision, target)
    nbytes = foreseen_nbytes(decision.weight, spec, target=target, guidance=guidance)
    return Form(decision.config, decision, guidance, nbytes)


def _plain(decision: WeightDecision, target: Target) -> Form:
    nbytes = foreseen_nbytes(decision.weight, None, target=target)
    return Form(None, decision, UNGUIDED, nbytes)


def _check_types(configs: Any, pinned: Any) -> None:
    if configs is not None:
        is_list = isinstance(configs, Sequence) and not isinstance(configs, str)
        wrong = [c for c in configs if not isinstance(c, OpPalettizerConfig)] if is_list else []
        if not is_list or wrong:
            raise ConfigError(
                f"candidates must be a list of OpPalettizerConfig, got {shown(configs)}"
                + (f", in it {shown(wrong[0])}" if wrong else "; put it in a list")
            )
    if not isinstance(pinned, Mapping):
        raise ConfigError(
            f"pinned must be a dictionary of forms, or None, by name, got {shown(pinned)}; "
            "dict.fromkeys(names) leaves weights alone"
        )


def _check_names(weights: Sequence[WeightForms]) -> None:
    counts = Counter(each.weight.name for each in weights)
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        raise ConfigError(
            f"a recipe tells weights apart by name, and several weights are named "
            f"{shortlist(shared)}, as in two functions of a model; save the models or functions "
            "that they are in as packages of their own, and plan these"
        )


def without_choice(weight: WeightForms, reason: str) -> WeightForms:
    """Return a weight that stays as it is; ConfigError if it is pinned to a form."""
    plain = next((form for form in weight.forms if form.config is None), None)
    if plain is None:
        raise ConfigError(f"{weight.weight.name} is pinned to a form, and {reason}")
    return WeightForms(weight.weight, (plain,), reason)
