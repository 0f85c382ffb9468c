"""What a program's view shows, on programs built by hand and on converted ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.errors import ModelFormatError
from mlopt.mil.edits import Edits
from mlopt.mil.messages import Operation
from mlopt.mil.opening import open_package
from mlopt.mil.program import Constant, Node
from mlopt.mil.values import immediate_value, string_value
from tests.conftest import PackageOf

WEIGHT = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def nested(build: Callable[..., Any], mb: Any) -> Any:
    """A weight used outside and inside of blocks, and one returned by a block."""

    def body(x: Any) -> Any:
        outer = mb.const(val=WEIGHT, name="outer")
        y = mb.matmul(x=x, y=outer, transpose_y=True, name="first")

        def yes() -> Any:
            inner = mb.const(val=WEIGHT * 3, name="inner")
            return mb.add(x=mb.matmul(x=y, y=outer, name="second"), y=mb.matmul(x=y, y=inner))

        def no() -> Any:
            return mb.const(val=np.concatenate([WEIGHT] * 2)[:2], name="answer")

        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        z = mb.cond(pred=mb.greater(x=total, y=np.float32(0)), _true_fn=yes, _false_fn=no)
        _, z = mb.while_loop(
            _cond=lambda i, a: mb.less(x=i, y=np.float32(3)),
            _body=lambda i, a: (
                mb.add(x=i, y=np.float32(1)),
                mb.mul(x=a, y=mb.const(val=WEIGHT[:1], name="scale")),
            ),
            loop_vars=(np.float32(0), z),
        )
        return z

    return build(body, (2, 32))


def by_name(constants: list[Constant]) -> dict[str, Constant]:
    return {constant.name: constant for constant in constants}


def test_nested_blocks(nested: Any) -> None:
    (program,) = open_package(nested).programs
    constants = by_name(program.constants())
    outer = constants["outer"]
    assert [(c.op_type, c.op_name, c.parameter) for c in outer.consumers] == [
        ("matmul", "first", "y"),
        ("matmul", "second", "y"),
    ]
    first, second = outer.consumers
    assert (first.node.depth, second.node.depth) == (0, 1)
    assert first.node.scalar("transpose_y") is True
    assert second.node.scalar("transpose_y", "absent") is False
    assert not outer.is_block_output
    assert constants["answer"].is_block_output
    assert not constants["answer"].consumers
    assert constants["inner"].node.depth == 1
    assert constants["scale"].consumers[0].op_type == "mul"
    np.testing.assert_array_equal(constants["inner"].value(), WEIGHT * 3)
    assert {c.function for c in constants.values()} == {"main"}
    assert any(c.block is not outer.block for c in constants.values())


def test_constant(nested: Any) -> None:
    (program,) = open_package(nested).programs
    constant = by_name(program.constants())["outer"]
    assert (constant.dtype, constant.shape, constant.size) == ("fp32", (16, 32), 512)
    assert (constant.numpy_dtype, constant.nbytes) == (np.float32, 2048)
    assert constant.storage is not None
    assert constant.storage[0] == "@model_path/weights/weight.bin"
    assert not constant.inline
    value = constant.value()
    assert not value.flags.writeable
    assert not value.flags.owndata
    np.testing.assert_array_equal(value, WEIGHT)
    constant.release()
    np.testing.assert_array_equal(value, WEIGHT)
    small = next(c for c in program.constants() if c.consumers[0].parameter == "transpose_y")
    assert (small.dtype, small.shape, small.size, small.nbytes) == ("bool", (), 1, 1)
    assert small.storage is None


def test_names_of_inner_blocks_hide_outer_ones() -> None:
    """A block input of the same name takes the use away from the outer constant."""
    package = fake_package()
    (program,) = package.programs
    block = program.functions[0].block
    add_const(block, "w", np.ones(4, np.float32))
    loop = block.operations.add(type="while_loop")
    hiding, seeing = loop.blocks.add(), loop.blocks.add()
    hiding.inputs.add(name="w")
    for inner in (hiding, seeing):
        op = inner.operations.add(type="relu")
        op.inputs["x"].arguments.add().name = "w"
        op.outputs.add(name="r")
    seeing.outputs.append("w")
    (constant,) = program.constants()
    assert [c.node.block for c in constant.consumers] == [seeing]
    assert constant.is_block_output


def test_redefined_name_takes_later_uses() -> None:
    package = fake_package()
    (program,) = package.programs
    block = program.functions[0].block
    for number in (1, 2):
        add_const(block, "w", np.full(3, number, np.float32))
        block.operations.add(type="relu").inputs["x"].arguments.add().name = "w"
    first, second = program.constants()
    assert [len(c.consumers) for c in (first, second)] == [1, 1]
    assert first.value()[0] == 1
    assert second.value()[0] == 2


def test_values_inside_operations_are_inline_constants() -> None:
    package = fake_package()
    (program,) = package.programs
    block = program.functions[0].block
    op = block.operations.add(type="constexpr_lut_to_dense")
    op.attributes["name"].CopyFrom(string_value("w_lut"))
    op.attributes["lut"].CopyFrom(immediate_value(np.arange(4, dtype=np.float16)))
    op.inputs["indices"].arguments.add().value.CopyFrom(
        immediate_value(np.uint8([0b11100100]), "uint2", (2, 2))
    )
    op.outputs.add(name="w")
    add = block.operations.add(type="concat")
    add.outputs.add(name="c")
    for _ in range(2):
        add.inputs["values"].arguments.add().value.CopyFrom(immediate_value(np.zeros(2)))
    lut, indices, left, right = program.constants()
    assert [c.name for c in (lut, indices, left, right)] == [
        "w_lut.lut",
        "w_lut.indices",
        "c.values",
        "c.values[1]",
    ]
    assert all(c.inline for c in (lut, indices, left, right))
    assert indices.dtype == "uint2"
    assert (indices.shape, indices.size, indices.nbytes) == ((2, 2), 4, 1)
    assert indices.value().tolist() == [0b11100100]
    (consumer,) = lut.consumers
    assert (consumer.op_type, consumer.op_name, consumer.parameter) == (
        "constexpr_lut_to_dense",
        "w_lut",
        "lut",
    )


def test_multifunction_shares_storage(package_of: PackageOf) -> None:
    (program,) = open_package(package_of("multifunction", "iOS18")).programs
    assert len(program.functions) > 1
    owners: dict[Any, set[str]] = {}
    for constant in program.constants():
        if constant.storage is not None:
            owners.setdefault(constant.storage, set()).add(constant.function)
    assert any(len(functions) > 1 for functions in owners.values())


def test_scalar_refuses_what_is_computed(nested: Any) -> None:
    (program,) = open_package(nested).programs
    node = next(n for n in program.nodes() if n.name == "first")
    assert node.scalar("absent") is None
    with pytest.raises(ValueError, match="x is not a constant scalar"):
        node.scalar("x")
    with pytest.raises(ValueError, match="y is not a constant scalar"):
        node.scalar("y")


def test_blob_that_does_not_match_its_type(nested: Any) -> None:
    package = open_package(nested)
    constant = by_name(package.programs[0].constants())["outer"]
    constant.message.type.tensorType.dimensions[0].constant.size = 17
    constant = by_name(package.programs[0].constants())["outer"]
    with pytest.raises(ModelFormatError, match=r"512 fp32 elements.*'outer'.*\[17, 32\]"):
        constant.value()


def test_function_without_its_body(nested: Any) -> None:
    (program,) = open_package(nested).programs
    program.message.functions["main"].opset = "CoreML9"
    with pytest.raises(ModelFormatError, match=r"'CoreML9'.*\['CoreML5'\]"):
        program.nodes()


def test_reading_changes_nothing(package_of: PackageOf) -> None:
    package = open_package(package_of("control_flow"))
    before = package.spec.SerializeToString(deterministic=True)
    for program in package.programs:
        nodes = program.nodes()
        for constant in program.constants(nodes):
            assert constant.size >= 0
            constant.value()
            constant.release()
        assert all(isinstance(node, Node) and node.name for node in nodes)
        assert repr(nodes[0])
        assert repr(program)
    assert package.spec.SerializeToString(deterministic=True) == before


def test_large_programs_take_linear_time() -> None:
    package = fake_package()
    (program,) = package.programs
    block = program.functions[0].block
    for index in range(10_000):
        add_const(block, f"c{index}", np.zeros(1, np.float32))
        op = block.operations.add(type="add")
        op.inputs["x"].arguments.add().name = f"c{index}"
        op.inputs["y"].arguments.add().name = f"c{index // 2}"
        op.outputs.add(name=f"o{index}")
    start = time.process_time()
    nodes = program.nodes()
    assert len(program.constants(nodes)) == 10_000
    edits = Edits()
    for node in nodes[::2]:
        edits.replace(node.block, node.op, [Operation(type="a"), Operation(type="b")])
    edits.apply()
    assert len(block.operations) == 30_000
    assert time.process_time() - start < 5


def fake_package() -> Any:
    """Return a package of one empty program that has no files."""
    from pathlib import PurePosixPath

    from mlopt.mil.messages import Model
    from mlopt.mil.package import Package

    spec = Model(specificationVersion=6)
    function = spec.mlProgram.functions["main"]
    function.opset = "CoreML5"
    function.block_specializations["CoreML5"].SetInParent()
    return Package(Path("absent"), PurePosixPath("model.mlmodel"), spec)


def add_const(block: Any, name: str, array: np.ndarray) -> None:
    op = block.operations.add(type="const")
    op.attributes["name"].CopyFrom(string_value(name))
    op.attributes["val"].CopyFrom(immediate_value(array))
    op.outputs.add(name=name).type.CopyFrom(op.attributes["val"].type)
