"""Where the operations of a palette stand, what they are called, and what they share."""

from __future__ import annotations

import functools
import shutil

import coremltools as ct
import numpy as np
import pytest

from mlopt.coreml import palettize
from tests import judges
from tests.coreml.conftest import (
    NBITS,
    Cell,
    by_name,
    chain,
    converted,
    form,
    global_config,
    mb,
    operations_by_name,
    saved,
    spec_and_weights,
    stored,
)

SCALED = {"nbits": 4, "enable_per_channel_scale": True}


def order(package):
    spec, _ = spec_and_weights(package)
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return [op.outputs[0].name for op in block.operations]


@pytest.fixture
def pair(tmp_path):
    weights = {"a": Cell("kmeans", 4).weight((64, 80)), "b": Cell("kmeans", 2).weight((80, 64))}
    return saved(chain(weights, "iOS18"), tmp_path / "pair.mlpackage")


def test_an_operation_takes_the_place_and_the_name_of_the_const(pair, tmp_path):
    out = palettize(pair, global_config(), output=tmp_path / "out.mlpackage").path
    assert order(out) == order(pair)
    before, after = operations_by_name(pair), operations_by_name(out)
    for name in ("a", "b"):
        assert after[name].type == "constexpr_lut_to_dense"
        assert after[name].outputs[0] == before[name].outputs[0]
        assert after[name].attributes["name"] == before[name].attributes["name"]
        assert "val" not in after[name].attributes


def test_a_scale_follows_its_table(pair, tmp_path):
    out = palettize(pair, by_name({"a": SCALED}), output=tmp_path / "out.mlpackage").path
    names = order(pair)
    names.insert(names.index("a"), "a_palettized")
    assert order(out) == names
    after = operations_by_name(out)
    assert after["a"].inputs["data"].arguments[0].name == "a_palettized"
    assert after["a"].outputs[0].type == after["a_palettized"].outputs[0].type
    assert set(after["a"].inputs) == {"data", "scale"}


def test_a_name_that_is_taken_is_not_taken_again(tmp_path):
    weights = {"a": Cell("kmeans", 4).weight((64, 80))}
    weights["a_palettized"] = Cell("kmeans", 2).weight((80, 64))
    weights["a_palettized_1"] = Cell("kmeans", 3).weight((64, 80))
    source = saved(chain(weights, "iOS18"), tmp_path / "in.mlpackage")
    config = by_name({name: SCALED for name in weights})
    out = palettize(source, config, output=tmp_path / "out.mlpackage").path
    names = order(out)
    assert len(set(names)) == len(names)
    values = judges.decompressed_constants(out)
    for name, weight in weights.items():
        palette = stored(out, name)
        np.testing.assert_array_equal(values[name], palette.dense)
        assert np.corrcoef(values[name].ravel().astype(float), weight.ravel())[0, 1] > 0.98


def test_nested_blocks(package_of, tmp_path):
    source = package_of("control_flow", "iOS18")
    result = palettize(source, global_config(**SCALED), output=tmp_path / "out.mlpackage")
    changed = {row.name for row in result.report.palettized}
    assert {"outer", "then_weight", "else_weight", "loop_weight", "inner_weight"} <= changed
    values = judges.decompressed_constants(result.path)
    for name in changed:
        np.testing.assert_array_equal(values[name], stored(result.path, name).dense)


def test_equal_palettes_are_stored_once(tmp_path):
    weight = Cell("kmeans", 4).weight((64, 80))
    weights = {"first": weight, "second": weight.reshape(80, 64)}
    source = saved(chain(weights, "iOS18"), tmp_path / "in.mlpackage")
    out = palettize(source, global_config(), output=tmp_path / "out.mlpackage").path
    operations = operations_by_name(out)
    for key in ("indices", "lut"):
        offsets = {
            operations[name].inputs[key].arguments[0].value.blobFileValue.offset for name in weights
        }
        assert len(offsets) == 1
    assert judges.package_bytes(out) < judges.package_bytes(source) / 2


@functools.cache
def added(shape, target):
    """A model that adds a weight of any shape."""
    value = (np.random.default_rng(0).standard_normal(shape) / 8).astype(np.float16)

    def body(x):
        return mb.add(x=x, y=mb.const(val=value, name="w"))

    return converted(body, shape, target)


@pytest.mark.parametrize(
    ("target", "nbits"),
    [("iOS16", nbits) for nbits in (1, 2, 4, 6, 8)] + [("iOS18", nbits) for nbits in NBITS],
)
@pytest.mark.parametrize("shape", [(3, 5), (7, 11, 13), (5, 3, 1, 1), (2, 3, 4, 5, 6)])
def test_odd_shapes_and_the_bits_at_the_end(target, shape, nbits, tmp_path):
    source = saved(added(shape, target), tmp_path / "in.mlpackage")
    rule = {"nbits": nbits, "weight_threshold": 0}
    result = palettize(source, by_name({"w": rule}), output=tmp_path / "out.mlpackage")
    assert result.report["w"].is_palettized
    palette = stored(result.path, "w")
    assert palette.shape == shape
    np.testing.assert_array_equal(judges.decompressed_constants(result.path)["w"], palette.dense)
    assert judges.messages_equal_except(source, result.path, ["w"]) == []


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("nbits", [1, 8])
def test_float32_tables_are_float32(target, nbits, tmp_path):
    weight = Cell("kmeans", 4).weight((64, 80)).astype(np.float32) / 3
    source = saved(chain({"w": weight}, target), tmp_path / "in.mlpackage")
    rule = {"nbits": nbits, "enable_per_channel_scale": target == "iOS18"}
    result = palettize(source, by_name({"w": rule}), output=tmp_path / "out.mlpackage")
    palette = stored(result.path, "w")
    assert palette.table.dtype == np.float32
    assert target == "iOS16" or palette.scale.dtype == np.float32
    value = judges.decompressed_constants(result.path)["w"]
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, palette.dense)
    op = operations_by_name(result.path)["w"]
    _, folder = spec_and_weights(result.path)
    described = form(op, folder)
    if target == "iOS16":
        assert described["attributes"]["lut"]["dtype"] == "FLOAT32"
    else:
        assert described["inputs"]["scale"][0]["dtype"] == "FLOAT32"


def test_attributes_beside_the_value_stay(tmp_path, pair):
    path = pair / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (op,) = [op for op in block.operations if op.outputs[0].name == "a"]
    op.attributes["origin"].CopyFrom(op.attributes["name"])
    op.attributes["origin"].docString = "from elsewhere"
    path.write_bytes(spec.SerializeToString())
    out = palettize(
        pair, by_name({"a": SCALED, "b": SCALED}), output=tmp_path / "out.mlpackage"
    ).path
    after = operations_by_name(out)
    assert after["a"].attributes["origin"].docString == "from elsewhere"
    assert set(after["a_palettized"].attributes) == {"name"}


def test_a_model_without_a_weight_file_gets_one(tmp_path):
    """All its values stand in the message."""
    value = (np.random.default_rng(0).standard_normal((64, 64)) / 8).astype(np.float16)

    def body(x):
        return mb.matmul(x=x, y=mb.const(val=value, name="w"))

    source = saved(converted(body, (1, 64), "iOS16"), tmp_path / "in.mlpackage")
    path = source / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    for op in block.operations:
        stands = op.attributes["val"] if op.type == "const" else None
        if stands is not None and stands.HasField("blobFileValue"):
            stands.immediateValue.tensor.bytes.values = value.tobytes()
    path.write_bytes(spec.SerializeToString())
    shutil.rmtree(source / "Data" / "com.apple.CoreML" / "weights")
    result = palettize(source, global_config(), output=tmp_path / "out.mlpackage")
    assert result.report["w"].is_palettized
    assert stored(result.path, "w").nbits == 4
    np.testing.assert_array_equal(
        judges.decompressed_constants(result.path)["w"], stored(result.path, "w").dense
    )
