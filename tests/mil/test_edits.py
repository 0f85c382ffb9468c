"""Replacements of operations: their places, the messages that stay, and what is refused."""

from __future__ import annotations

import pytest

from mlopt.mil.edits import Edits
from mlopt.mil.messages import Block, Operation


def test_places_and_messages_are_kept() -> None:
    block = Block()
    for name in "abcdef":
        block.operations.add(type=name)
    held = list(block.operations)
    edits = Edits()
    edits.replace(block, held[1], [Operation(type="b1"), Operation(type="b2")])
    edits.replace(block, held[2], [])
    edits.replace(block, held[4], [Operation(type="new"), held[4]])
    edits.apply()
    assert [op.type for op in block.operations] == ["a", "b1", "b2", "d", "new", "e", "f"]
    assert block.operations[3] is held[3]
    assert block.operations[5] is held[4]
    held[5].type = "last"
    assert block.operations[6].type == "last"
    edits.apply()  # which has forgotten what it did
    assert len(block.operations) == 7


@pytest.mark.parametrize("first", ["the weak one", "the other"])
def test_weak_replacements_give_way(first: str) -> None:
    block = Block()
    ops = [block.operations.add(type=name) for name in "ab"]
    edits = Edits()
    for _ in range(2):
        if first == "the weak one":
            for op in ops:
                edits.replace(block, op, [Operation(type="weak")], unless_replaced=True)
        else:
            edits.replace(block, ops[0], [Operation(type="strong")])
        first = "the other" if first == "the weak one" else "the weak one"
    edits.apply()
    assert [op.type for op in block.operations] == ["strong", "weak"]


def test_last_steps_come_after_all_replacements() -> None:
    block = Block()
    op = block.operations.add(type="a")
    edits = Edits()
    seen: list[str] = []
    edits.add_last_step(lambda: seen.append(block.operations[0].type))
    edits.replace(block, op, [Operation(type="b")])
    edits.apply()
    edits.apply()
    assert seen == ["b"]


def test_bindings_come_between_replacements_and_last_steps() -> None:
    block = Block()
    op, other = block.operations.add(type="a"), block.operations.add(type="c")
    other.inputs["x"].arguments.add().name = "old"
    edits = Edits()
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([a.name for o in block.operations for a in o.inputs["x"].arguments])

    edits.add_last_step(look)
    edits.bind(op, "x", "new")
    edits.bind(other, "x", "newer")
    edits.replace(block, op, [Operation(type="b")])
    edits.apply()
    edits.apply()
    assert seen == [["new", "newer"]]


@pytest.mark.parametrize("weak", [False, True])
def test_two_replacements_are_refused(weak: bool) -> None:
    block = Block()
    op = block.operations.add(type="a")
    edits = Edits()
    edits.replace(block, op, [], unless_replaced=weak)
    with pytest.raises(ValueError, match="already"):
        edits.replace(block, op, [], unless_replaced=weak)


def test_another_block_is_refused() -> None:
    block, other = Block(), Block()
    op = block.operations.add(type="a")
    edits = Edits()
    edits.replace(block, op, [Operation(type="b")])
    edits.replace(other, op, [])
    edits.add_last_step(lambda: pytest.fail("taken"))
    with pytest.raises(ValueError, match="not in its given block"):
        edits.apply()
    assert op.type == "a"
