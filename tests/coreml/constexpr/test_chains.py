"""What chains store, and which of them give equal weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.coreml.constexpr.chains import chain_of, content_of_output, stored_constants
from mlopt.mil.program import Node
from tests import foreign
from tests.coreml.constexpr.test_evaluation import nodes_of
from tests.foreign import constant, constexpr, value

SHAPE = (16, 8)


def blockwise(name: str, *, seed: int = 0, factor: float = 0.5, **parameters: Any) -> Any:
    codes = np.random.default_rng(seed).integers(-8, 8, SHAPE).astype(np.int8)
    bound = {"data": value(codes, "int8"), "scale": value(np.full((1, 1), factor), "fp16")}
    return constexpr("blockwise_shift_scale", {name: ("fp16", SHAPE)}, **(bound | parameters))


def affine(name: str, *, axis: int) -> Any:
    return constexpr(
        "affine_dequantize",
        {name: ("fp16", SHAPE)},
        old=True,
        quantized_data=value(np.ones(SHAPE, np.uint8), "uint8"),
        zero_point=value(np.uint8(3), "uint8"),
        scale=value(np.float16(0.5), "fp16"),
        axis=value(np.int32(axis), "int32"),
    )


def content(node: Node) -> object:
    (output,) = node.outputs
    return content_of_output(output, chain_of(node))


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        (blockwise("a"), blockwise("b"), True),
        (blockwise("a"), blockwise("b", seed=1), False),
        (blockwise("a"), blockwise("b", factor=0.25), False),
    ],
)
def test_names_are_no_content(first: Any, second: Any, equal: bool, tmp_path: Path) -> None:
    nodes = nodes_of(foreign.handmade(tmp_path / "a.mlpackage", "iOS18", [first, second], "ab"))
    assert (content(nodes["a"]) == content(nodes["b"])) == equal


def test_parameters_that_store_nothing_are_content(tmp_path: Path) -> None:
    ops = [affine("a", axis=0), affine("b", axis=1)]
    nodes = nodes_of(foreign.handmade(tmp_path / "a.mlpackage", "iOS16", ops, "ab"))
    assert content(nodes["a"]) != content(nodes["b"])
    stored = stored_constants(chain_of(nodes["a"]))
    assert {each.parameter for each in stored} == {"quantized_data", "scale", "zero_point"}


def test_a_constant_that_is_read_by_name_is_the_same_content(tmp_path: Path) -> None:
    scale = value(np.full((1, 1), 0.5), "fp16")
    ops = [constant("scale", scale), blockwise("a"), blockwise("b", scale="scale")]
    nodes = nodes_of(foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, "ab"))
    assert content(nodes["a"]) == content(nodes["b"])


def test_chains_are_compared_to_their_beginning(tmp_path: Path) -> None:
    """Two scales after a first operation, which is equal, or another one."""
    ops = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ops += [
            blockwise(f"{name}_inner", seed=seed),
            blockwise(name, data=f"{name}_inner"),
        ]
    nodes = nodes_of(foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, "abc"))
    assert [node.name for node in chain_of(nodes["a"])] == ["a_inner", "a"]
    assert content(nodes["a"]) == content(nodes["b"]) != content(nodes["c"])
    assert len(stored_constants(chain_of(nodes["a"]))) == 3
