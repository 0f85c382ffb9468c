"""Plain weights in the place of palettes."""

from __future__ import annotations

import math

import coremltools as ct
import numpy as np
import pytest

from mlopt.coreml import decompress, decompress_weights, palettize
from mlopt.errors import ModelFormatError
from mlopt.mil.opening import open_package
from tests import judges, models
from tests.coreml.conftest import (
    GROUP,
    Cell,
    by_name,
    chain,
    expressible,
    global_config,
    nothing_beside,
    operations_by_name,
    palette_of,
    quietly,
    saved,
)


@pytest.mark.parametrize("target", models.TARGETS)
def test_every_cell_comes_back_as_coremltools_has_it(target, matrix_of, tmp_path):
    matrix = matrix_of(target)
    dense = decompress(matrix.output, tmp_path / "dense.mlpackage")
    ours = judges.decompressed_constants(dense)
    operations = operations_by_name(dense)
    for cell in expressible(target):
        assert operations[cell.name].type == "const"
        assert not operations[cell.name].inputs
        assert set(operations[cell.name].attributes) == {"name", "val"}
        np.testing.assert_array_equal(ours[cell.name], matrix.decompressed[cell.name])
    assert not [op.type for op in operations.values() if op.type.startswith("constexpr_")]
    # As the source in everything but the numbers: also no operation of a scale is left.
    raised = target == "iOS15"
    differences = judges.messages_equal_except(matrix.source, dense, raised=raised)
    assert all(line.endswith("the blob's bytes differ") for line in differences)
    lossless = [c for c in expressible(target) if matrix.report[c.name].snr_db == math.inf]
    assert len(differences) == len(expressible(target)) - len(lossless)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_what_coremltools_wrote_is_decompressed_to_its_numbers(target, matrix_of):
    """Its names differ from ours, its forms do not."""
    matrix = matrix_of(target)
    if target == "iOS18":
        # What it makes of a scale it takes along the wrong axis, but it is a scale all the same.
        assert any(name.endswith("_pcs") for name in matrix.reference_decompressed)
    ours = judges.decompressed_constants(decompress_weights(matrix.reference))
    wanted = {
        name: value
        for name, value in matrix.reference_decompressed.items()
        if name.endswith(("_palettized", "_pcs"))
        and f"{name}_pcs" not in matrix.reference_decompressed
    }
    assert len(wanted) > 10
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.short("convolutional", "redefined", "control_flow", "stateful")
@pytest.mark.parametrize("kind", models.kinds("iOS18"))
def test_models_of_every_kind(kind, package_of, tmp_path):
    source = package_of(kind, "iOS18")
    options = {"nbits": 6, "granularity": "per_grouped_channel", "group_size": 4}
    options |= {"cluster_dim": 2, "enable_per_channel_scale": True}
    small = palettize(source, global_config(**options), output=tmp_path / "small.mlpackage")
    assert small.report.palettized
    dense = decompress(small.path, tmp_path / "dense.mlpackage")
    compressed, plain = (judges.decompressed_constants(path) for path in (small.path, dense))
    original = judges.decompressed_constants(source)
    names = {row.name for row in small.report.palettized}
    found = 0
    for key, value in original.items():
        if key.rpartition("/")[2] in names:
            found += 1
            np.testing.assert_array_equal(plain[key], compressed[key])
            assert plain[key].dtype == value.dtype
    assert found >= len(names)
    differences = judges.messages_equal_except(source, dense)
    assert all(line.endswith("the blob's bytes differ") for line in differences)
    assert len(differences) == found


def test_lossless_palettes_come_back_bit_for_bit(tmp_path):
    weights = {"w1": Cell("unique", 4).weight((64, 80))}
    weights["w2"] = Cell("unique", 4, d=2).weight((80, 64))
    source = saved(chain(weights, "iOS18"), tmp_path / "source.mlpackage")
    rules = {"w1": Cell("unique", 4).options, "w2": Cell("unique", 4, d=2).options}
    small = palettize(source, by_name(rules), output=tmp_path / "small.mlpackage")
    assert len(small.report.palettized) == 2
    dense = decompress(small.path, tmp_path / "dense.mlpackage")
    assert judges.messages_equal_except(source, dense) == []


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_equal_blobs_of_different_shapes_keep_their_shapes(target, tmp_path):
    """Both palettes have the same indices and tables, and so the same blobs."""
    weight = Cell("kmeans", 4).weight((64, 80))
    weights = {"wide": weight, "tall": weight.reshape(80, 64)}
    source = saved(chain(weights, target), tmp_path / "source.mlpackage")
    small = palettize(source, global_config(), output=tmp_path / "small.mlpackage")
    assert len(small.report.palettized) == 2
    dense = decompress(small.path, tmp_path / "dense.mlpackage")
    values = judges.decompressed_constants(dense)
    np.testing.assert_array_equal(values["tall"].ravel(), values["wide"].ravel())
    assert values["wide"].shape == (64, 80)
    assert values["tall"].shape == (80, 64)


def test_shared_weights_stay_shared(package_of, tmp_path):
    small = palettize(
        package_of("multifunction", "iOS18"), global_config(), output=tmp_path / "a.mlpackage"
    )
    dense = decompress(small.path, tmp_path / "b.mlpackage")
    for name, shared in (("first_weight_to_fp16", True), ("head_0_weight_to_fp16", False)):
        offsets = {
            operations_by_name(dense, function)[name].attributes["val"].blobFileValue.offset
            for function in ("base", "adapted")
        }
        assert (len(offsets) == 1) == shared


def test_a_palette_that_another_operation_reads_stays(tmp_path):
    """The table's own output is used beside the scaled one: both are constants afterwards."""
    weight = Cell("kmeans", 4).weight((64, 80))
    source = saved(chain({"w": weight}, "iOS18"), tmp_path / "source.mlpackage")
    rule = {"nbits": 4, "enable_per_channel_scale": True}
    small = palettize(source, by_name({"w": rule}), output=tmp_path / "small.mlpackage").path
    model_path = small / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(model_path.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    extra = block.operations.add(type="identity")
    extra.inputs["x"].arguments.add(name="w_palettized")
    extra.outputs.add(
        name="unscaled",
        type=next(
            op.outputs[0].type for op in block.operations if op.outputs[0].name == "w_palettized"
        ),
    )
    model_path.write_bytes(spec.SerializeToString())
    wanted = judges.decompressed_constants(small)
    dense = judges.decompressed_constants(decompress(small, tmp_path / "dense.mlpackage"))
    for name in ("w", "w_palettized"):
        np.testing.assert_array_equal(dense[name], wanted[name])


def test_a_plain_model_stays_what_it_is(package_of, tmp_path):
    source = package_of("classifier", "iOS15")
    dense = decompress(source, tmp_path / "dense.mlpackage")
    assert judges.messages_equal_except(source, dense) == []


def test_decompress_weights_returns_a_model_and_leaves_its_argument(package_of):
    model = quietly(ct.models.MLModel, str(package_of("stateful", "iOS18")), skip_model_load=True)
    from mlopt.coreml import palettize_weights

    small = palettize_weights(model, global_config())
    before = small.get_spec().SerializeToString(deterministic=True)
    dense = decompress_weights(small)
    assert small.get_spec().SerializeToString(deterministic=True) == before
    assert isinstance(dense, ct.models.MLModel)
    assert decompress_weights(mlmodel=small).get_spec() == dense.get_spec()
    assert judges.load_program(dense) is not None


def test_what_was_done_is_told(tmp_path):
    weights = {"a": Cell("kmeans", 4).weight((64, 80)), "b": Cell("kmeans", 2).weight((80, 64))}
    source = saved(chain(weights, "iOS18"), tmp_path / "source.mlpackage")
    small = palettize(source, by_name({"a": {"nbits": 4}}), output=tmp_path / "small.mlpackage")
    calls = []
    result = decompress(
        small.path, tmp_path / "dense.mlpackage", progress=lambda *call: calls.append(call)
    )
    assert result.path == tmp_path / "dense.mlpackage"
    (weight,) = result.weights
    assert (weight.name, weight.shape, weight.dtype) == ("a", (64, 80), "fp16")
    assert weight.functions == ("main",)
    assert weight.nbytes == 64 * 80 * 2
    assert weight.compression.nbytes == small.report["a"].bytes_after
    assert calls == [(64 * 80, 64 * 80, "a")]
    assert decompress(source, tmp_path / "again.mlpackage").weights == ()


def test_nothing_is_left_of_what_is_damaged(tmp_path):
    weights = {"a": Cell("kmeans", 4).weight((64, 80))}
    source = saved(chain(weights, "iOS18"), tmp_path / "source.mlpackage")
    small = palettize(source, by_name({"a": {"nbits": 4}}), output=tmp_path / "small.mlpackage")
    model_path = small.path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model.FromString(model_path.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    op = next(op for op in block.operations if op.type.startswith("constexpr_"))
    del op.inputs["lut"]
    model_path.write_bytes(spec.SerializeToString())
    with pytest.raises(ModelFormatError, match=r"small\.mlpackage: .* 'a' .*lut.* is missing"):
        decompress(small.path, tmp_path / "dense.mlpackage")
    assert nothing_beside(tmp_path, ["source.mlpackage", "small.mlpackage"])


def test_palette_of_has_the_equations_of_a_palette(matrix_of):
    matrix = matrix_of("iOS18")
    (program,) = open_package(matrix.output).programs
    by_output = {node.outputs[0].name: node for node in program.nodes() if node.outputs}
    for cell in expressible("iOS18"):
        palette = palette_of(by_output[cell.name])
        shape = matrix.weights[cell.name].shape
        assert palette.shape == shape
        assert palette.nbits == cell.nbits
        assert palette.cluster_dim == cell.d
        assert palette.table_shape == (shape[0] // GROUP if cell.grouped else 1, 1)
        assert (palette.scale is not None) == cell.scaled
        assert palette.nbytes == matrix.report[cell.name].bytes_after
