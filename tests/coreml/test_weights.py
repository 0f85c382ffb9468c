"""The weights of a model, what is part of others, and which of them are masks."""

from __future__ import annotations

import numpy as np
import pytest

from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    decompress,
    get_weights_metadata,
    lint,
    palettize,
)
from mlopt.coreml.inspection import inspect_weights
from mlopt.coreml.lint.subject import Subject
from mlopt.coreml.weights import bytes_once, is_mask, shown_consumers, weights_of
from mlopt.mil.bound_values import SMALLEST
from mlopt.mil.opening import open_package
from mlopt.mil.values import string_value
from tests import foreign, judges, models
from tests.coreml.conftest import Cell, converted, mb, saved
from tests.edited_models import shared_in_blocks


def weights(package):
    found, _ = weights_of(open_package(package))
    return found


@pytest.mark.parametrize(
    "kind", [k for k in models.kinds("iOS18") if k not in ("pipeline", "multifunction")]
)
def test_every_stored_constant_is_a_weight_once(kind, package_of):
    package = package_of(kind, "iOS18")
    spec, _ = judges.spec_and_weights(package)
    expected = []
    for op in judges.operations(spec.mlProgram.functions["main"]):
        value = op.attributes["val"] if op.type == "const" else None
        if value is None:
            continue
        tensor = value.type.tensorType
        size = int(np.prod([d.constant.size for d in tensor.dimensions]))
        if size >= SMALLEST and value.WhichOneof("value") == "blobFileValue":
            expected.append(op.outputs[0].name)
    found = [weight.name for weight in weights(package)]
    assert [name for name in found if name in set(expected)] == expected
    assert len(set(found)) == len(found)


def test_values_are_read_only_views(package_of):
    package = package_of("convolutional", "iOS16")
    dense = judges.decompressed_constants(package)
    for weight in weights(package):
        value = weight.value()
        assert not value.flags.writeable
        np.testing.assert_array_equal(value, dense[weight.name])
        assert weight.size == value.size
        assert weight.nbytes == value.nbytes
        assert weight.dtype == value.dtype.name
        weight.release()
        np.testing.assert_array_equal(value, dense[weight.name])


def test_functions_share_a_weight(package_of):
    by_name = {}
    for weight in weights(package_of("multifunction", "iOS18")):
        by_name.setdefault(weight.name, []).append(weight)
    (first,) = by_name["first_weight_to_fp16"]
    assert first.functions == ("adapted", "base") or first.functions == ("base", "adapted")
    assert len(first.instances) == len(first.consumers) == 2
    heads = by_name["head_0_weight_to_fp16"]
    assert sorted(head.functions for head in heads) == [("adapted",), ("base",)]


def test_a_tied_weight_has_all_its_readers(package_of):
    found = {weight.name: weight for weight in weights(package_of("transformer", "iOS15"))}
    tied = found["embedding_weight_to_fp16"]
    assert sorted(user.op_type for user in tied.consumers) == ["gather", "linear"]
    assert len(shown_consumers(tied.consumers)) == 2


def test_a_blob_under_several_names_is_one_weight(tmp_path):
    path = tmp_path / "shared.mlpackage"
    shared_in_blocks(path)
    (shared,) = [weight for weight in weights(path) if "inside" in weight.names]
    assert shared.name == "outside"
    assert sorted(shared.names) == ["also_inside", "inside", "outside"]
    assert len(shared.consumers) == 3


def test_one_operation_that_reads_twice_is_shown_once(tmp_path):
    value = Cell("kmeans", 4).weight((64, 64))

    def body(x):
        both = mb.const(val=value, name="w")
        return mb.concat(values=[both, x, both], axis=0, name="joined")

    path = saved(converted(body, (64, 64), "iOS16"), tmp_path / "a.mlpackage")
    found = {weight.name: weight for weight in weights(path)}
    assert len(found["w"].consumers) == 2
    assert shown_consumers(found["w"].consumers) == ("concat(joined)",)


SHAPE = (64, 64)


@pytest.fixture
def shared_part(tmp_path):
    """A model with a constant that an ordinary and a constexpr operation read, and a mere part."""
    data = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    mask = np.arange(data.size).reshape(SHAPE) % 2
    ops = [
        foreign.constant("shared", foreign.value(data, "fp16")),
        foreign.constant("part", foreign.value(data.reshape(-1)[::2], "fp16")),
        foreign.constexpr(
            "cast",
            {"cast": ("fp32", SHAPE)},
            source_val="shared",
            output_dtype=string_value("fp32"),
        ),
        foreign.constexpr(
            "sparse_to_dense",
            {"sparse": ("fp16", SHAPE)},
            nonzero_data="part",
            mask=foreign.value(mask, "uint1"),
        ),
    ]
    reads = ["shared", "cast", "sparse"]
    return foreign.handmade(tmp_path / "shared.mlpackage", "iOS18", ops, reads)


def test_a_constant_that_is_a_weight_and_a_part_is_both_at_every_door(shared_part, tmp_path):
    package = open_package(shared_part)
    found, _ = weights_of(package)
    assert [weight.name for weight in found] == ["shared", "cast", "sparse"]
    assert [weight.is_part for weight in found] == [True, False, False]
    readers = {weight.name: shown_consumers(weight.consumers) for weight in found}
    assert all(len(shown) == 1 and shown[0].startswith("identity(") for shown in readers.values())

    rows = inspect_weights(shared_part).rows
    assert {row.name: row.consumers for row in rows} == readers
    listed = get_weights_metadata(shared_part)
    assert list(listed) == list(readers)
    assert [[child.op_type for child in item.child_ops] for item in listed.values()] == [
        ["identity"]
    ] * 3
    subject = Subject.of(package, None)
    assert [weight.name for weight in subject.plain] == ["shared"]
    assert [weight.name for weight in subject.compressed] == ["cast", "sparse"]
    for joint in (False, True):
        config = OptimizationConfig(OpPalettizerConfig(nbits=4))
        result = palettize(
            shared_part, config, output=tmp_path / "out.mlpackage", joint_compression=joint
        )
        assert {row.name: row.consumers for row in result.report.rows} == readers
        assert result.report["shared"].reason == "part of something compressed already"
        assert [row.name for row in result.report.palettized] == ["sparse"] * joint
    dense = decompress(shared_part, tmp_path / "dense.mlpackage")
    assert [weight.name for weight in dense.weights] == ["cast", "sparse"]
    assert [row.name for row in inspect_weights(dense).rows] == ["shared", "cast", "sparse"]


def test_no_rule_advises_to_compress_what_cannot_be_compressed(shared_part):
    findings = lint(shared_part, select=["elementwise-constant", "uncompressed-share"]).findings
    assert not [finding for finding in findings if finding.place.weight == "shared"]
    assert not [finding for finding in findings if "shared" in finding.what]


def test_bytes_that_weights_share_count_once(shared_part):
    found, _ = weights_of(open_package(shared_part))
    size = SHAPE[0] * SHAPE[1]
    assert [weight.nbytes for weight in found] == [2 * size, 2 * size, size + size // 8]
    assert [weight.plain_nbytes for weight in found] == [2 * size, 4 * size, 2 * size]
    assert bytes_once(found) == 2 * size + size + size // 8


def test_sizes_are_those_of_plain_weights(shared_part):
    package = open_package(shared_part)
    size = SHAPE[0] * SHAPE[1]
    assert [len(weights_of(package, smallest=n)[0]) for n in (0, size, size + 1)] == [3, 3, 0]


def mask_of(value, operation, tmp_path):
    def body(x):
        constant = mb.const(val=value, name="w")
        if operation == "add":
            return mb.add(x=x, y=constant)
        return mb.matmul(x=x, y=constant)

    path = saved(converted(body, (64, 64), "iOS16"), tmp_path / "mask.mlpackage")
    (weight,) = [weight for weight in weights(path) if weight.name == "w"]
    return is_mask(weight, weight.value())


def of(*values):
    """[64, 64] float16 of the values in turn; the last of them once, at the very end."""
    array = np.resize(np.array(values, np.float16), (64, 64))
    array[-1, -1] = values[-1]
    return array


@pytest.mark.parametrize(
    ("value", "mask"),
    [
        (of(0, -1e4), True),
        (of(0, -1000), True),
        (of(0, -65504), True),
        (of(-3e4, -3e4), False),
        (of(0, 1), True),
        (of(1, 1), False),
        (of(0, -999), False),
        (of(0, 1000), False),
        (of(0, -1), False),
        (of(0, 0.5), False),
        (of(0, 1, -1e4), False),
        (of(0, -1e4, -2e4), False),
        (of(1, -1e4), False),
    ],
)
def test_masks_are_zero_and_one_extreme(value, mask, tmp_path):
    assert mask_of(value, "add", tmp_path) == mask


def test_what_a_matmul_reads_is_no_mask(tmp_path):
    assert not mask_of(of(0, 1), "matmul", tmp_path)


def test_a_mask_is_judged_to_its_end(tmp_path):
    """The part that gives a long weight away comes last."""
    value = np.zeros((512, 256), np.float16)
    value[:, ::2] = -1e4
    halves = np.zeros((512, 256), np.float16)
    halves[256:] = -1e4  # no zero anywhere in the second half
    other = value.copy()
    other[-1, -1] = 0.25

    def body(x):
        x = mb.add(x=x, y=mb.const(val=value, name="mask"))
        x = mb.add(x=x, y=mb.tanh(x=mb.add(x=x, y=mb.const(val=halves, name="halves"))))
        return mb.add(x=x, y=mb.const(val=other, name="no_mask"))

    path = saved(converted(body, (512, 256), "iOS16"), tmp_path / "b.mlpackage")
    found = {weight.name: weight for weight in weights(path)}
    assert is_mask(found["mask"], value)
    assert is_mask(found["halves"], halves)
    assert not is_mask(found["no_mask"], other)
