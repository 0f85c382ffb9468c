"""Every request for every target: the form that coremltools writes, or an early refusal."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from mlopt.coreml import OptimizationConfig, foreseen_package_bytes, palettize, preview
from mlopt.coreml.inspection import package_bytes
from mlopt.errors import ConfigError, TargetError
from tests import judges, models
from tests.coreml.conftest import (
    GROUP,
    Cell,
    all_cells,
    by_name,
    chain,
    expressible,
    form,
    nothing_beside,
    reference_dense,
    saved,
    spec_and_weights,
    squared_error,
    stored,
)

TARGETS = models.TARGETS
OLD = ("iOS15", "iOS16", "iOS17")
EXPRESSIBLE = [(target, cell) for target in TARGETS for cell in expressible(target)]
REFUSED = [(target, cell) for target in OLD for cell in all_cells() if not cell.is_old_form]


def ids(value):
    return value.name if isinstance(value, Cell) else str(value)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The path of a model made once a target: of any numbers [64, 80], and of two [80, 64]."""
    folder = tmp_path_factory.mktemp("small")
    many = Cell("kmeans", 4).weight((64, 80))
    two = np.where(Cell("kmeans", 8).weight((80, 64)) < 0, np.float16(-0.25), np.float16(0.25))
    weights = {"many": many, "two": two}
    made: dict[str, Path] = {}

    def package(target):
        if target not in made:
            path = folder / f"{target}.mlpackage"
            made[target] = saved(chain(weights, target), path)
        return made[target]

    return package


def subject(cell):
    """The weight of ``small`` that a cell can be had for."""
    return "two" if cell.mode == "unique" else "many"


@pytest.fixture
def no_clustering(monkeypatch):
    """Whatever makes a palette fails, but for a look at whether ``unique`` can be had."""

    plain = sys.modules["mlopt.statistics.fitting"]
    look = plain.palettize

    def fail(*args, **kwargs):
        raise AssertionError("a weight was clustered")

    def look_or_fail(weight, spec, **kwargs):
        return (look if spec.mode == "unique" else fail)(weight, spec, **kwargs)

    monkeypatch.setattr(plain, "palettize", look_or_fail)
    monkeypatch.setattr(sys.modules["mlopt.coreml.execution"], "compute", fail)


# --- the right form -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_every_cell_is_palettized(target, matrix_of):
    matrix = matrix_of(target)
    rows = {row.name: row for row in matrix.report if len(row.shape) > 1}
    assert set(rows) == {cell.name for cell in matrix.cells}
    assert {name for name, row in rows.items() if not row.is_palettized} == set()
    assert matrix.report.target_after == max(target, "iOS16")


@pytest.mark.parametrize("target", TARGETS)
def test_the_size_is_foreseen(target, matrix_of):
    matrix = matrix_of(target)
    config = by_name({cell.name: cell.config for cell in matrix.cells})
    assert foreseen_package_bytes(matrix.source, config) == package_bytes(matrix.output)


@pytest.mark.parametrize("target", TARGETS)
def test_coremltools_reads_the_weight_file(target, matrix_of):
    from coremltools.libmilstoragepython import _BlobStorageReader

    matrix = matrix_of(target)
    _, folder = spec_and_weights(matrix.output)
    reader = _BlobStorageReader(str(folder / "weight.bin"))
    readers = {
        "FLOAT16": reader.read_fp16_data,
        "UINT8": reader.read_uint8_data,
        "UINT1": reader.read_uint1_data,
        "UINT2": reader.read_uint2_data,
        "UINT3": reader.read_uint3_data,
        "UINT4": reader.read_uint4_data,
        "UINT6": reader.read_uint6_data,
    }
    seen = set()
    for op in matrix.operations.values():
        if not op.type.startswith("constexpr_"):
            continue
        values = [a.arguments[0].value for a in op.inputs.values()] or op.attributes.values()
        for value in values:
            if value.WhichOneof("value") != "blobFileValue":
                continue
            dtype = form_dtype(value)
            theirs = np.asarray(readers[dtype](value.blobFileValue.offset))
            _, _, data = judges.read_blob(folder, value.blobFileValue)
            if dtype == "FLOAT16":
                assert theirs.astype(np.uint16).tobytes() == data
            else:
                nbits = int(dtype.removeprefix("UINT"))
                bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
                bits = bits[: theirs.size * nbits].reshape(-1, nbits)
                np.testing.assert_array_equal(theirs.ravel(), (bits << np.arange(nbits)).sum(1))
            seen.add(dtype)
    subbyte = {f"UINT{nbits}" for nbits in (1, 2, 3, 4, 6)} if target == "iOS18" else set()
    assert seen == {"FLOAT16", "UINT8"} | subbyte


def form_dtype(value):
    from coremltools.proto import MIL_pb2

    return MIL_pb2.DataType.Name(value.type.tensorType.dataType)


@pytest.mark.parametrize(("target", "cell"), EXPRESSIBLE, ids=ids)
@pytest.mark.covering(2)
def test_the_form_is_the_one_asked_for(target, cell, matrix_of):
    matrix = matrix_of(target)
    shape, palette = matrix.weights[cell.name].shape, stored(matrix.output, cell.name)
    nbits = 4 if cell.nbits == 3 and target != "iOS18" else cell.nbits
    groups = shape[0] // GROUP if cell.grouped else 1
    assert palette.nbits == nbits
    assert palette.table.shape == (groups, 1, 1 << nbits, cell.d)
    assert palette.indices.shape == (shape[0] // cell.d, shape[1])
    assert palette.vector_axis == (0 if cell.d > 1 else None)
    assert palette.table.dtype == np.float16
    if cell.scaled:
        assert palette.scale.shape == (shape[0], 1)
        assert palette.scale.dtype == np.float16
        largest = np.abs(matrix.weights[cell.name]).max(axis=1, keepdims=True)
        np.testing.assert_array_equal(palette.scale, largest)
    else:
        assert palette.scale is None
    row = matrix.report[cell.name]
    assert (row.mode, row.nbits, row.cluster_dim) == (cell.mode, nbits, cell.d)
    assert row.granularity == ("per_grouped_channel" if cell.grouped else "per_tensor")
    assert row.group_size == (GROUP if cell.grouped else None)
    assert row.per_channel_scale == cell.scaled


@pytest.mark.parametrize(("target", "cell"), EXPRESSIBLE, ids=ids)
@pytest.mark.covering(2)
def test_operations_are_what_coremltools_writes(target, cell, matrix_of):
    matrix = matrix_of(target)
    if cell in matrix.refused_by_reference:
        # What it cannot do itself is compared with a cell that differs only in its mode.
        twin = Cell("kmeans", 4 if target != "iOS18" else cell.nbits, cell.grouped, cell.d, True)
        if target != "iOS18":
            twin = Cell("kmeans", 4)
    else:
        twin = cell
    _, ours_folder = spec_and_weights(matrix.output)
    _, their_folder = spec_and_weights(matrix.reference)
    last = matrix.operations[cell.name]
    ours = {"lut": last}
    theirs = {"lut": matrix.reference_operations[f"{twin.name}_palettized"]}
    if cell.scaled:
        ours = {"lut": matrix.operations[f"{cell.name}_palettized"], "scale": last}
        theirs["scale"] = matrix.reference_operations[f"{twin.name}_palettized_pcs"]
    for part, op in ours.items():
        mine, wanted = form(op, ours_folder), form(theirs[part], their_folder)
        if part == "scale":
            # coremltools scales the other axis, against its own documentation.
            shape = matrix.weights[cell.name].shape
            (value,) = wanted["inputs"]["scale"]
            assert value["shape"] == [1, matrix.weights[twin.name].shape[1]]
            value["shape"], value["bytes"] = [shape[0], 1], 2 * shape[0]
        if twin is not cell and matrix.weights[twin.name].shape != matrix.weights[cell.name].shape:
            mine, wanted = (shapeless(each) for each in (mine, wanted))
        assert mine == wanted
        assert list(op.attributes["name"].immediateValue.tensor.strings.values) == [
            op.outputs[0].name
        ]


def shapeless(described):
    """A form without what depends on the shape of the weight."""
    for values in (described["attributes"].values(), *described["inputs"].values()):
        for value in values:
            if isinstance(value, dict):
                for key in ("shape", "bytes", "padding"):
                    value.pop(key, None)
    return described | {"outputs": None}


@pytest.mark.parametrize(("target", "cell"), EXPRESSIBLE, ids=ids)
@pytest.mark.covering(2)
def test_numbers_are_the_same_to_everyone(target, cell, matrix_of):
    matrix = matrix_of(target)
    theirs = matrix.decompressed[cell.name]
    assert theirs.dtype == np.float16
    np.testing.assert_array_equal(theirs, stored(matrix.output, cell.name).dense)
    np.testing.assert_array_equal(theirs, matrix.palettes[cell.name].dequantize())


@pytest.mark.parametrize(
    ("target", "cell"),
    EXPRESSIBLE,
    ids=ids,
)
@pytest.mark.covering(2)
def test_error_is_at_most_that_of_coremltools(target, cell, matrix_of):
    matrix = matrix_of(target)
    weight = matrix.weights[cell.name]
    error = squared_error(weight, matrix.decompressed[cell.name])
    reference = squared_error(weight, reference_dense(cell, weight))
    vectors = weight.size // cell.d // (weight.shape[0] // GROUP if cell.grouped else 1)
    if cell.mode == "unique" or (vectors == 1 << cell.nbits and not cell.scaled):
        assert error == reference == 0.0
        assert matrix.report[cell.name].snr_db == math.inf
    elif cell.mode == "kmeans":
        # Below 10,000 elements coremltools does not solve exactly, and never heeds the scale.
        assert error < reference
    elif cell.mode == "uniform":
        # Its steps are fixed; coremltools rounds them in float16 once more, which may help a bit.
        assert error <= reference * 1.002
    else:
        # The function decides; it sees the same numbers but for a rounding of w / s.
        assert error <= reference * 1.002


@pytest.mark.parametrize("cell", [c for c in expressible("iOS18") if c.mode == "uniform"], ids=ids)
def test_uniform_tables_are_equal_steps_and_labels_the_nearest(cell, matrix_of):
    matrix = matrix_of("iOS18")
    weight, palette = matrix.weights[cell.name].astype(np.float64), stored(matrix.output, cell.name)
    if cell.scaled:
        weight = weight / palette.scale.astype(np.float64)
    groups = len(palette.table)
    for part, labels, table in zip(
        np.split(weight, groups), np.split(palette.indices, groups), palette.table, strict=True
    ):
        entries = table.ravel().astype(np.float64)
        steps = np.linspace(part.min(), part.max(), len(entries))
        # float32 quotients where there is a scale
        np.testing.assert_allclose(entries, steps, rtol=2**-10.9, atol=1e-7)
        distance = np.abs(part[..., None] - entries)
        chosen = np.take_along_axis(distance, labels[..., None].astype(int), -1)[..., 0]
        np.testing.assert_allclose(chosen, distance.min(-1), rtol=0, atol=1e-7)


# --- the early refusal ----------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "cell"), REFUSED, ids=ids)
@pytest.mark.usefixtures("no_clustering")
@pytest.mark.covering(2)
def test_what_the_target_lacks_is_refused_before_clustering(target, cell, small, tmp_path):
    name = subject(cell)
    config = OptimizationConfig(op_name_configs={f"{name}_lin*": cell.config})
    with pytest.raises(TargetError) as refusal:
        palettize(small(target), config, output=tmp_path / "out.mlpackage")
    assert nothing_beside(tmp_path)
    message = str(refusal.value)
    request, _, rest = message.partition(" needs iOS18; ")
    allowed, _, remedy = rest.partition(" Use ")
    assert f"{name} (op_name_configs['{name}_lin*']): " in request
    assert cell.mode in request
    assert ("groups of 16" in request) == cell.grouped
    assert (f"vectors of {cell.d}" in request) == (cell.d > 1)
    assert ("per-channel scale" in request) == cell.scaled
    assert f"{max(target, 'iOS16')} allows" in allowed
    assert "1, 2, 4, 6 or 8 bits" in allowed
    assert ("granularity='per_tensor'" in remedy) == cell.grouped
    assert ("cluster_dim=1" in remedy) == (cell.d > 1)
    assert ("enable_per_channel_scale=False" in remedy) == cell.scaled
    assert "minimum_deployment_target=iOS18" in remedy
    with pytest.raises(TargetError):
        preview(small(target), config)


@pytest.mark.parametrize("cell", expressible("iOS16"), ids=ids)
@pytest.mark.usefixtures("no_clustering")
@pytest.mark.covering(2)
def test_nothing_can_be_palettized_below_ios16(cell, small, tmp_path):
    with pytest.raises(TargetError, match=r"iOS15 allows nothing palettized.*iOS16 or newer"):
        palettize(
            small("iOS15"),
            OptimizationConfig(op_name_configs={subject(cell): cell.config}),
            output=tmp_path / "out.mlpackage",
            minimum_deployment_target="iOS15",
        )
    assert nothing_beside(tmp_path)


@pytest.mark.parametrize("cell", [c for c in all_cells() if not c.is_old_form], ids=ids)
@pytest.mark.covering(2)
def test_an_older_model_is_raised_where_that_is_allowed(cell, small, tmp_path):
    name = subject(cell)
    result = palettize(
        small("iOS15"),
        OptimizationConfig(op_name_configs={name: cell.config}),
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target="iOS18",
    )
    assert (result.report.target_before, result.report.target_after) == ("iOS15", "iOS18")
    assert name in result.report.target_reason
    assert [row.name for row in result.report.palettized] == [name]
    values = judges.decompressed_constants(result.path)
    np.testing.assert_array_equal(values[name], stored(result.path, name).dense)


@pytest.mark.parametrize("target", OLD)
def test_all_violations_are_listed_at_once(target, tmp_path):
    shapes = [(64, 80), (80, 64), (64, 80), (80, 64)]
    weights = {f"w{i}": Cell("kmeans", 1 + i).weight(shape) for i, shape in enumerate(shapes)}
    weights["w2"] = np.where(weights["w2"] < 0, np.float16(-1), np.float16(1))
    source = saved(chain(weights, target), tmp_path / "source.mlpackage")
    config = OptimizationConfig(
        op_name_configs={
            "w0": Cell("kmeans", 3).config,
            "w1": Cell("kmeans", 4).config,
            "w2_linear": Cell("unique", 4, d=2).config,
            "w3": Cell("uniform", 8, grouped=True, scaled=True).config,
        }
    )
    with pytest.raises(TargetError) as refusal:
        palettize(source, config, output=tmp_path / "out.mlpackage")
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith("3 requests cannot be expressed")
    assert [line.split()[1] for line in lines[1:]] == ["w0", "w2", "w3"]
    assert "op_name_configs['w2_linear']" in lines[2]
    assert nothing_beside(tmp_path, ["source.mlpackage"])


@pytest.mark.parametrize("d", [2, 4])
def test_uniform_has_no_vectors_on_any_target(d):
    with pytest.raises(ConfigError, match=r"uniform.*cluster_dim"):
        Cell("uniform", 4, d=d).config  # noqa: B018
