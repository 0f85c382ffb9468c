"""Constexpr operations written by hand: the values that their definitions give.

Each example is small enough to be computed on paper, and is computed by coremltools too.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.coreml import decompress, get_weights_metadata
from mlopt.coreml.constexpr import evaluate
from mlopt.coreml.inspection import inspect_weights
from mlopt.coreml.weights import weights_of
from mlopt.mil.opening import open_package
from tests import foreign, judges
from tests.foreign import constant, constexpr, value

F16, F32 = np.float16, np.float32


EXAMPLES: dict[str, tuple[str, list[Any], np.ndarray]] = {
    # 2-bit indices 0 1 2 3 | 1, least significant bits first
    "lut, old form": (
        "iOS16",
        [
            constexpr(
                "lut_to_dense",
                {"w": ("fp16", (5,))},
                old=True,
                indices=value([0b11100100, 0b01], "uint8"),
                lut=value([10, 20, 30, 40], "fp16"),
                shape=value([5], "uint32"),
            )
        ],
        np.array([10, 20, 30, 40, 20], F16),
    ),
    "lut of integers, old form": (
        "iOS16",
        [
            constexpr(
                "lut_to_dense",
                {"w": ("uint8", (2, 4))},
                old=True,
                indices=value([0b10110100], "uint8"),
                lut=value([7, 200], "uint8"),
                shape=value([2, 4], "uint32"),
            )
        ],
        np.array([[7, 7, 200, 7], [200, 200, 7, 200]], np.uint8),
    ),
    # the first two rows read the first table, the others the second
    "lut in groups": (
        "iOS18",
        [
            constexpr(
                "lut_to_dense",
                {"w": ("fp32", (4, 2))},
                indices=value([[0, 1], [2, 3], [3, 2], [1, 0]], "uint2"),
                lut=value(np.array([1, 2, 3, 4, 10, 20, 30, 40]).reshape(2, 1, 4, 1), "fp32"),
            )
        ],
        np.array([[1, 2], [3, 4], [40, 30], [20, 10]], F32),
    ),
    "lut of one value an entry, with an axis": (
        "iOS18",
        [
            constexpr(
                "lut_to_dense",
                {"w": ("int8", (2, 3))},
                indices=value([[0, 1, 1], [1, 0, 0]], "uint1"),
                lut=value(np.array([-5, 6]).reshape(1, 1, 2, 1), "int8"),
                vector_axis=value(-1, "int32"),
            )
        ],
        np.array([[-5, 6, 6], [6, -5, -5]], np.int8),
    ),
    # an entry of three values goes down the rows
    "lut of vectors, negative axis": (
        "iOS18",
        [
            constexpr(
                "lut_to_dense",
                {"w": ("int8", (6, 2))},
                indices=value([[0, 1], [1, 0]], "uint1"),
                lut=value(np.array([1, 2, 3, -1, -2, -3]).reshape(1, 1, 2, 3), "int8"),
                vector_axis=value(-2, "int32"),
            )
        ],
        np.array([[1, -1], [2, -2], [3, -3], [-1, 1], [-2, 2], [-3, 3]], np.int8),
    ),
    # columns: 0.5 q, q - 1, 2 (q + 1)
    "affine, negative axis": (
        "iOS16",
        [
            constexpr(
                "affine_dequantize",
                {"w": ("fp16", (2, 3))},
                old=True,
                quantized_data=value([[-128, 0, 127], [1, 2, 3]], "int8"),
                scale=value([0.5, 1, 2], "fp16"),
                zero_point=value([0, 1, -1], "int8"),
                axis=value(-1, "int32"),
            )
        ],
        np.array([[-64, -1, 256], [0.5, 1, 8]], F16),
    ),
    "affine, a zero point between numbers": (
        "iOS18",
        [
            constexpr(
                "affine_dequantize",
                {"w": ("fp32", (1, 2))},
                old=True,
                quantized_data=value([[0, 255]], "uint8"),
                scale=value(2.0, "fp32"),
                zero_point=value(0.5, "fp32"),
                axis=value(0, "int32"),
            )
        ],
        np.array([[-1, 509]], F32),
    ),
    # columns 0 and 1: q - 1; columns 2 and 3: (q + 1) / 2
    "blocks of int4": (
        "iOS18",
        [
            constexpr(
                "blockwise_shift_scale",
                {"w": ("fp16", (2, 4))},
                data=value([[-8, 7, 2, 3], [0, 1, -1, 4]], "int4"),
                scale=value([[1, 0.5]], "fp16"),
                offset=value([[1, -1]], "int4"),
            )
        ],
        np.array([[-9, 6, 1.5, 2], [-1, 0, 0, 2.5]], F16),
    ),
    "blocks on two axes": (
        "iOS18",
        [
            constexpr(
                "blockwise_shift_scale",
                {"w": ("fp32", (4, 4))},
                data=value(np.arange(16).reshape(4, 4), "uint8"),
                scale=value([[1, 10], [100, 1000]], "fp32"),
                offset=value([[0, 2], [8, 10]], "uint8"),
            )
        ],
        np.array([[0, 1, 0, 10], [4, 5, 40, 50], [0, 100, 0, 1000], [400, 500, 4000, 5000]], F32),
    ),
    "blocks of uint4 with an offset between numbers": (
        "iOS18",
        [
            constexpr(
                "blockwise_shift_scale",
                {"w": ("fp16", (1, 3))},
                data=value([[0, 8, 15]], "uint4"),
                scale=value([[2]], "fp16"),
                offset=value([[7.5]], "fp16"),
            )
        ],
        np.array([[-15, 1, 15]], F16),
    ),
    "floats with scales": (
        "iOS18",
        [
            constexpr(
                "blockwise_shift_scale",
                {"w": ("fp16", (2, 2))},
                data=value([[1, 2], [3, 4]], "fp32"),
                scale=value([[2], [4]], "fp16"),
            )
        ],
        np.array([[2, 4], [12, 16]], F16),
    ),
    # bits 1 0 1 1 0 0, least significant first
    "sparse, old form": (
        "iOS16",
        [
            constexpr(
                "sparse_to_dense",
                {"w": ("fp16", (2, 3))},
                old=True,
                nonzero_data=value([1, 2, 3], "fp16"),
                mask=value([0b001101], "uint8"),
                shape=value([2, 3], "uint32"),
            )
        ],
        np.array([[1, 0, 2], [3, 0, 0]], F16),
    ),
    "sparse int4": (
        "iOS18",
        [
            constexpr(
                "sparse_to_dense",
                {"w": ("int4", (2, 2))},
                nonzero_data=value([-3, 7], "int4"),
                mask=value([[0, 1], [1, 0]], "uint1"),
            )
        ],
        np.array([[0, -3], [7, 0]], np.int8),
    ),
    "cast": (
        "iOS16",
        [
            constexpr(
                "cast",
                {"w": ("fp32", (3,))},
                old=True,
                source_val=value([0.1, -2, 65504], "fp16"),
                output_dtype=foreign.string_value("fp32"),
            )
        ],
        np.array([0.0999755859375, -2, 65504], F32),
    ),
    # the table is 0.5 (q - 1) for q = -1, 3
    "table of int8": (
        "iOS18",
        [
            constexpr(
                "blockwise_shift_scale",
                {"table": ("fp16", (1, 2, 1))},
                data=value(np.array([-1, 3]).reshape(1, 2, 1), "int8"),
                scale=value(np.full((1, 1, 1), 0.5), "fp16"),
                offset=value(np.full((1, 1, 1), 1), "int8"),
            ),
            constexpr(
                "lut_to_dense",
                {"w": ("fp16", (4,))},
                indices=value([0, 1, 1, 0], "uint1"),
                lut="table",
            ),
        ],
        np.array([-1, 1, 1, -1], F16),
    ),
    "sparse numbers with scales": (
        "iOS18",
        [
            constexpr(
                "sparse_to_dense",
                {"q": ("uint8", (2, 2))},
                nonzero_data=value([10, 20], "uint8"),
                mask=value([[1, 0], [0, 1]], "uint1"),
            ),
            constexpr(
                "blockwise_shift_scale",
                {"w": ("fp32", (2, 2))},
                data="q",
                scale=value([[2], [3]], "fp32"),
            ),
        ],
        np.array([[20, 0], [0, 60]], F32),
    ),
    "palettized and sparse": (
        "iOS18",
        [
            constexpr(
                "lut_to_sparse",
                {"mask": ("uint1", (2, 3)), "values": ("fp16", (4,))},
                indices_mask=value([[1, 0, 1], [0, 1, 1]], "uint1"),
                indices_nonzero_data=value([0, 1, 1, 0], "uint1"),
                # a table for each row
                lut=value(np.array([2, 3, 20, 30]).reshape(2, 1, 2, 1), "fp16"),
            ),
            constexpr(
                "sparse_to_dense", {"w": ("fp16", (2, 3))}, nonzero_data="values", mask="mask"
            ),
        ],
        np.array([[2, 0, 3], [0, 30, 20]], F16),
    ),
    # each bit of the mask stands for two rows
    "vectors and sparse": (
        "iOS18",
        [
            constexpr(
                "lut_to_sparse",
                {"mask": ("uint1", (4, 2)), "values": ("fp16", (6,))},
                indices_mask=value([[1, 0], [1, 1]], "uint1"),
                indices_nonzero_data=value([0, 1, 0], "uint1"),
                lut=value(np.array([1, 2, 3, 4]).reshape(1, 1, 2, 2), "fp16"),
                vector_axis=value(0, "int32"),
            ),
            constexpr(
                "sparse_to_dense", {"w": ("fp16", (4, 2))}, nonzero_data="values", mask="mask"
            ),
        ],
        np.array([[1, 0], [2, 0], [3, 1], [4, 2]], F16),
    ),
    # columns: 0.5 (q - 1), q + 1; what the mask leaves out stays 0
    "quantized and sparse": (
        "iOS18",
        [
            constexpr(
                "sparse_blockwise_shift_scale",
                {"mask": ("uint1", (2, 2)), "values": ("fp16", (3,))},
                data_mask=value([[1, 1], [0, 1]], "uint1"),
                nonzero_data=value([-7, 3, 5], "int8"),
                scale=value([[0.5, 1]], "fp16"),
                offset=value([[1, -1]], "int8"),
            ),
            constexpr(
                "sparse_to_dense", {"w": ("fp16", (2, 2))}, nonzero_data="values", mask="mask"
            ),
        ],
        np.array([[-4, 4], [0, 6]], F16),
    ),
    "chain of three": (
        "iOS18",
        [
            constexpr(
                "lut_to_sparse",
                {"mask": ("uint1", (2, 2)), "entries": ("int8", (3,))},
                indices_mask=value([[1, 0], [1, 1]], "uint1"),
                indices_nonzero_data=value([1, 0, 1], "uint1"),
                lut=value(np.array([-10, 10]).reshape(1, 1, 2, 1), "int8"),
            ),
            constexpr(
                "sparse_blockwise_shift_scale",
                {"mask2": ("uint1", (2, 2)), "values": ("fp32", (3,))},
                data_mask="mask",
                nonzero_data="entries",
                scale=value([[1], [0.5]], "fp32"),
            ),
            constexpr(
                "sparse_to_dense", {"w": ("fp32", (2, 2))}, nonzero_data="values", mask="mask2"
            ),
        ],
        np.array([[10, 0], [-5, 5]], F32),
    ),
}


def package_of_example(name: str, folder: Path) -> Path:
    target, ops, _ = EXAMPLES[name]
    return foreign.handmade(folder / "source.mlpackage", target, ops, ["w"])


def nodes_of(path: Path) -> dict[str, Any]:
    (program,) = open_package(path).programs
    return {output.name: node for node in program.nodes() for output in node.outputs}


@pytest.mark.parametrize("name", EXAMPLES)
def test_values_are_those_of_the_definition(name, tmp_path):
    source = package_of_example(name, tmp_path)
    _, ops, wanted = EXAMPLES[name]
    nodes = nodes_of(source)
    (computed,) = evaluate(nodes["w"])
    theirs = foreign.materialised_constants(source)
    for values in (computed, theirs["w"]):
        np.testing.assert_array_equal(values, wanted)
        assert values.dtype == wanted.dtype
    assert not computed.flags.writeable
    for op in ops:  # the parts of chains as well
        for output, part in zip(op.outputs, evaluate(nodes[op.outputs[0].name]), strict=True):
            np.testing.assert_array_equal(part, theirs[output.name])
    dense = decompress(source, tmp_path / "dense.mlpackage").path
    np.testing.assert_array_equal(judges.decompressed_constants(dense)["w"], wanted)
    assert judges.messages_equal_except(source, dense, ["w"]) == []
    (weight,) = get_weights_metadata(source, weight_threshold=1).values()
    np.testing.assert_array_equal(weight.val, wanted)


def test_an_offset_wider_than_the_scale_is_rounded_once(tmp_path):
    """coremltools computes in float32, and would return that against its own type inference."""
    op = constexpr(
        "blockwise_shift_scale",
        {"w": ("fp16", (1, 3))},
        data=value([[1, 2, 200]], "uint8"),
        scale=value([[0.1]], "fp16"),
        offset=value([[0.3]], "fp32"),
    )
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", [op], ["w"])
    (computed,) = evaluate(nodes_of(source)["w"])
    theirs = foreign.materialised_constants(source)["w"]
    assert theirs.dtype == np.float32
    np.testing.assert_array_equal(computed, theirs.astype(np.float16))


def dense_ramp(name: str, indices: Any, lut: Any) -> Any:
    return constexpr("lut_to_dense", {name: ("fp16", (2, 8))}, indices=indices, lut=lut)


INDICES = value(np.arange(16).reshape(2, 8) % 4, "uint2")
TABLE = value(np.arange(1, 5).reshape(1, 1, 4, 1), "fp16")
RAMP = np.tile(np.arange(1, 5, dtype=F16), (2, 2))


def test_parameters_may_be_named_constants(tmp_path):
    """One of them an ordinary operation reads as well: it stays, the other one goes."""
    ops = [constant("places", INDICES), constant("table", TABLE)]
    ops.append(dense_ramp("w", "places", "table"))
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, ["w", "table"])
    metadata = get_weights_metadata(source, weight_threshold=3)
    assert list(metadata) == ["table", "w"]
    assert metadata["table"].compression is None
    assert [child.name for child in metadata["table"].child_ops] == ["table_read"]
    assert str(metadata["w"].compression) == "palettized, 2 bits, 1 table, 6.00 bits per weight"
    dense = decompress(source, tmp_path / "dense.mlpackage").path
    values = judges.decompressed_constants(dense)
    np.testing.assert_array_equal(values["w"], RAMP)
    assert "table" in values
    assert "places" not in values
    assert judges.messages_equal_except(source, dense, ["w"]) == []


def test_a_weight_that_a_block_returns(tmp_path):
    source = foreign.handmade(
        tmp_path / "source.mlpackage", "iOS18", [dense_ramp("w", INDICES, TABLE)], [], ["w"]
    )
    result = decompress(source, tmp_path / "dense.mlpackage")
    assert [weight.name for weight in result.weights] == ["w"]
    assert list(get_weights_metadata(source, 1)) == ["w"]
    node = nodes_of(result.path)["w"]
    assert node.op_type == "const"
    np.testing.assert_array_equal(node.outputs[0].constant.value(), RAMP)


def test_a_weight_that_nothing_reads_stays(tmp_path):
    ops = [dense_ramp("w", INDICES, TABLE)]
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, [])
    dense = decompress(source, tmp_path / "dense.mlpackage").path
    np.testing.assert_array_equal(judges.decompressed_constants(dense)["w"], RAMP)


def test_a_link_of_a_chain_that_is_read_as_well(tmp_path):
    ops = [
        dense_ramp("inner", INDICES, TABLE),
        constexpr(
            "blockwise_shift_scale",
            {"w": ("fp16", (2, 8))},
            data="inner",
            scale=value([[2], [3]], "fp16"),
        ),
    ]
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, ["inner", "w"])
    result = decompress(source, tmp_path / "dense.mlpackage")
    assert [weight.name for weight in result.weights] == ["inner", "w"]
    values = judges.decompressed_constants(result.path)
    np.testing.assert_array_equal(values["inner"], RAMP)
    np.testing.assert_array_equal(values["w"], RAMP * np.array([[2], [3]], F16))
    metadata = get_weights_metadata(source, weight_threshold=1)
    assert list(metadata) == ["inner", "w"]
    assert [child.name for child in metadata["inner"].child_ops] == ["inner_read"]
    assert metadata["w"].compression.has_scale
    assert not metadata["inner"].compression.has_scale


def test_a_mask_that_two_weights_share(tmp_path):
    bits = (np.arange(16) % 4 == 0).astype(int)
    ops = [constant("mask", value(bits, "uint1"))]
    for name in ("a", "b"):
        numbers = value(np.arange(1, 5) * (1 if name == "a" else -1), "fp16")
        ops.append(
            constexpr("sparse_to_dense", {name: ("fp16", (16,))}, mask="mask", nonzero_data=numbers)
        )
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, ["a", "b"])
    metadata = get_weights_metadata(source, weight_threshold=1)
    assert list(metadata) == ["a", "b"]
    assert [weight.compression.nbytes for weight in metadata.values()] == [2 + 8, 2 + 8]
    inventory = inspect_weights(source)
    assert (inventory.nbytes, inventory.bytes_in_all) == (2 * (2 + 8), 2 + 8 + 8)
    dense = decompress(source, tmp_path / "dense.mlpackage").path
    values = judges.decompressed_constants(dense)
    assert "mask" not in values
    np.testing.assert_array_equal(values["a"], -values["b"])
    np.testing.assert_array_equal(np.flatnonzero(values["a"]), [0, 4, 8, 12])


def test_outputs_narrower_than_a_byte_are_packed_again(tmp_path):
    """Both outputs of an operation are read: the mask of one bit, and numbers of 4 bits."""
    mask = value((np.arange(24).reshape(2, 12) % 2), "uint1")
    ops = [
        constexpr(
            "lut_to_sparse",
            {"mask": ("uint1", (2, 12)), "values": ("fp16", (12,))},
            indices_mask=mask,
            indices_nonzero_data=value(np.arange(12) % 2, "uint1"),
            lut=value(np.array([5, 6]).reshape(1, 1, 2, 1), "fp16"),
        ),
        constexpr(
            "sparse_to_dense",
            {"w": ("int4", (2, 12))},
            nonzero_data=value(np.arange(-6, 6), "int4"),
            mask=mask,
        ),
    ]
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, ["mask", "values", "w"])
    result = decompress(source, tmp_path / "dense.mlpackage")
    assert [weight.name for weight in result.weights] == ["mask", "values", "w"]
    wanted, values = (
        foreign.materialised_constants(source),
        judges.decompressed_constants(result.path),
    )
    for name in ("mask", "values", "w"):
        np.testing.assert_array_equal(values[name], wanted[name])
    assert nodes_of(result.path)["w"].outputs[0].constant.storage is not None


def test_chains_share_what_is_stored_alike(tmp_path):
    """Two names for one weight: one blob afterwards; another order of the same parts is another."""
    ops = [dense_ramp("a", INDICES, TABLE), dense_ramp("b", INDICES, TABLE)]
    other = value(np.arange(4, 0, -1).reshape(1, 1, 4, 1), "fp16")
    ops.append(dense_ramp("c", INDICES, other))
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, ["a", "b", "c"])
    result = decompress(source, tmp_path / "dense.mlpackage")
    assert [weight.name for weight in result.weights] == ["a", "c"]
    nodes = nodes_of(result.path)
    stored = {name: nodes[name].outputs[0].constant.storage for name in "abc"}
    assert stored["a"] == stored["b"] != stored["c"]


@pytest.mark.parametrize("name", ["lut, old form", "lut in groups", "table of int8"])
def test_a_remark_on_an_operation_stays(name, tmp_path):
    """An attribute that is no parameter, as some tool may leave it."""
    target, ops, wanted = EXAMPLES[name]
    ops = [type(op).FromString(op.SerializeToString()) for op in ops]
    for op in ops:
        op.attributes["remark"].CopyFrom(value(np.arange(20), "fp16"))
    source = foreign.handmade(tmp_path / "source.mlpackage", target, ops, ["w"])
    node = nodes_of(decompress(source, tmp_path / "dense.mlpackage").path)["w"]
    assert set(node.op.attributes) == {"name", "val", "remark"}
    np.testing.assert_array_equal(node.outputs[0].constant.value(), wanted)
    (weight,) = get_weights_metadata(source, weight_threshold=1).values()
    (plain,) = get_weights_metadata(package_of_example(name, tmp_path / "2"), 1).values()
    assert weight.compression == plain.compression


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("lut, old form", "palettized, 2 bits, 1 table, 16.00 bits per weight"),
        (
            "lut in groups",
            "palettized, 2 bits, 2 tables, blocks of 2x2, 34.00 bits per weight",
        ),
        (
            "lut of vectors, negative axis",
            "palettized, int8 table, 1 bit, 1 table, vectors of 3, 4.67 bits per weight",
        ),
        ("affine, negative axis", "quantized, 8 bits, blocks of 2x1, 20.00 bits per weight"),
        ("blocks of int4", "quantized, 4 bits, blocks of 2x2, 9.00 bits per weight"),
        ("floats with scales", "scaled, 32 bits, blocks of 1x2, 40.00 bits per weight"),
        ("sparse, old form", "sparse, 16 bits, 50.0 % left out, 9.33 bits per weight"),
        ("sparse int4", "sparse, 4 bits, 50.0 % left out, 4.00 bits per weight"),
        ("cast", "cast, 16 bits, 16.00 bits per weight"),
        (
            "table of int8",
            "palettized, int8 table, 1 bit, 1 table, 12.00 bits per weight",
        ),
        (
            "sparse numbers with scales",
            "quantized + sparse, 8 bits, blocks of 1x2, 50.0 % left out, 22.00 bits per weight",
        ),
        (
            "palettized and sparse",
            "palettized + sparse, 1 bit, 2 tables, blocks of 1x3, 33.3 % left out, "
            "13.33 bits per weight",
        ),
    ],
)
def test_descriptions(name, shown, tmp_path):
    (weight,) = get_weights_metadata(package_of_example(name, tmp_path), 1).values()
    assert str(weight.compression) == shown


LARGE = (1024, 1024)


def large_blocks(counts: tuple[int, int]) -> list[Any]:
    data = np.random.default_rng(0).integers(-128, 128, LARGE)
    return [
        constexpr(
            "blockwise_shift_scale",
            {"w": ("fp16", LARGE)},
            data=value(data, "int8"),
            scale=value(np.full(counts, 0.5), "fp16"),
        )
    ]


def large_sparse() -> list[Any]:
    mask = np.random.default_rng(0).integers(0, 256, LARGE[0] * LARGE[1] // 8).astype(np.uint8)
    ones = int(np.unpackbits(mask).sum())
    return [
        constexpr(
            "sparse_to_dense",
            {"w": ("fp16", LARGE)},
            old=True,
            nonzero_data=value(np.ones(ones), "fp16"),
            mask=value(mask, "uint8"),
            shape=value(LARGE, "uint32"),
        )
    ]


@pytest.mark.parametrize(
    ("target", "ops"),
    [
        ("iOS18", large_blocks((1024, 1))),
        ("iOS18", large_blocks((1024, 32))),
        ("iOS18", large_blocks((1, 1))),
        ("iOS16", large_sparse()),
    ],
    ids=["channels", "blocks", "tensor", "sparse"],
)
def test_memory_is_that_of_the_weight(target, ops, tmp_path):
    """Compiled code and what is loaded once do not count: the first call is another weight's."""
    source = foreign.handmade(tmp_path / "source.mlpackage", target, ops, ["w"])
    node = nodes_of(source)["w"]
    evaluate(node)
    tracemalloc.start()
    try:
        (weight,) = evaluate(node)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.6 * weight.nbytes


def test_a_description_takes_no_weight_into_memory(monkeypatch, tmp_path):
    source = package_of_example("chain of three", tmp_path)
    weights, _ = weights_of(open_package(source), smallest=0)
    (weight,) = [weight for weight in weights if weight.is_compressed]
    from mlopt.coreml.constexpr import parameters

    monkeypatch.setattr(parameters, "unpack_bits", None)
    form = weight.compression
    assert form is not None
    assert form.form == "palettized + sparse, int8 table"
    assert form.operations == tuple(op.type for op in EXAMPLES["chain of three"][1])
    assert (form.nbits, form.tables, form.has_scale, form.sparsity) == (1, 1, True, 0.25)
    # a byte of indices, one of the mask, two of the table, and two scales
    assert form.nbytes == 1 + 1 + 2 + 8
