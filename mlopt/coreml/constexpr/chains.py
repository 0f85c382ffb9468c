"""Chains of constexpr operations: which make up one weight, and in what order."""

from __future__ import annotations

from collections.abc import Iterator

from mlopt.coreml.constexpr.parameters import is_constexpr, refusal
from mlopt.mil.program import Node, Variable

_LONGEST = 64
"""Operations that make one weight, at most. Three or four do in any model that was compressed;
the limit keeps a damaged one from costing the square of its length."""


def chain_of(node: Node) -> list[Node]:
    """The constexpr operations that ``node`` reads from, itself last, each after those it reads.

    Raises
    ------
    ModelFormatError
        There are more of them than any weight takes.
    """
    ordered: list[Node] = []
    seen = {id(node)}
    # Without recursion: what a file holds must not exhaust the stack.
    pending = [(node, producers(node))]
    while pending:
        at, sources = pending[-1]
        source = next((s for s in sources if id(s) not in seen), None)
        if source is None:
            ordered.append(at)
            pending.pop()
            continue
        seen.add(id(source))
        if len(seen) > _LONGEST:
            raise refusal(node, f"more than {_LONGEST} constexpr operations make up its value")
        pending.append((source, producers(source)))
    return ordered


def producers(node: Node) -> Iterator[Node]:
    """The constexpr operations whose outputs ``node`` reads, once for each use."""
    for bindings in node.inputs.values():
        for bound in bindings:
            if isinstance(bound, Variable) and bound.node is not None and is_constexpr(bound.node):
                yield bound.node
