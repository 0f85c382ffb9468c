"""The opsets that functions have once something in them is compressed.

Core ML reads a function by the opset that it names, and coremltools all functions of a model by its
specification version. Where the version is the newer one, a form that is written by the opset would
be one that coremltools does not know, so functions are raised to the version's opset, as
coremltools does; the systems that can load the model are the same ones.
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
    """The targets whose opsets functions have when something in them is palettized.

    That of the model's version, or their own where their operations cannot be raised to it.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, Target], Target] = {}

    def of(self, program: Program, name: str, version: Target) -> Target:
        """The target of a function in a model whose version is, or becomes, that of `version`."""
        key = id(program), name, version
        if key not in self._known:
            own = opset_target(program.message.functions[name].opset)
            rises = own < version and _can_rise(program, name, version)
            self._known[key] = version if rises else own
        return self._known[key]

    def oldest(self, weight: Weight) -> Target:
        """The oldest target of the functions that have a weight, as the version is now."""
        version = Target.of_specification(weight.program.specification_version)
        targets = (self.of(weight.program, name, version) for name in weight.functions)
        return min(targets, default=version)

    def below(self, program: Program, names: Iterable[str], version: Target) -> set[str]:
        """Those of the functions that are to be raised, as they can be."""
        functions = program.message.functions
        return {
            name
            for name in names
            if opset_target(functions[name].opset) < self.of(program, name, version)
        }


def with_compression(program: Program) -> set[str]:
    """The functions that have compressed weights."""
    return {n.function for n in program.nodes() if is_constexpr(n)}


def raised_note(program: Program, names: Iterable[str], target: Target) -> str:
    """What to say of functions that are raised only because of the model's version."""
    functions = program.message.functions
    shown = ", ".join(f"{name!r} of {functions[name].opset}" for name in sorted(names))
    of = f" of {program.label!r}" if program.label else ""
    return (
        f"The model is, or becomes, one of specification version {target.specification_version}, "
        f"by which coremltools reads every function; raised to {target.opset} therefore, the opset "
        f"of that version: {shown}{of}."
    )


def _can_rise(program: Program, name: str, target: Target) -> bool:
    try:
        plan_opset_raise(program, target, {name})
    except TargetError:
        return False
    return True
