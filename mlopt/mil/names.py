"""Names for new values in a function."""

from __future__ import annotations

from mlopt.mil.program import Function, Node


class UniqueNames:
    """Gives names that a function does not use yet; ``nodes`` are those of the whole program."""

    def __init__(self, nodes: list[Node], function: Function) -> None:
        self._used = {item.name for item in function.message.inputs}
        # The number to try next, so that many equal names do not take the square of their count.
        self._next: dict[str, int] = {}
        for node in nodes:
            if node.function == function.name:
                self._used.add(node.name)
                self._used.update(output.name for output in node.op.outputs)
                for block in node.op.blocks:
                    self._used.update(item.name for item in block.inputs)
                for argument in node.op.inputs.values():
                    self._used.update(b.name for b in argument.arguments if b.name)

    def __call__(self, wanted: str) -> str:
        """Return ``wanted``, or ``wanted`` with a number behind it."""
        name, number = wanted, self._next.get(wanted, 1)
        while name in self._used:
            name = f"{wanted}_{number}"
            number += 1
        self._next[wanted] = number
        self._used.add(name)
        return name
