"""Raising a program to a newer opset, in place: all operations of a function share one."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from mlopt.errors import TargetError
from mlopt.mil.edits import Edits
from mlopt.mil.names import UniqueNames
from mlopt.mil.program import Function, Program
from mlopt.mil.raising.change import Change, Unraisable
from mlopt.mil.raising.rules import RULES
from mlopt.mil.raising.storage import Storage
from mlopt.mil.targets import Target
from mlopt.mil.writer import PackageWriter

_OPSETS = list(RULES)


@attrs.frozen(eq=False)
class OpsetRaise:
    """A checked plan for raising functions of a program to ``target``.

    Attributes
    ----------
    program
        The program; ``plan_opset_raise`` has changed nothing in it yet.
    target
        The target that it will have.
    functions
        Those that are raised; the others have that opset, or a newer one, or are to stay.
    changes
        What happens to operations; those that only belong to a newer opset afterwards have no
        entry.
    """

    program: Program
    target: Target
    functions: tuple[Function, ...]
    changes: tuple[Change, ...]

    def apply(self, writer: PackageWriter) -> None:
        """Change the program: operations, opsets of functions, specification versions.

        Values whose stored form changes go to ``writer``, the writer of the program's package.
        Function bodies become new messages: ask the program for its nodes and constants again.
        """
        edits = Edits()
        storage = Storage(writer, self.target.specification_version)
        for change in self.changes:
            edits.replace(change.node.block, change.node.op, change.apply(storage))
        edits.apply()
        for function in self.functions:
            bodies = function.message.block_specializations
            bodies[self.target.opset].CopyFrom(bodies[function.opset])
            del bodies[function.opset]
            function.message.opset = self.target.opset
        for model in (self.program.model, *self.program.enclosing):
            version = max(model.specificationVersion, self.target.specification_version)
            model.specificationVersion = version


def plan_opset_raise(
    program: Program, target: Target, functions: Collection[str] | None = None
) -> OpsetRaise:
    """Find out what raising a program takes; nothing is changed.

    Functions at the target's opset or above it stay as they are, and, where ``functions`` is given,
    those that it does not name.

    Raises
    ------
    TargetError
        Some operations cannot be raised; all of them are listed, each with its reason.
    ModelFormatError
        A compressed weight contradicts itself.
    """
    refusals: list[str] = []
    changes: list[Change] = []
    steps: dict[str, list[str]] = {}
    below = [
        function
        for function in _functions_below(program, target)
        if functions is None or function.name in functions
    ]
    for function in below:
        if target.opset in function.message.block_specializations:
            refusals.append(f"function {function.name!r} has a body for {target.opset} already")
        first = _OPSETS.index(function.opset) + 1
        steps[function.name] = _OPSETS[first : _OPSETS.index(target.opset) + 1]
    if steps:
        nodes = program.nodes()
        names = {
            function.name: UniqueNames(nodes, function)
            for function in program.functions
            if function.name in steps
        }
        for node in nodes:
            if node.function not in steps:
                continue
            change = Change(node, names[node.function])
            for opset in steps[node.function]:
                rule = RULES[opset].get(node.op_type)
                if rule is None:
                    continue
                try:
                    rule(change)
                except Unraisable as reason:
                    refusals.append(
                        f"{node.op_type} {node.name!r} in function {node.function!r}: from "
                        f"{opset} on {reason}"
                    )
            if change:
                changes.append(change)
    if refusals:
        model = f"the model {program.label!r}" if program.label else "the model"
        raise TargetError(
            f"{model}, of specification version {program.specification_version}, cannot be "
            f"raised to {target}:\n" + "\n".join(f"- {refusal}" for refusal in refusals) + "\n"
            f"Convert the source model with minimum_deployment_target={target}, or choose options "
            "that its present target allows."
        )
    return OpsetRaise(program, target, tuple(below), tuple(changes))


def raise_opset(
    program: Program,
    target: Target,
    writer: PackageWriter,
    functions: Collection[str] | None = None,
) -> OpsetRaise:
    """Raise a program to ``target`` at once; ``writer`` is that of its package.

    See ``plan_opset_raise`` for ``functions`` and for errors.
    """
    plan = plan_opset_raise(program, target, functions)
    plan.apply(writer)
    return plan


def _functions_below(program: Program, target: Target) -> list[Function]:
    """Return the functions whose opset is older than the target's."""
    below = []
    for function in program.functions:
        if function.opset not in _OPSETS:
            raise TargetError(
                f"function {function.name!r} has the unknown opset {function.opset!r}; known are "
                f"{', '.join(_OPSETS)}"
            )
        if _OPSETS.index(function.opset) < _OPSETS.index(target.opset):
            below.append(function)
    return below
