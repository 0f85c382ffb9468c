"""Raising a program to a newer opset, in place: all operations of a function share one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import attrs

from mlopt.errors import TargetError
from mlopt.mil.edits import Edits
from mlopt.mil.names import UniqueNames
from mlopt.mil.program import Function, Node, Program
from mlopt.mil.raising.change import Change, Unraisable
from mlopt.mil.raising.rules import RULES
from mlopt.mil.raising.storage import Storage
from mlopt.mil.targets import Target
from mlopt.mil.value_store import ValueStore

_OPSETS = list(RULES)


@attrs.frozen(eq=False)
class OpsetRaise:
    """A checked plan for raising functions of a program to ``target``.

    Attributes
    ----------
    program
        The program; ``plan_opset_raise`` has changed nothing in it yet.
    target
        The target to raise it to.
    functions
        The functions that are raised; the others have that opset or a newer one, or were not named.
    changes
        The operations that change, in program order; those that need no edit have no entry.
    names
        For each raised function, a source of names that neither it nor the plan uses yet.
    """

    program: Program
    target: Target
    functions: tuple[Function, ...]
    changes: tuple[Change, ...]
    names: Mapping[str, UniqueNames]

    def apply(self, writer: ValueStore) -> None:
        """Raise the program at once; see ``add_to``."""
        edits = Edits()
        self.add_to(edits, writer)
        edits.apply()

    def add_to(self, edits: Edits, writer: ValueStore) -> None:
        """Add the raise to ``edits``: operations, opsets of functions, specification versions.

        Other replacements in ``edits``, added before or after, take precedence over the raise: they
        must belong to the target's opset, and take new names from ``names``. The program stays as
        it is until ``edits`` are applied, and its values can be read. Function bodies become new
        messages then: ask the program for its nodes and constants again.

        Values whose stored form changes are stored by ``writer``, the writer of the program's
        package, at once.
        """
        storage = Storage(writer, self.target.specification_version)
        for change in self.changes:
            node = change.node
            edits.replace(node.block, node.op, change.operations(storage), unless_replaced=True)
        edits.add_last_step(self._enter_opset)

    def _enter_opset(self) -> None:
        """Set the new opset and the version that has it."""
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
    """Plan how to raise a program; nothing is changed.

    Functions at the target's opset or above it stay as they are, and so do, if ``functions`` is
    given, those that it does not name.

    Raises
    ------
    TargetError
        Some operations cannot be raised; all of them are listed, each with its reason.
    ModelFormatError
        A compressed weight contradicts itself.
    """
    below = [
        function
        for function in _functions_below(program, target)
        if functions is None or function.name in functions
    ]
    nodes = program.nodes() if below else []
    names = {function.name: UniqueNames(nodes, function) for function in below}
    changes, refusals = _changes(nodes, below, names, target)
    bodies = [
        f"function {function.name!r} already has a body for {target.opset}"
        for function in below
        if target.opset in function.message.block_specializations
    ]
    if bodies or refusals:
        model = f"the model {program.label!r}" if program.label else "the model"
        reasons = "".join(f"- {reason}\n" for reason in [*bodies, *refusals])
        raise TargetError(
            f"{model}, of specification version {program.specification_version}, cannot be "
            f"raised to {target}:\n{reasons}"
            f"Convert the source model with minimum_deployment_target={target}, or choose options "
            "that its present target allows."
        )
    return OpsetRaise(program, target, tuple(below), tuple(changes), names)


def _changes(
    nodes: Iterable[Node],
    functions: Iterable[Function],
    names: Mapping[str, UniqueNames],
    target: Target,
) -> tuple[list[Change], list[str]]:
    """Apply the rules of every opset on the way; return the changes, and refusals with reasons."""
    changes, refusals = [], []
    last = _OPSETS.index(target.opset)
    steps = {f.name: _OPSETS[_OPSETS.index(f.opset) + 1 : last + 1] for f in functions}
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
                    f"{node.op_type} {node.name!r} in function {node.function!r}: from {opset} on "
                    f"{reason}"
                )
        if change:
            changes.append(change)
    return changes, refusals


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
