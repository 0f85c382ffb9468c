"""Opsets of functions that hold compressed weights.

Core ML reads a function by the opset that it names; coremltools reads all functions of a model by
its specification version. Where the version is newer than the opset, coremltools would not know a
form that is written for the opset. Therefore functions are raised to the version's opset, as in
coremltools. The same systems can load the model before and after.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlopt.coreml.constexpr.parameters import is_constexpr
from mlopt.coreml.weights import Weight
from mlopt.errors import TargetError
from mlopt.mil.program import Program
from mlopt.mil.raising.upgrade import plan_opset_raise
from mlopt.mil.targets import Target, opset_target


class FunctionTargets:
    """Targets whose opsets functions have once something in them is palettized.

    This is the target of the model's version, or the function's own where it cannot be raised.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, Target], Target] = {}

    def of(self, program: Program, name: str, version: Target) -> Target:
        """Return the target of a function in a model whose version is, or becomes, `version`'s."""
        key = id(program), name, version
        if key not in self._known:
            own = opset_target(program.message.functions[name].opset)
            rises = own < version and _can_rise(program, name, version)
            self._known[key] = version if rises else own
        return self._known[key]

    def oldest(self, weight: Weight) -> Target:
        """Return the oldest target of the functions that use a weight, at the present version."""
        version = Target.of_specification(weight.program.specification_version)
        targets = (self.of(weight.program, name, version) for name in weight.functions)
        return min(targets, default=version)

    def below(self, program: Program, names: Iterable[str], version: Target) -> set[str]:
        """Return the functions that can be raised and are below the version's target."""
        functions = program.message.functions
        return {
            name
            for name in names
            if opset_target(functions[name].opset) < self.of(program, name, version)
        }


def with_compression(program: Program) -> set[str]:
    """Return the functions that hold compressed weights."""
    return {n.function for n in program.nodes() if is_constexpr(n)}


def raised_note(program: Program, names: Iterable[str], target: Target) -> str:
    """Return a note on functions that are raised only because of the model's version."""
    functions = program.message.functions
    shown = ", ".join(f"{name!r} of {functions[name].opset}" for name in sorted(names))
    of = f" of {program.label!r}" if program.label else ""
    return (
        f"The model has, or gets, specification version {target.specification_version}, by which "
        f"coremltools reads every function. Therefore raised to {target.opset}, the opset of that "
        f"version: {shown}{of}."
    )


def _can_rise(program: Program, name: str, target: Target) -> bool:
    try:
        plan_opset_raise(program, target, {name})
    except TargetError:
        return False
    return True
