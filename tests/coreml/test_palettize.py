"""A run as a whole: deterministic, complete or not at all, and what it returns."""

from __future__ import annotations

import errno
import importlib
import re
import shutil
import threading
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest

from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    decompress_weights,
    get_weights_metadata,
    palettize,
    palettize_weights,
    preview,
)
from mlopt.errors import ConfigError, DestinationError
from mlopt.mil.staging import Staging
from tests import judges
from tests.coreml.conftest import (
    GROUP,
    Cell,
    by_name,
    chain,
    converted,
    global_config,
    mb,
    nothing_beside,
    package_of_weight,
    quietly,
    saved,
    spec_and_weights,
    squared_error,
    stored,
)


def contents(package: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(package)): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A package with three weights [64, 80], [80, 64], [64, 80] for iOS18."""
    shapes = [(64, 80), (80, 64), (64, 80)]
    weights = {f"w{i}": Cell("kmeans", 2 + i).weight(shape) for i, shape in enumerate(shapes)}
    return saved(chain(weights, "iOS18"), tmp_path_factory.mktemp("three") / "three.mlpackage")


@pytest.fixture
def source(three, tmp_path):
    """A copy of that package, alone in its folder."""
    return Path(shutil.copytree(three, tmp_path / "in" / "source.mlpackage"))


GROUPED = {"granularity": "per_grouped_channel", "group_size": GROUP}


# --- the same bytes -------------------------------------------------------------------------------


@pytest.mark.short("options1", "options3")
@pytest.mark.parametrize(
    "options",
    [
        {"nbits": 4},
        {"nbits": 3, **GROUPED, "enable_per_channel_scale": True},
        {"nbits": 6, "cluster_dim": 4},
        {"mode": "uniform", "nbits": 2, **GROUPED},
    ],
)
def test_bytes_do_not_depend_on_workers_or_runs(options, package_of, tmp_path):
    source = package_of("transformer", "iOS18")
    config = global_config(**options)
    packages = [
        palettize(source, config, output=tmp_path / f"{index}.mlpackage", workers=workers)
        for index, workers in enumerate((1, 2, 5, None, 1))
    ]
    first = contents(packages[0].path)
    assert len(first) == 3
    assert packages[0].report.palettized
    for other in packages[1:]:
        assert contents(other.path) == first
        assert other.report == packages[0].report


def test_num_kmeans_workers_changes_nothing(source, tmp_path):
    one, five = (
        palettize(source, global_config(num_kmeans_workers=n), output=tmp_path / f"{n}.mlpackage")
        for n in (1, 5)
    )
    assert contents(one.path) == contents(five.path)


@pytest.mark.parametrize(
    ("workers", "numbers", "expected"),
    [(None, (1, 1), 6), (None, (1, 3), 3), (None, (0, -1), 6), (None, (64, 1), 6), (4, (2, 2), 4)],
)
def test_how_many_threads_cluster(workers, numbers, expected, source, tmp_path, monkeypatch):
    module = importlib.import_module("mlopt.coreml.palettize")
    seen = []
    carry_out = module.carry_out

    def watched(*args, workers, **options):
        seen.append(workers)
        return carry_out(*args, workers=workers, **options)

    monkeypatch.setattr(module, "processors", lambda: 6)
    monkeypatch.setattr(module, "carry_out", watched)
    config = global_config(num_kmeans_workers=numbers[0])
    config.set_op_type("conv", OpPalettizerConfig(nbits=4, num_kmeans_workers=numbers[1]))
    module.palettize(source, config, output=tmp_path / "out.mlpackage", workers=workers)
    assert seen == [expected]


@pytest.mark.parametrize("workers", [-1, 0, 2.0, True])
def test_workers_are_checked_before_anything_is_written(workers, source, tmp_path):
    with pytest.raises(ConfigError, match="workers must be an integer of at least 1"):
        palettize(source, global_config(), output=tmp_path / "out.mlpackage", workers=workers)
    assert not (tmp_path / "out.mlpackage").exists()


def test_a_second_call_with_workers_works(source, tmp_path):
    model = quietly(ct.models.MLModel, str(source), skip_model_load=True)
    config = global_config(**GROUPED, num_kmeans_workers=2)
    first, second = (palettize_weights(model, config) for _ in range(2))
    before, after = spec_and_weights(first), spec_and_weights(second)
    assert before[0].SerializeToString(deterministic=True) == after[0].SerializeToString(
        deterministic=True
    )
    assert (before[1] / "weight.bin").read_bytes() == (after[1] / "weight.bin").read_bytes()


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        (mode, form)
        for mode in ("kmeans", "uniform", "unique")
        for form in ("plain", "grouped", "scaled", "vectors")
        if (mode, form) != ("uniform", "vectors")
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_scaling_by_a_power_of_two_scales_the_table_alone(mode, form, dtype, tmp_path):
    cell = Cell(mode, 4, d=2 if form == "vectors" else 1, grouped=form == "grouped")
    weight = cell.weight((64, 80)).astype(dtype)
    if form == "scaled" and mode == "unique":
        weight = Cell("unique", 4, scaled=True).weight((64, 80)).astype(dtype)
    # Multiples of 1/2 up to a few hundred: 2**-12 of them are exact, and so are the tables, which
    # have no entry among the numbers that float16 holds with fewer digits.
    weight = (np.round(weight.astype(np.float64) * 512) / 2).astype(dtype)
    small = (weight.astype(np.float64) * 2.0**-12).astype(dtype)
    assert (small.astype(np.float64) * 2**12 == weight).all()
    options = cell.options | {"lut_function": None, "enable_per_channel_scale": form == "scaled"}
    palettes = []
    for name, value in (("large", weight), ("small", small)):
        path = package_of_weight(value, "iOS18", tmp_path / f"{name}.mlpackage")
        out = palettize(path, by_name({"w": options}), output=tmp_path / f"{name}-out.mlpackage")
        assert out.report["w"].is_palettized
        palettes.append(stored(out.path, "w"))
    large, tiny = palettes
    np.testing.assert_array_equal(large.indices, tiny.indices)
    if form == "scaled":
        np.testing.assert_array_equal(large.scale.astype(float) * 2.0**-12, tiny.scale)
        np.testing.assert_array_equal(large.table, tiny.table)
    else:
        np.testing.assert_array_equal(large.table.astype(np.float64) * 2.0**-12, tiny.table)


def test_weights_are_not_rounded_to_decimals_first(tmp_path):
    """Magnitudes of 1e-5 vanish where weights are rounded to four decimals before clustering."""
    weight = (Cell("kmeans", 4).weight((64, 80)).astype(np.float32) * 1e-5).astype(np.float32)
    path = package_of_weight(weight, "iOS16", tmp_path / "a.mlpackage")
    result = palettize(path, global_config(nbits=4), output=tmp_path / "b.mlpackage")
    assert result.report["w"].snr_db > 18


# --- complete, or not at all ----------------------------------------------------------------------


class Stop(Exception):
    """What the tests raise in the middle of a run."""


def custom_failing_at(call: int, error: BaseException):
    calls = []

    def lut_function(weight):
        calls.append(weight.shape)
        if len(calls) == call:
            raise error
        return np.array([-0.1, 0.1], weight.dtype), (weight.ravel() > 0).astype(np.uint8)

    return lut_function


@pytest.mark.parametrize("error", [Stop("no"), KeyboardInterrupt(), ValueError("bad")])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_failing_lut_function_leaves_everything_as_it_was(
    error, earlier, workers, source, tmp_path
):
    config = OptimizationConfig(
        global_config=OpPalettizerConfig(
            mode="custom", lut_function=custom_failing_at(3, error), weight_threshold=0
        )
    )
    assert_left_alone(config, type(error), earlier, source, tmp_path, workers=workers)


@pytest.mark.parametrize("error", [Stop("no"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("call", [1, 3])
def test_a_failing_progress_callback_leaves_everything_as_it_was(
    error, earlier, call, source, tmp_path
):
    calls = []

    def progress(done, total, name):
        calls.append(name)
        if len(calls) == call:
            raise error

    assert_left_alone(global_config(), type(error), earlier, source, tmp_path, progress=progress)
    assert calls == ["w0", "w1", "w2"][:call]


def assert_left_alone(config, error, earlier, source, tmp_path, **options):
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "result.mlpackage"
    if earlier:
        palettize(source, global_config(nbits=1), output=output)
    before, old = contents(source), contents(output)
    assert bool(old) == earlier
    with pytest.raises(error):
        palettize(source, config, output=output, **options)
    assert contents(source) == before
    assert contents(output) == old
    assert nothing_beside(output.parent, [output.name] if earlier else [])
    assert nothing_beside(source.parent, [source.name])
    # and the next run finds nothing in its way
    result = palettize(source, global_config(nbits=2), output=output)
    assert len(result.report.palettized) == 3
    assert judges.messages_equal_except(source, output, ["w0", "w1", "w2"]) == []


def test_a_failing_run_without_an_output_leaves_no_temporary_package(source, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def progress(done, total, name):
        raise Stop

    with pytest.raises(Stop):
        palettize(source, global_config(), progress=progress)
    assert nothing_beside(folder)
    model = quietly(ct.models.MLModel, str(source), skip_model_load=True)
    result = palettize(model, global_config())
    assert [path for path in folder.iterdir() if path.suffix == ".mlpackage"] == [result.path]


def test_an_error_while_writing_leaves_the_earlier_output(source, tmp_path, monkeypatch):
    output = tmp_path / "result.mlpackage"
    palettize(source, global_config(nbits=1), output=output)
    old = contents(output)

    def commit(run):
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(Staging, "commit", commit)
    with pytest.raises(DestinationError, match=r"cannot be written \(the disk is gone\)"):
        palettize(source, global_config(nbits=4), output=output)
    assert contents(output) == old
    assert nothing_beside(tmp_path, ["in", "result.mlpackage"])


def test_the_output_may_be_the_source(source):
    dense = judges.decompressed_constants(source)
    result = palettize(source, global_config(nbits=6), output=source)
    assert result.path == source
    assert nothing_beside(source.parent, [source.name])
    for name in ("w0", "w1", "w2"):
        palette = stored(source, name)
        assert palette.nbits == 6
        assert squared_error(dense[name], palette.dense) < squared_error(dense[name], np.zeros(()))
    # an MLModel over the package that is replaced
    model = quietly(ct.models.MLModel, str(source), skip_model_load=True)
    palettize(model, global_config(), output=tmp_sibling(source))
    assert nothing_beside(source.parent, [source.name, "sibling.mlpackage"])


def tmp_sibling(path: Path) -> Path:
    return path.with_name("sibling.mlpackage")


def test_a_failing_run_onto_the_source_leaves_it(source):
    before = contents(source)

    def progress(done, total, name):
        if name == "w2":
            raise Stop

    with pytest.raises(Stop):
        palettize(source, global_config(), output=source, progress=progress)
    assert contents(source) == before
    assert nothing_beside(source.parent, [source.name])


def test_no_thread_is_left_behind(source, tmp_path):
    before = set(threading.enumerate())

    def progress(done, total, name):
        raise Stop

    with pytest.raises(Stop):
        palettize(source, global_config(), output=tmp_path / "a.mlpackage", progress=progress)
    palettize(source, global_config(), output=tmp_path / "b.mlpackage", workers=3)
    assert [thread for thread in set(threading.enumerate()) - before if thread.is_alive()] == []


def test_progress_counts_elements_to_the_end(source, tmp_path):
    calls = []
    result = palettize(
        source,
        by_name({"w0": {"nbits": 4}, "w2": {"nbits": 4}}),
        output=tmp_path / "a.mlpackage",
        progress=lambda *args: calls.append(args),
    )
    assert calls == [(5120, 10240, "w0"), (10240, 10240, "w2")]
    assert [row.name for row in result.report.palettized] == ["w0", "w2"]


# --- what comes back ------------------------------------------------------------------------------


def test_the_result_is_an_mlmodel_that_saves(source, tmp_path):
    model = quietly(
        ct.models.MLModel,
        str(source),
        skip_model_load=True,
        compute_units=ct.ComputeUnit.CPU_AND_NE,
    )
    spec = model.get_spec().SerializeToString(deterministic=True)
    weights = (Path(model.weights_dir) / "weight.bin").read_bytes()
    result = palettize(model, global_config())
    assert isinstance(result.model, ct.models.MLModel)
    assert result.model is result.model
    assert result.model.compute_unit == ct.ComputeUnit.CPU_AND_NE
    quietly(result.model.save, str(tmp_path / "again.mlpackage"))
    assert judges.messages_equal_except(result.path, tmp_path / "again.mlpackage") == []
    assert contents(tmp_path / "again.mlpackage").keys() == contents(source).keys()
    # the model that was given is as it was
    assert model.get_spec().SerializeToString(deterministic=True) == spec
    assert (Path(model.weights_dir) / "weight.bin").read_bytes() == weights


def test_a_model_of_a_package_loads_when_asked_for(source, tmp_path):
    result = palettize(source, global_config(), output=tmp_path / "out.mlpackage")
    model = quietly(lambda: result.model)
    assert isinstance(model, ct.models.MLModel)
    assert Path(model.package_path) == result.path
    assert result.path.is_dir()


def test_the_function_of_a_multifunction_model_is_carried_over(package_of):
    model = quietly(
        ct.models.MLModel,
        str(package_of("multifunction", "iOS18")),
        skip_model_load=True,
        function_name="adapted",
    )
    smaller = palettize_weights(model, global_config())
    assert smaller.function_name == "adapted"
    assert sorted(smaller.get_spec().mlProgram.functions) == ["adapted", "base"]
    assert decompress_weights(smaller).function_name == "adapted"


def test_arguments_of_palettize_weights_by_name_and_place(source):
    model = quietly(ct.models.MLModel, str(source), skip_model_load=True)
    config = global_config(nbits=1)
    by_place = palettize_weights(model, config, False)
    by_keyword = palettize_weights(mlmodel=model, config=config, joint_compression=False)
    for smaller in (by_place, by_keyword):
        assert stored(smaller, "w0").nbits == 1
    with pytest.raises(TypeError):
        palettize(source, config, "output.mlpackage")


@pytest.mark.parametrize("config", [None, {}, OpPalettizerConfig(nbits=4), {"global_config": None}])
def test_a_config_of_another_kind_is_refused(config, source, tmp_path):
    for run in (palettize, preview, palettize_weights):
        with pytest.raises(ConfigError, match="OptimizationConfig"):
            run(source, config)


# --- models with little to do ---------------------------------------------------------------------


def test_a_model_without_weights(tmp_path):
    model = converted(lambda x: mb.relu(x=mb.add(x=x, y=x)), (1, 4), "iOS15")
    source = saved(model, tmp_path / "empty.mlpackage")
    result = palettize(source, global_config(), output=tmp_path / "out.mlpackage")
    assert len(result.report) == 0
    assert (result.report.target_before, result.report.target_after) == ("iOS15", "iOS15")
    assert judges.messages_equal_except(source, result.path) == []
    judges.load_program(result.path)
    assert "no weights" in str(result.report)
    assert palettize_weights(model, global_config()).get_spec() == model.get_spec()


@pytest.mark.parametrize("threshold", [5120, 10**9])
def test_a_model_with_nothing_above_the_threshold(threshold, source, tmp_path):
    result = palettize(
        source, global_config(weight_threshold=threshold), output=tmp_path / "out.mlpackage"
    )
    assert not result.report.palettized
    assert judges.messages_equal_except(source, result.path) == []
    config = global_config(weight_threshold=5119)
    assert len(palettize(source, config, output=tmp_path / "b.mlpackage").report.palettized) == 3
    assert set(get_weights_metadata(source, weight_threshold=5119)) >= {"w0", "w1", "w2"}


# --- the modes ------------------------------------------------------------------------------------


def one_weight(value, target, folder, options, **more):
    """Palettize a model of one weight ``w``; returns the report's row and the package."""
    path = package_of_weight(value, target, folder / "one.mlpackage")
    result = palettize(path, by_name({"w": options}), output=folder / "out.mlpackage", **more)
    return result.report["w"], result.path


@pytest.mark.parametrize("distinct", [5, 6, 8])
@pytest.mark.parametrize(
    ("target", "minimum", "nbits"),
    [
        ("iOS15", None, 4),
        ("iOS16", None, 4),
        ("iOS17", None, 4),
        ("iOS18", None, 3),
        ("iOS15", "iOS18", 4),
        ("iOS16", "iOS18", 4),
    ],
)
@pytest.mark.parametrize("mode", ["unique", "custom"])
def test_five_to_eight_values_take_three_bits_only_where_there_are(
    distinct, target, minimum, nbits, mode, tmp_path
):
    """No target is raised for them, so what may be raised is no reason to take three bits."""
    table = np.linspace(-1, 1, distinct).astype(np.float16)
    labels = np.arange(64 * 80).reshape(64, 80) % distinct
    options = {
        "mode": mode,
        "lut_function": (lambda w: (table, labels)) if mode == "custom" else None,
    }
    row, path = one_weight(
        table[labels], target, tmp_path, options, minimum_deployment_target=minimum
    )
    assert row.nbits == nbits
    assert row.snr_db == np.inf
    palette = stored(path, "w")
    assert palette.nbits == nbits
    np.testing.assert_array_equal(palette.dense, table[labels])
    np.testing.assert_array_equal(judges.decompressed_constants(path)["w"], table[labels])
    assert (palette.table.ravel()[distinct:] == table[-1]).all()


def test_three_bits_are_taken_where_another_weight_raises_the_model(tmp_path):
    table = np.linspace(-1, 1, 8).astype(np.float16)
    labels = np.arange(64 * 80).reshape(64, 80) % 8
    weights = {"few": table[labels], "many": Cell("kmeans", 4).weight((80, 64))}
    path = saved(chain(weights, "iOS16"), tmp_path / "in.mlpackage")
    rules = {"few": {"mode": "unique"}, "many": {"nbits": 4, "cluster_dim": 2}}
    result = palettize(
        path, by_name(rules), output=tmp_path / "out.mlpackage", minimum_deployment_target="iOS18"
    )
    # Either width is right here; both have to be read back.
    assert result.report["few"].nbits in (3, 4)
    np.testing.assert_array_equal(judges.decompressed_constants(result.path)["few"], weights["few"])
    assert judges.spec_and_weights(result.path)[0].specificationVersion == 9


@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize("grouped", [False, True])
def test_unique_counts_vectors(d, grouped, tmp_path):
    cell = Cell("unique", 3, grouped=grouped, d=d)
    weight = cell.weight((64, 80))
    assert len(np.unique(weight.astype(np.float32))) > 8
    row, path = one_weight(weight, "iOS18", tmp_path, cell.options)
    assert (row.nbits, row.snr_db) == (3, np.inf)
    np.testing.assert_array_equal(stored(path, "w").dense, weight)


def test_unique_keeps_a_weight_of_too_many_values(tmp_path):
    weight = Cell("kmeans", 4).weight((64, 80))
    row, path = one_weight(weight, "iOS15", tmp_path, {"mode": "unique"})
    assert (row.outcome, row.reason) == ("kept", "more than 256 distinct values")
    # and no target is raised for it
    assert judges.spec_and_weights(path)[0].specificationVersion == 6


@pytest.mark.parametrize("mode", ["uniform", "kmeans", "unique"])
@pytest.mark.parametrize("value", [0.0, -0.3, 65504.0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_constant_weight_stays_itself(mode, value, dtype, tmp_path):
    weight = np.full((64, 80), value, dtype)
    options = {"mode": mode, "nbits": None if mode == "unique" else 4}
    for scaled in (False, True):
        options["enable_per_channel_scale"] = scaled
        (tmp_path / str(scaled)).mkdir()
        row, path = one_weight(weight, "iOS18", tmp_path / str(scaled), options)
        np.testing.assert_array_equal(judges.decompressed_constants(path)["w"], weight)
        assert row.snr_db == np.inf


@pytest.mark.parametrize("mode", ["uniform", "kmeans"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_range_wider_than_float16_holds(mode, scaled, tmp_path):
    """max - min is 131008, more than the largest float16."""
    weight = np.linspace(-65504, 65504, 64 * 80).reshape(64, 80).astype(np.float16)
    options = {"mode": mode, "nbits": 8, "enable_per_channel_scale": scaled}
    row, path = one_weight(weight, "iOS18", tmp_path, options)
    value = judges.decompressed_constants(path)["w"]
    assert np.isfinite(value).all()
    assert np.abs(value.astype(float) - weight.astype(float)).max() < 1.1 * 131008 / 255
    assert row.snr_db > 40


def test_a_scaled_weight_is_not_left_divided(tmp_path):
    """What is skipped in the end is bit for bit what it was, though it was looked at scaled."""
    weight = Cell("kmeans", 4).weight((64, 80))
    for index, options in enumerate(
        (
            {"mode": "unique", "enable_per_channel_scale": True},
            {"nbits": 4, "enable_per_channel_scale": True, "granularity": "per_grouped_channel"}
            | {"group_size": 7},
        )
    ):
        (tmp_path / str(index)).mkdir()
        row, path = one_weight(weight, "iOS18", tmp_path / str(index), options)
        assert row.outcome == "kept"
        np.testing.assert_array_equal(judges.decompressed_constants(path)["w"], weight)


def test_an_error_that_is_not_proven_the_least_is_told_in_its_row(tmp_path):
    rng = np.random.default_rng(0)
    sign = np.where(rng.random((64, 80)) < 0.5, -1, 1)
    weight = (sign + 0.003 * rng.standard_normal((64, 80))).astype(np.float16)
    row, _ = one_weight(weight, "iOS18", tmp_path, {"nbits": 4, "enable_per_channel_scale": True})
    assert re.search(r"proven within \d\.\d % of the least error", row.note)


def test_rows_of_zeros_have_scale_0_and_stay_zero(tmp_path):
    weight = Cell("kmeans", 4).weight((64, 80)).copy()
    weight[5] = 0
    options = {"nbits": 4, "enable_per_channel_scale": True}
    _, path = one_weight(weight, "iOS18", tmp_path, options)
    palette = stored(path, "w")
    assert palette.scale[5] == 0
    assert not palette.dense[5].any()
    assert palette.dense[4].any()


# --- lut_function ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "nbits"),
    [(1, 1), (2, 1), (3, 2), (5, 4), (8, 4), (9, 4), (17, 6), (65, 8), (200, 8), (256, 8)],
)
@pytest.mark.parametrize("kind", [list, np.array, "float64"])
def test_lut_function_may_return_any_length(entries, nbits, kind, tmp_path):
    seen = []

    def lut_function(weight):
        seen.append(weight)
        labels = np.arange(weight.size) % entries
        table = np.arange(entries) / 256
        if kind is list:
            return table.tolist(), labels.tolist()
        return (table.astype(np.float16) if kind is np.array else table), labels.reshape(
            weight.shape
        )

    weight = Cell("kmeans", 4).weight((64, 80))
    options = {"mode": "custom", "lut_function": lut_function}
    row, path = one_weight(weight, "iOS16", tmp_path, options)
    assert row.nbits == nbits
    expected = (np.arange(64 * 80) % entries / 256).reshape(64, 80).astype(np.float16)
    np.testing.assert_array_equal(judges.decompressed_constants(path)["w"], expected)
    (given,) = seen
    np.testing.assert_array_equal(given, weight)
    assert given.dtype == np.float16
    assert not given.flags.writeable


LABELS = np.zeros(64 * 80, np.uint8)
WRONG = {
    "nothing": None,
    "one thing": (np.zeros(4),),
    "three things": (np.zeros(4), LABELS, 4),
    "too long": (np.zeros(257), LABELS),
    "empty": (np.zeros(0), LABELS),
    "of rank 2": (np.zeros((2, 2)), LABELS),
    "not finite": (np.array([0, np.inf]), LABELS),
    "beyond float16": (np.array([0, 1e6]), LABELS),
    "no numbers": (["a", "b"], LABELS),
    "ragged": ([[1], [1, 2]], LABELS),
    "too few labels": (np.zeros(4), LABELS[1:]),
    "labels past the table": (np.zeros(4), LABELS + 4),
    "negative labels": (np.zeros(4), LABELS.astype(int) - 1),
    "broken labels": (np.zeros(4), LABELS + 0.5),
    "labels of nan": (np.zeros(4), LABELS + np.nan),
    "complex table": (np.zeros(4, complex), LABELS),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_results_of_lut_function_are_refused(wrong, source, tmp_path):
    config = OptimizationConfig(
        op_name_configs={
            "w2": OpPalettizerConfig(mode="custom", lut_function=lambda weight: WRONG[wrong])
        }
    )
    with pytest.raises(ConfigError, match=r"lut_function.*\(64, 80\)|table.*\(64, 80\)"):
        palettize(source, config, output=tmp_path / "out.mlpackage")
    assert nothing_beside(tmp_path, ["in"])


def test_lut_function_cannot_write_to_the_source(source, tmp_path):
    before = contents(source)

    def lut_function(weight):
        weight[...] = 0
        return [0, 1], np.zeros(weight.size)

    config = global_config(mode="custom", lut_function=lut_function)
    with pytest.raises(ValueError, match="read-only"):
        palettize(source, config, output=tmp_path / "out.mlpackage")
    assert contents(source) == before


def test_lut_function_is_called_for_each_group_and_channel_axis(tmp_path):
    weight = Cell("kmeans", 4).weight((64, 80))
    seen = []

    def lut_function(group):
        seen.append(np.array(group))
        return [float(group.astype(float).mean())], np.zeros(group.size, int)

    options = {"mode": "custom", "lut_function": lut_function, **GROUPED, "channel_axis": 1}
    _, path = one_weight(weight, "iOS18", tmp_path, options)
    assert [group.shape for group in seen] == [(16, 64)] * 5
    np.testing.assert_array_equal(np.concatenate(seen), weight.T)
    means = weight.astype(float).reshape(64, 5, 16).mean(axis=(0, 2))
    np.testing.assert_allclose(
        stored(path, "w").dense.astype(float),
        np.repeat(means, 16)[None] * np.ones((64, 1)),
        atol=1e-4,
    )


# --- errors against coremltools, where it is exact and where it is not ----------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("nbits", [1, 4, 8])
def test_large_weights_err_at_most_as_coremltools(dtype, nbits, tmp_path):
    from tests.coreml.conftest import reference_dense

    generator = np.random.default_rng(nbits)
    weight = (generator.standard_t(4, (128, 96)) / 16).astype(dtype)
    row, path = one_weight(weight, "iOS16", tmp_path, {"nbits": nbits})
    error = squared_error(weight, judges.decompressed_constants(path)["w"])
    reference = squared_error(weight, reference_dense(Cell("kmeans", nbits), weight))
    # float16 weights from 10,000 elements on are solved exactly there too, but for the rounding
    # of the table; float32 ones are not.
    assert error <= reference if dtype == "float16" else error < reference
    signal = squared_error(weight, np.zeros(()))
    assert row.snr_db == pytest.approx(10 * np.log10(signal / error), abs=1e-9)


@pytest.mark.parametrize("mode", ["kmeans", "uniform"])
@pytest.mark.parametrize("grouped", [False, True])
def test_float32_groups_err_less_than_coremltools(mode, grouped, tmp_path):
    from tests.coreml.conftest import reference_dense

    cell = Cell(mode, 4, grouped=grouped)
    weight = np.random.default_rng(3).standard_normal((64, 80)).astype(np.float32)
    _, path = one_weight(weight, "iOS18", tmp_path, cell.options)
    value = judges.decompressed_constants(path)["w"]
    assert value.dtype == np.float32
    reference = squared_error(weight, reference_dense(cell, weight))
    error = squared_error(weight, value)
    assert error < reference if mode == "kmeans" else error <= reference * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_every_weight_of_a_model_errs_at_most_as_coremltools(kind, package_of, tmp_path):
    from tests.coreml.conftest import reference_palettized

    source = package_of(kind, "iOS16")
    result = palettize(source, global_config(nbits=4), output=tmp_path / "out.mlpackage")
    names = [row.name for row in result.report.palettized]
    # Names of constants differ between conversions, and coremltools writes to what it reads.
    copy = shutil.copytree(source, tmp_path / "copy.mlpackage")
    model = quietly(ct.models.MLModel, str(copy), skip_model_load=True)
    theirs = judges.decompressed_constants(
        reference_palettized(model, {name: {"nbits": 4} for name in names})
    )
    ours, dense = judges.decompressed_constants(result.path), judges.decompressed_constants(source)
    assert len(names) > 5
    for name in names:
        reference = squared_error(dense[name], theirs[f"{name}_palettized"])
        error = squared_error(dense[name], ours[name])
        assert error < reference if dense[name].size < 10_000 else error <= reference, name
