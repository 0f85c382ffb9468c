"""What is to be done with each weight of a package, before anything is clustered.

Every weight is either kept, with a reason, or has a spec for its palette and a deployment target
that can express it. What no target in reach can express is collected and refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.elementwise import ElementwiseReaders
from mlopt.coreml.guards import reason_to_keep
from mlopt.coreml.models import TargetName
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.opsets import FunctionTargets
from mlopt.coreml.plans import Plan, WeightDecision, check_targets, plan_for
from mlopt.coreml.rules import OperationKey, resolve, unmatched_rules
from mlopt.coreml.specs import choose_spec
from mlopt.coreml.weights import Weight, is_part, weights_of
from mlopt.errors import ConfigError
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Node
from mlopt.mil.targets import Target
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.decisions import Decision
from mlopt.requests.keep import Keep
from mlopt.requests.rules import Resolution, UnmatchedRule


def decide(
    package: Package,
    config: OptimizationConfig,
    *,
    minimum_deployment_target: TargetName | None = None,
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
    weights, nodes_of_programs = weights_of(package)
    unmatched = _unmatched(package, config, weights, nodes_of_programs)
    if strict and unmatched:
        raise ConfigError(
            "rules of the configuration apply to no weight (strict):\n"
            + "\n".join(f"- {rule}" for rule in unmatched)
        )
    minimum = None
    if minimum_deployment_target is not None:
        minimum = Target.parse(minimum_deployment_target)
    targets = FunctionTargets()
    readers = {
        id(program): ElementwiseReaders(nodes)
        for program, nodes in zip(package.programs, nodes_of_programs, strict=True)
    }
    problems: list[str] = []
    decisions: list[WeightDecision] = []
    for weight in weights:
        try:
            decisions.append(
                _decide(
                    weight,
                    resolve(config, weight.name, _operation_keys(weight), aliases=weight.names[1:]),
                    targets,
                    joint_compression=joint_compression,
                    is_elementwise=readers[id(weight.program)].are_all(weight.consumers),
                )
            )
        except ConfigError as error:
            problems.append(f"{weight.name}: {error}")
    if problems:
        raise ConfigError(
            "the configuration does not fit some weights:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    check_targets(decisions, minimum)
    return plan_for(
        package, decisions, unmatched, joint_compression=joint_compression, targets=targets
    )


def _unmatched(
    package: Package,
    config: OptimizationConfig,
    weights: Sequence[Weight],
    nodes_of_programs: Sequence[list[Node]],
) -> tuple[UnmatchedRule, ...]:
    """The rules that apply to no weight of a package."""
    compressed = [
        (name, _operation_keys(weight))
        for weight in weights
        if weight.is_compressed
        for name in weight.names
    ]
    # all constants, so that a rule for a small one counts as matched; but no rule reaches the parts
    # of a compressed weight
    plain = [
        (constant.name, _operation_keys(constant))
        for program, nodes in zip(package.programs, nodes_of_programs, strict=True)
        for constant in program.constants(nodes)
        if not is_part(constant)
    ]
    every_node = [node for nodes in nodes_of_programs for node in nodes]
    return unmatched_rules(
        config,
        [*compressed, *plain],
        op_names=[node.name for node in every_node],
        op_types=[node.op_type for node in every_node],
    )


def _operation_keys(weight: Weight | Constant) -> list[OperationKey]:
    return [(user.op_name, user.op_type) for user in weight.consumers]


def _decide(
    weight: Weight,
    resolution: Resolution[OpPalettizerConfig],
    targets: FunctionTargets,
    *,
    joint_compression: bool,
    is_elementwise: bool,
) -> WeightDecision:
    config, notes = resolution.config, resolution.notes
    result: PaletteSpec | Keep | None
    result = reason_to_keep(weight, resolution, joint_compression=joint_compression)
    if result is None:
        assert config is not None
        chosen = choose_spec(weight, config, targets)
        if isinstance(chosen, Keep):
            result = chosen
        else:
            result, config, notes = chosen.spec, chosen.config, notes + chosen.notes
    return Decision(weight, result, resolution.rule, notes, config, is_elementwise)
