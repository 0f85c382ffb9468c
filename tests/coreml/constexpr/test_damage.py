"""Constexpr operations that violate their definitions: refused by name, before memory is taken."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from mlopt.coreml import decompress, get_weights_metadata
from mlopt.coreml.constexpr import evaluate
from mlopt.errors import ModelFormatError
from mlopt.mil.opening import open_package
from mlopt.mil.values import tensor_type
from tests import foreign
from tests.foreign import constant, constexpr, value


def lut(declared: tuple[int, ...] = (2, 4), /, dtype: str = "fp16", **changes: Any) -> Any:
    parameters = {
        "indices": value(np.arange(8).reshape(2, 4) % 4, "uint2"),
        "lut": value(np.arange(4).reshape(1, 1, 4, 1), "fp16"),
    }
    return changed("lut_to_dense", {"w": (dtype, declared)}, parameters, changes)


def old_lut(declared: tuple[int, ...] = (2, 4), /, **changes: Any) -> Any:
    parameters = {
        "indices": value([0, 0], "uint8"),
        "lut": value([1, 2, 3, 4], "fp16"),
        "shape": value([2, 4], "uint32"),
    }
    return changed("lut_to_dense", {"w": ("fp16", declared)}, parameters, changes, old=True)


def affine(declared: tuple[int, ...] = (2, 4), /, **changes: Any) -> Any:
    parameters = {
        "quantized_data": value(np.zeros((2, 4)), "int8"),
        "scale": value([1, 2], "fp16"),
        "zero_point": value(0, "int8"),
        "axis": value(0, "int32"),
    }
    return changed("affine_dequantize", {"w": ("fp16", declared)}, parameters, changes, old=True)


def blocks(declared: tuple[int, ...] = (2, 4), /, **changes: Any) -> Any:
    parameters = {
        "data": value(np.zeros((2, 4)), "int4"),
        "scale": value(np.ones((2, 2)), "fp16"),
        "offset": value(np.ones((2, 2)), "int4"),
    }
    return changed("blockwise_shift_scale", {"w": ("fp16", declared)}, parameters, changes)


def sparse(declared: tuple[int, ...] = (2, 4), /, **changes: Any) -> Any:
    parameters = {
        "mask": value([[1, 0, 0, 0], [0, 0, 0, 1]], "uint1"),
        "nonzero_data": value([1, 2], "fp16"),
    }
    return changed("sparse_to_dense", {"w": ("fp16", declared)}, parameters, changes)


def old_sparse(declared: tuple[int, ...] = (2, 3), /, **changes: Any) -> Any:
    parameters = {
        "mask": value([0b100001], "uint8"),
        "nonzero_data": value([1, 2], "fp16"),
        "shape": value([2, 3], "uint32"),
    }
    return changed("sparse_to_dense", {"w": ("fp16", declared)}, parameters, changes, old=True)


def lut_sparse(values: int = 2, /, **changes: Any) -> Any:
    parameters = {
        "indices_mask": value([[1, 0, 0, 0], [0, 0, 0, 1]], "uint1"),
        "indices_nonzero_data": value([1, 2], "uint2"),
        "lut": value(np.arange(4).reshape(1, 1, 4, 1), "fp16"),
    }
    outputs = {"mask": ("uint1", (2, 4)), "w": ("fp16", (values,))}
    return changed("lut_to_sparse", outputs, parameters, changes)


def sparse_blocks(values: int = 2, /, **changes: Any) -> Any:
    parameters = {
        "data_mask": value([[1, 0, 0, 0], [0, 0, 0, 1]], "uint1"),
        "nonzero_data": value([1, 2], "int8"),
        "scale": value([[1], [2]], "fp16"),
    }
    outputs = {"mask": ("uint1", (2, 4)), "w": ("fp16", (values,))}
    return changed("sparse_blockwise_shift_scale", outputs, parameters, changes)


def cast(**changes: Any) -> Any:
    parameters = {
        "source_val": value([1, 2], "fp16"),
        "output_dtype": foreign.string_value("fp32"),
    }
    return changed("cast", {"w": ("fp32", (2,))}, parameters, changes, old=True)


def changed(
    kind: str,
    outputs: dict[str, Any],
    parameters: dict[str, Any],
    changes: dict[str, Any],
    *,
    old: bool = False,
) -> Any:
    """The operation with some parameters replaced; None leaves one out."""
    bound = {key: content for key, content in (parameters | changes).items() if content is not None}
    return constexpr(kind, outputs, old=old, **bound)


HUGE = [1 << 20, 1 << 20]
GOOD = [lut, old_lut, affine, blocks, sparse, old_sparse, lut_sparse, sparse_blocks, cast]
BAD: dict[str, tuple[Any, str]] = {
    "lut: no table": (lut(lut=None), r"'lut' is missing"),
    "lut: an unknown parameter": (lut(bias=value(0, "int32")), "unknown parameter 'bias'"),
    "lut: signed indices": (
        lut(indices=value(np.zeros((2, 4)), "int8")),
        "indices has elements of type int8",
    ),
    "lut: a table of integers of 4 bits": (
        lut(lut=value(np.zeros((1, 1, 4, 1)), "int4")),
        "lut has elements of type int4",
    ),
    "lut: indices of another width": (
        lut(indices=value(np.zeros((2, 4)), "uint4")),
        "uint4 need 16 entries, got 4",
    ),
    "lut: three entries": (
        lut(lut=value(np.zeros((1, 1, 3, 1)), "fp16")),
        "need 4 entries, got 3",
    ),
    "lut: a table of too low a rank": (lut(lut=value(np.zeros((1, 4, 1)), "fp16")), "rank 2 above"),
    "lut: groups that do not divide": (
        lut(lut=value(np.zeros((1, 3, 4, 1)), "fp16")),
        "3 tables do not divide the 4 indices on axis 1",
    ),
    "lut: no groups": (lut(lut=value(np.zeros((0, 1, 4, 1)), "fp16")), "0 tables"),
    "lut: empty entries": (lut(lut=value(np.zeros((1, 1, 4, 0)), "fp16")), "entries hold 1 to"),
    "lut: entries that are too long": (
        lut(lut=value(np.zeros((1, 1, 4, 8192)), "fp16"), vector_axis=value(0, "int32")),
        "entries hold 1 to 4096 values, got 8192",
    ),
    "lut: vectors without an axis": (
        lut((4, 4), lut=value(np.zeros((1, 1, 4, 2)), "fp16")),
        "vector_axis is missing",
    ),
    "lut: an axis too far": (lut(vector_axis=value(2, "int32")), r"\[-2, 2\), got 2"),
    "lut: an axis that is a vector": (lut(vector_axis=value([0], "int32")), "rank 0"),
    "lut: another output shape": (lut((4, 2)), r"'w' is fp16\[2, 4\].*declares fp16\[4, 2\]"),
    "lut: another output type": (lut(dtype="fp32"), r"declares fp32\[2, 4\]"),
    "lut: a scalar": (lut(indices=value(0, "uint2")), "indices must be of rank"),
    "lut: two values for one": (lut(), "takes one value, got 2"),
    "lut: a name that is defined nowhere": (lut(indices="nothing"), "defined nowhere before"),
    "lut: itself": (lut(indices="w"), "defined nowhere before"),
    "lut: a computed table": (lut(lut="x"), "computed when the model runs"),
    "lut: two outputs": (lut(), "1 output"),
    "old lut: eight entries": (old_lut(lut=value(np.zeros(8), "fp16")), "must have one of"),
    "old lut: indices that are too short": (old_lut(indices=value([0], "uint8")), "2 bytes, got 1"),
    "old lut: indices that are too long": (old_lut(indices=value([0] * 3, "uint8")), "got 3"),
    "old lut: a shape that nothing bears out": (
        old_lut((1 << 20, 1 << 20), shape=value(HUGE, "uint32")),
        "take 274877906944 bytes, got 2",
    ),
    "old lut: no shape at all": (old_lut((), shape=value([], "uint32")), "got 0"),
    "old lut: a signed shape": (old_lut(shape=value([2, 4], "int32")), "type int32"),
    "old lut: a table of rank 2": (old_lut(lut=value([[1, 2]], "fp16")), "rank 1"),
    "affine: an axis too far": (affine(axis=value(-3, "int32")), r"\[-2, 2\), got -3"),
    "affine: scales of another axis": (affine(scale=value(np.ones(4), "fp16")), "2 elements"),
    "affine: too many zero points": (
        affine(zero_point=value(np.ones(3), "int8")),
        "zero_point must be a scalar or have the 2",
    ),
    "affine: zero points of float16": (affine(zero_point=value(0, "fp16")), "type fp16"),
    "affine: data of 4 bits": (affine(quantized_data=value(np.zeros((2, 4)), "int4")), "type int4"),
    "affine: no axis": (affine(axis=None), "'axis' is missing"),
    "blocks: scales that do not divide": (
        blocks(scale=value(np.ones((2, 3)), "fp16"), offset=None),
        "3 scales do not divide the 4",
    ),
    "blocks: no scales": (blocks(scale=value(np.ones((0, 2)), "fp16")), "0 scales"),
    "blocks: scales of another rank": (blocks(scale=value(np.ones(2), "fp16")), "rank of the data"),
    "blocks: offsets of another shape": (
        blocks(offset=value(np.ones((2, 1)), "int4")),
        "offset must have the shape of scale",
    ),
    "blocks: offsets of another integer": (
        blocks(offset=value(np.ones((2, 2)), "int8")),
        "float type or of the data's, int4, got int8",
    ),
    "blocks: integer scales": (blocks(scale=value(np.ones((2, 2)), "int8")), "type int8"),
    "sparse: a value too few": (
        sparse(nonzero_data=value([1], "fp16")),
        "2 bits of the mask are set, but there are 1 values",
    ),
    "sparse: a value too many": (
        sparse(nonzero_data=value([1, 2, 3], "fp16")),
        "2 bits of the mask are set, but there are 3 values",
    ),
    "sparse: more values than bits": (
        sparse(nonzero_data=value(np.ones(9), "fp16")),
        "9 values for a mask of 8",
    ),
    "sparse: values in rows": (sparse(nonzero_data=value([[1, 2]], "fp16")), "rank 1"),
    "sparse: a mask of bytes": (sparse(mask=value(np.zeros((2, 4)), "uint8")), "type uint8"),
    "old sparse: bits behind the end": (
        old_sparse(mask=value([0b10000001], "uint8")),
        "behind its last element",
    ),
    "old sparse: a mask too long": (old_sparse(mask=value([1, 1], "uint8")), "1 bytes, got 2"),
    "old sparse: a shape that nothing bears out": (
        old_sparse((1 << 20, 1 << 20), shape=value(HUGE, "uint32")),
        "takes 137438953472 bytes, got 1",
    ),
    "lut, sparse: a value too few": (
        lut_sparse(1, indices_nonzero_data=value([1], "uint2")),
        "2 bits of the mask are set, but there are 1",
    ),
    "lut, sparse: more values than bits": (
        lut_sparse(indices_nonzero_data=value(np.ones(9), "uint2")),
        "9 nonzero indices for a mask of 8",
    ),
    "lut, sparse: indices of another width": (
        lut_sparse(indices_nonzero_data=value([1, 1], "uint1")),
        "uint1 need 2 entries, got 4",
    ),
    "blocks, sparse: a value too many": (
        sparse_blocks(3, nonzero_data=value([1, 2, 3], "int8")),
        "2 bits of the mask are set, but there are 3",
    ),
    "blocks, sparse: scales that do not divide": (
        sparse_blocks(scale=value(np.ones((1, 3)), "fp16")),
        "3 scales do not divide the 4",
    ),
    "cast: to something else": (cast(output_dtype=foreign.string_value("fp64")), "got 'fp64'"),
    "cast: from something else": (cast(source_val=value([1, 2], "fp32")), "type fp32"),
    "an operation of tomorrow": (
        constexpr("fold", {"w": ("fp16", (2,))}, data=value([1, 2], "fp16")),
        "unknown operation type",
    ),
}


def prepared(name: str) -> list[Any]:
    """The operations of a bad example; some damage is none that a parameter can have."""
    op = BAD[name][0]
    if name == "lut: two values for one":
        op.inputs["lut"].arguments.add().CopyFrom(op.inputs["lut"].arguments[0])
    if name == "lut: two outputs":
        op.outputs.add(name="w2", type=op.outputs[0].type)
    return [op]


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_what_the_bad_ones_are_made_from_is_good(make, tmp_path):
    target = "iOS16" if make.__name__.startswith("old") else "iOS18"
    source = foreign.handmade(tmp_path / "source.mlpackage", target, [make()], ["w"])
    np.testing.assert_array_equal(
        get_weights_metadata(source, weight_threshold=1)["w"].val,
        foreign.materialised_constants(source)["w"],
    )


@pytest.mark.parametrize("name", BAD)
def test_violations_are_refused_by_name(name, tmp_path):
    kept = prepared(name)
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", kept, ["w"])
    kind, named = kept[0].type, kept[0].outputs[0].name
    (program,) = open_package(source).programs
    node = next(node for node in program.nodes() if node.op_type == kind)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=BAD[name][1]) as refusal:
            evaluate(node)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert f"{kind} {named!r}" in str(refusal.value)
    assert "source.mlpackage: " in str(refusal.value)
    with pytest.raises(ModelFormatError, match=BAD[name][1]):
        decompress(source, tmp_path / "dense.mlpackage")
    assert {path.name for path in tmp_path.iterdir()} == {"source.mlpackage"}
    # A count of bits is known when the mask is read, which listing a weight does not do.
    with pytest.raises(ModelFormatError, match=BAD[name][1]):
        [weight.val for weight in get_weights_metadata(source, weight_threshold=0).values()]


def test_a_declared_type_that_is_no_tensor(tmp_path):
    op = lut()
    op.outputs[0].type.listType.type.CopyFrom(tensor_type("fp16", (2, 4)))
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", [op], ["w"])
    with pytest.raises(ModelFormatError, match="declares no tensor"):
        decompress(source, tmp_path / "dense.mlpackage")


def scaled(name: str, data: str) -> Any:
    return constexpr(
        "blockwise_shift_scale",
        {name: ("fp16", (2, 4))},
        data=data,
        scale=value([[1]], "fp16"),
    )


def test_chains_end(tmp_path):
    """A chain of sixty is long and fine; one of thousands is refused, and does not take minutes."""
    for length, fine in ((60, True), (3000, False)):
        ops = [lut()] + [scaled(f"w{i}", f"w{i - 1}" if i else "w") for i in range(length)]
        source = foreign.handmade(tmp_path / f"{length}.mlpackage", "iOS18", ops, [])
        output = tmp_path / f"{length}-dense.mlpackage"
        if fine:
            assert len(decompress(source, output).weights) == 1
        else:
            with pytest.raises(ModelFormatError, match="more than 64 constexpr operations"):
                decompress(source, output)


def test_links_that_read_one_another_twice_are_computed_once(tmp_path):
    """Each link reads the one before it as data and as scale: 2**50 paths through 50 operations."""
    ops = [
        constant("first", value(np.ones((2, 4)), "fp16")),
        scaled("w0", "first"),
        *(
            constexpr(
                "blockwise_shift_scale",
                {f"w{i}": ("fp16", (2, 4))},
                data=f"w{i - 1}",
                scale=f"w{i - 1}",
            )
            for i in range(1, 50)
        ),
    ]
    source = foreign.handmade(tmp_path / "source.mlpackage", "iOS18", ops, ["w49"])
    weight = get_weights_metadata(source, weight_threshold=1)["w49"]
    np.testing.assert_array_equal(weight.val, np.ones((2, 4), np.float16))
    decompress(source, tmp_path / "dense.mlpackage")
