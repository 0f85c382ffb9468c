"""Tables in 8 bits: the operations that coremltools writes for them, and what a report says."""

from __future__ import annotations

import attrs
import coremltools as ct
import coremltools.optimize.coreml as reference
import numpy as np
import pytest

from mlopt.coreml import OpPalettizerConfig, decompress_weights, palettize, preview
from mlopt.errors import TargetError
from mlopt.palette import PaletteSpec
from mlopt.palette import palettize as palettize_array
from tests import judges
from tests.coreml.conftest import (
    GROUP,
    Cell,
    by_name,
    chain,
    form,
    global_config,
    nothing_beside,
    operations_by_name,
    quietly,
    reference_palettized,
    saved,
    spec_and_weights,
    squared_error,
    stored,
)

CELLS = [
    Cell("kmeans", 4),
    Cell("kmeans", 3, grouped=True),
    Cell("kmeans", 8),
    Cell("kmeans", 3, d=2),
    Cell("kmeans", 6, grouped=True, scaled=True),
    Cell("kmeans", 4, grouped=True, d=4, scaled=True),
    Cell("uniform", 4),
    Cell("uniform", 6, grouped=True),
    Cell("custom", 4, scaled=True),
]
LUT_DTYPES = ("int8", "uint8")


@attrs.frozen(eq=False)
class Run:
    """What mlopt made of a model with a weight for each of ``CELLS``."""

    weights: dict
    source: object
    report: object
    output: object
    config: object


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A function that gives the run with tables of a dtype, made once."""
    folder = tmp_path_factory.mktemp("integer")
    shapes = [(64, 80), (80, 64)]
    weights = {cell.name: cell.weight(shapes[i % 2]) for i, cell in enumerate(CELLS)}
    source = saved(chain(weights, "iOS18"), folder / "source.mlpackage")
    runs = {}

    def make(lut_dtype):
        if lut_dtype not in runs:
            config = by_name({c.name: c.options | {"lut_dtype": lut_dtype} for c in CELLS})
            result = palettize(
                source, config, output=folder / f"{lut_dtype}.mlpackage", strict=True
            )
            runs[lut_dtype] = Run(weights, source, result.report, result.path, config)
        return runs[lut_dtype]

    return make


def of_array(cell, lut_dtype, weight):
    """What the room of arrays makes of a weight."""
    spec = PaletteSpec(
        mode=cell.mode,
        nbits=cell.options["nbits"],
        channel_axis=0 if cell.grouped or cell.d > 1 else None,
        group_size=GROUP if cell.grouped else None,
        cluster_dim=cell.d,
        scale_axis=0 if cell.scaled else None,
        lut_function=cell.options["lut_function"],
        lut_dtype=lut_dtype,
    )
    return palettize_array(weight, spec)


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
def test_everyone_reads_the_same_numbers(lut_dtype, run_of):
    run = run_of(lut_dtype)
    judges.load_program(run.output)
    values = judges.decompressed_constants(run.output)
    model = quietly(ct.models.MLModel, str(run.output), skip_model_load=True)
    theirs = judges.decompressed_constants(quietly(reference.decompress_weights, model))
    ours = judges.decompressed_constants(decompress_weights(model))
    for cell in CELLS:
        palette = stored(run.output, cell.name)
        expected, distortion = of_array(cell, lut_dtype, run.weights[cell.name])
        assert palette.codes.dtype == lut_dtype
        assert (palette.offset is None) == (lut_dtype == "int8")
        assert palette.codes.tobytes() == expected.quantized.codes.tobytes()
        dense = expected.dequantize()
        for value in (values, theirs, ours):
            assert value[cell.name].dtype == np.float16
            np.testing.assert_array_equal(value[cell.name], dense)
        np.testing.assert_array_equal(palette.dense, dense)
        assert run.report[cell.name].snr_db == distortion.snr_db
    changed = [cell.name for cell in CELLS]
    assert judges.messages_equal_except(run.source, run.output, changed) == []


@pytest.mark.parametrize("lut_dtype", LUT_DTYPES)
def test_rows_say_what_is_stored(lut_dtype, run_of):
    run = run_of(lut_dtype)
    foreseen = preview(run.source, run.config)
    for cell in CELLS:
        row, palette = run.report[cell.name], stored(run.output, cell.name)
        assert row.lut_dtype == lut_dtype
        assert row.form.endswith(f"{lut_dtype} table")
        assert row.bytes_after == palette.nbytes
        assert row.bits_per_weight == 8 * palette.nbytes / run.weights[cell.name].size
        assert row.note is None
        assert foreseen[cell.name].lut_dtype == lut_dtype
        if cell.mode != "custom":
            assert foreseen[cell.name].bytes_after == row.bytes_after
            assert foreseen[cell.name].note is None


@pytest.mark.parametrize(("lut_dtype", "mode"), [("int8", "linear_symmetric"), ("uint8", "linear")])
def test_operations_are_what_coremltools_writes(lut_dtype, mode, run_of):
    """Its way to such a table: palettize, then quantize the tables by joint compression."""
    run = run_of(lut_dtype)
    cells = [cell for cell in CELLS if not cell.scaled]
    model = quietly(ct.models.MLModel, str(run.source), skip_model_load=True)
    palettized = reference_palettized(model, {cell.name: cell.options for cell in cells})
    config = reference.OptimizationConfig(
        global_config=reference.OpLinearQuantizerConfig(
            mode=mode, dtype=lut_dtype, granularity="per_tensor", weight_threshold=0
        )
    )
    theirs = quietly(reference.linear_quantize_weights, palettized, config, joint_compression=True)
    _, our_folder = spec_and_weights(run.output)
    _, their_folder = spec_and_weights(theirs)
    ours, wanted = operations_by_name(run.output), operations_by_name(theirs)
    for cell in cells:
        lut, their_lut = ours[cell.name], wanted[f"{cell.name}_palettized"]
        assert form(lut, our_folder) == form(their_lut, their_folder)
        table, their_table = (
            operations[op.inputs["lut"].arguments[0].name]
            for operations, op in ((ours, lut), (wanted, their_lut))
        )
        assert form(table, our_folder) == form(their_table, their_folder)
        assert table.outputs[0].name == f"{cell.name}_lut"
        # its tables are the float ones, rounded
        values = judges.decompressed_constants(theirs)[f"{cell.name}_palettized"]
        error = squared_error(run.weights[cell.name], stored(run.output, cell.name).dense)
        assert error <= squared_error(run.weights[cell.name], values) * 1.002


def test_a_name_that_is_taken_is_not_taken_again(tmp_path):
    weights = {"a": Cell("kmeans", 4).weight((64, 80)), "a_lut": Cell("kmeans", 2).weight((80, 64))}
    source = saved(chain(weights, "iOS18"), tmp_path / "in.mlpackage")
    options = {"lut_dtype": "int8", "enable_per_channel_scale": True}
    out = palettize(source, global_config(**options), output=tmp_path / "out.mlpackage").path
    values = judges.decompressed_constants(out)
    for name in weights:
        np.testing.assert_array_equal(values[name], stored(out, name).dense)
    names = set(operations_by_name(out))
    assert {"a_lut", "a_lut_1", "a_palettized", "a_lut_lut", "a_lut_palettized"} <= names


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17"])
def test_older_targets_lack_it(target, tmp_path):
    source = saved(
        chain({"w": Cell("kmeans", 4).weight((64, 80))}, target), tmp_path / "in.mlpackage"
    )
    config = global_config(lut_dtype="int8")
    for run in (palettize, preview):
        with pytest.raises(TargetError) as refusal:
            run(source, config)
        message = str(refusal.value)
        assert "4-bit kmeans, per tensor, int8 table needs iOS18" in message
        assert "Use lut_dtype=None, or minimum_deployment_target=iOS18" in message
    assert nothing_beside(tmp_path, ["in.mlpackage"])
    result = palettize(
        source,
        config,
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target="iOS18",
    )
    assert result.report.target_after == "iOS18"
    assert "int8 table of w needs iOS18" in result.report.target_reason
    np.testing.assert_array_equal(
        judges.decompressed_constants(result.path)["w"], stored(result.path, "w").dense
    )


@pytest.mark.parametrize(("dtype", "smaller"), [(np.float16, 4), (np.float32, None)])
def test_a_table_that_grows_is_told(dtype, smaller, tmp_path):
    weight = Cell("kmeans", 1).weight((64, 80)).astype(dtype)
    source = saved(chain({"w": weight}, "iOS18"), tmp_path / "in.mlpackage")
    for lut_dtype in LUT_DTYPES:
        config = global_config(nbits=1, lut_dtype=lut_dtype)
        for report in (preview(source, config), palettize(source, config).report):
            told = smaller is not None and lut_dtype == "uint8"
            note = report["w"].note or ""
            assert (f"a table in float16 would be smaller: {smaller} bytes, not 5" in note) == told
            size = 2 + np.dtype(dtype).itemsize + (lut_dtype == "uint8")
            assert report["w"].bytes_after == 64 * 80 // 8 + size


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_tiny_weights_keep_tables_of_floats(target, tmp_path):
    weight = (Cell("kmeans", 4).weight((64, 80)) / 100).astype(np.float16)
    source = saved(chain({"w": weight}, target), tmp_path / "in.mlpackage")
    config = global_config(lut_dtype="uint8")
    result = palettize(source, config, output=tmp_path / "out.mlpackage")
    for report in (result.report, preview(source, config)):
        row = report["w"]
        assert row.lut_dtype is None
        assert "the table stays in float16: the weights are so small" in row.note
        assert row.bytes_after == 64 * 80 // 2 + 32
        assert report.target_after == target
    assert stored(result.path, "w").codes is None


def test_a_tiny_table_of_a_function_stays_in_floats(tmp_path):
    source = saved(
        chain({"w": Cell("kmeans", 4).weight((64, 80))}, "iOS18"), tmp_path / "in.mlpackage"
    )
    rule = OpPalettizerConfig(
        mode="custom",
        lut_function=lambda w: ([-1e-3, 1e-3], (w > 0).astype(np.uint8)),
        lut_dtype="int8",
    )
    result = palettize(source, by_name({"w": rule}), output=tmp_path / "out.mlpackage")
    row = result.report["w"]
    assert (row.lut_dtype, row.bytes_after) == (None, stored(result.path, "w").nbytes)
    assert "the table stays in float16" in row.note


def test_all_zeros(tmp_path):
    source = saved(chain({"w": np.zeros((64, 80), np.float16)}, "iOS18"), tmp_path / "in.mlpackage")
    result = palettize(source, global_config(lut_dtype="int8"), output=tmp_path / "out.mlpackage")
    assert result.report["w"].lut_dtype == "int8"
    assert not judges.decompressed_constants(result.path)["w"].any()
