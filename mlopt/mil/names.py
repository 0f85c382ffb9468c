"""Names for new values in a function."""

from __future__ import annotations

from mlopt.mil.program import Function, Node


class UniqueNames:
    """Generator of names that a function does not use yet; ``nodes`` are the whole program's."""

    def __init__(self, nodes: list[Node], function: Function) -> None:
        self._used = {item.name for item in function.message.inputs}
        # The number to try next, so that n equal names do not take n**2 steps.
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
        """Return ``wanted``, or ``wanted`` with a number appended."""
        name, number = wanted, self._next.get(wanted, 1)
        while name in self._used:
            name = f"{wanted}_{number}"
            number += 1
        self._next[wanted] = number
        self._used.add(name)
        return name
