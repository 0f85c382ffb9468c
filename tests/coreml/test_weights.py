"""The stored weights of a model, and which of them are masks."""

from __future__ import annotations

import numpy as np
import pytest

from mlopt.coreml.weights import SMALLEST, is_mask, shown_consumers, weights_of
from mlopt.mil.package import open_package
from tests import judges, models
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
    assert len(first.constants) == len(first.consumers) == 2
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
