"""Replacements of operations in a program: collected first, then made once per block."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from mlopt.mil.messages import Block, Operation


@attrs.frozen(eq=False)
class _Replacement:
    op: Operation
    new_ops: tuple[Operation, ...]
    unless_replaced: bool


class Edits:
    """Replacements of operations, made together by ``apply``.

    Blocks may hold thousands of operations, and finding one of them takes a pass over its block. So
    edits are collected while a program is read, and each block is traversed once. Until then the
    program is unchanged. Operations that are not replaced keep their messages: references to them
    remain valid.
    """

    def __init__(self) -> None:
        # By identity: blocks with their replacements, and these by operation.
        self._blocks: dict[int, tuple[Block, dict[int, _Replacement]]] = {}
        self._bindings: list[tuple[Operation, str, str]] = []
        self._last_steps: list[Callable[[], None]] = []

    def replace(
        self,
        block: Block,
        op: Operation,
        new_ops: Iterable[Operation],
        *,
        unless_replaced: bool = False,
    ) -> None:
        """Replace an operation.

        Parameters
        ----------
        block, op
            ``op`` is an element of ``block.operations``.
        new_ops
            What replaces it; an empty iterable removes it. The last of them takes over the message
            of ``op``; it may be ``op`` itself, which then stays as it is, after the others.
        unless_replaced
            Yield to a replacement without this flag, whether that comes before or after.

        Raises
        ------
        ValueError
            The operation has a replacement already, with the same ``unless_replaced``.
        """
        _, replacements = self._blocks.setdefault(id(block), (block, {}))
        earlier = replacements.get(id(op))
        if earlier is not None:
            if earlier.unless_replaced == unless_replaced:
                raise ValueError(f"the {op.type} operation has a replacement already")
            if unless_replaced:
                return
        replacements[id(op)] = _Replacement(op, tuple(new_ops), unless_replaced)

    def bind(self, op: Operation, parameter: str, name: str) -> None:
        """Bind a parameter of an operation to a variable, once all replacements are made.

        It may have been bound to another, or to none. The operation may be replaced; its message
        is then that of the last of those which replace it.
        """
        self._bindings.append((op, parameter, name))

    def add_last_step(self, step: Callable[[], None]) -> None:
        """Let ``apply`` call ``step`` after all replacements, such as a renaming of their block."""
        self._last_steps.append(step)

    def apply(self) -> None:
        """Make all replacements, then bind, then take the last steps in order; and forget them.

        Raises
        ------
        ValueError
            An operation is not in the block that was given for it; then nothing has been changed.
        """
        edits = []
        for block, replacements in self._blocks.values():
            # Elements of a repeated field are one Python object each as long as someone holds them.
            in_block = [
                (index, replacements[id(op)])
                for index, op in enumerate(block.operations)
                if id(op) in replacements
            ]
            if len(in_block) != len(replacements):
                raise ValueError("an operation to replace is not in its given block")
            edits.append((block, in_block))
        for block, in_block in edits:
            for index, replacement in reversed(in_block):
                if not replacement.new_ops:
                    del block.operations[index]
                    continue
                *before, last = replacement.new_ops
                if last is not replacement.op:
                    replacement.op.CopyFrom(last)
                for new in reversed(before):
                    block.operations.insert(index, new)
        for op, parameter, name in self._bindings:
            del op.inputs[parameter].arguments[:]
            op.inputs[parameter].arguments.add().name = name
        for step in self._last_steps:
            step()
        self._blocks, self._bindings, self._last_steps = {}, [], []
