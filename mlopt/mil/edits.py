"""Replacing operations of a program: collected first, then made once for each block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class Edits:
    """Replacements of operations, made together by ``apply``.

    Blocks may hold thousands of operations, and finding one of them takes a pass over its block. So
    edits are collected while a program is read, and each block is gone through once. Operations
    that are not replaced stay the messages that they were: references to them remain valid.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[Any, dict[int, tuple[Any, Sequence[Any]]]]] = {}

    def replace(self, block: Any, op: Any, new_ops: Iterable[Any]) -> None:
        """Let ``new_ops`` stand where ``op`` stands in ``block``; none of them removes it.

        ``op`` is an element of ``block.operations``. The last of ``new_ops`` takes over its
        message; it may be ``op`` itself, which then stays as it is behind the others.

        Raises
        ------
        ValueError
            The operation has a replacement already.
        """
        _, replacements = self._blocks.setdefault(id(block), (block, {}))
        if id(op) in replacements:
            raise ValueError(f"the {op.type} operation has a replacement already")
        replacements[id(op)] = (op, tuple(new_ops))

    def insert_before(self, block: Any, op: Any, new_ops: Iterable[Any]) -> None:
        """Let ``new_ops`` stand before ``op`` in ``block``."""
        self.replace(block, op, [*new_ops, op])

    def apply(self) -> None:
        """Make all replacements, and forget them.

        Raises
        ------
        ValueError
            An operation is not in the block that was named for it; no block has been changed then.
        """
        places = []
        for block, replacements in self._blocks.values():
            # Elements of a repeated field are one Python object each as long as someone holds them.
            found = [
                (index, *replacements[id(op)])
                for index, op in enumerate(block.operations)
                if id(op) in replacements
            ]
            if len(found) != len(replacements):
                raise ValueError("an operation to replace is not in the block that was named")
            places.append((block, found))
        for block, found in places:
            for index, op, new_ops in reversed(found):
                if not new_ops:
                    del block.operations[index]
                    continue
                if new_ops[-1] is not op:
                    op.CopyFrom(new_ops[-1])
                for new in reversed(new_ops[:-1]):
                    block.operations.insert(index, new)
        self._blocks = {}


def replace_operation(block: Any, op: Any, new_ops: Iterable[Any]) -> None:
    """Let ``new_ops`` stand where ``op`` stands in ``block``, at once. See ``Edits`` for many."""
    edits = Edits()
    edits.replace(block, op, new_ops)
    edits.apply()
