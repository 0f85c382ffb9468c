"""The account of every weight: outcomes with reasons, sizes as measured, targets, rules."""

from __future__ import annotations

import json
import math
import shutil
import sys

import coremltools as ct
import numpy as np
import pytest

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize, preview
from mlopt.errors import ConfigError, MlOptError, TargetError
from mlopt.mil.targets import Target
from tests import judges, models
from tests.coreml.conftest import (
    Cell,
    by_name,
    chain,
    converted,
    global_config,
    mb,
    nothing_beside,
    operations_by_name,
    raw,
    saved,
    spec_and_weights,
    squared_error,
    stored,
)

CONFIGS = {
    "per tensor": {"nbits": 4},
    "groups, divisors": {
        "nbits": 4,
        "granularity": "per_grouped_channel",
        "group_size": 20,
        "on_indivisible": "divisor",
    },
    "vectors": {"nbits": 3, "cluster_dim": 4},
    "scaled": {"nbits": 2, "enable_per_channel_scale": True},
    "unique": {"mode": "unique"},
    "int8 tables": {
        "nbits": 4,
        "granularity": "per_grouped_channel",
        "group_size": 20,
        "on_indivisible": "divisor",
        "lut_dtype": "int8",
    },
    "uint8 table": {
        "nbits": 3,
        "cluster_dim": 2,
        "enable_per_channel_scale": True,
        "lut_dtype": "uint8",
    },
}


# --- why a weight is kept -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def menagerie(tmp_path_factory):
    """A model for iOS18 with a weight for every reason to keep one."""
    generator = np.random.default_rng(0)

    def half(*shape):
        return (generator.standard_normal(shape) / 8).astype(np.float16)

    holey = half(64, 64)
    holey[3, 4] = np.nan
    endless = half(64, 64)
    endless[5, 6] = np.inf
    additive = np.triu(np.full((64, 64), -1e4, np.float16), 1)
    multiplicative = np.tri(64, dtype=np.float16)
    signs = np.where(half(64, 64) < 0, np.float16(-0.5), np.float16(0.5))

    def body(x):
        def linear(name, value):
            return mb.linear(x=x, weight=mb.const(val=value, name=name), name=f"{name}_op")

        for name, value in {
            "good": half(64, 64),
            "named": half(64, 64),
            "small": half(16, 16),
        }.items():
            if name == "small":
                x = mb.slice_by_size(x=x, begin=[0, 0], size=[1, 16])
            x = linear(name, value)
        x = mb.matmul(x=x, y=mb.const(val=half(16, 64), name="odd"), name="odd_op")
        x = linear("holey", holey)
        x = linear("endless", endless)
        x = mb.add(x=x, y=mb.const(val=half(64, 64), name="added"), name="added_op")
        x = mb.add(x=x, y=mb.const(val=additive, name="additive"), name="additive_op")
        x = mb.mul(x=x, y=mb.const(val=multiplicative, name="multiplicative"))
        x = mb.mul(x=x, y=mb.const(val=signs, name="signs"))
        x = mb.add(x=x, y=mb.const(val=half(64), name="bias"))
        rows = mb.const(val=np.arange(64 * 128, dtype=np.int32).reshape(64, 128) % 64)
        picked = mb.reduce_max(x=mb.gather(x=x, indices=rows, axis=1), axes=[2], keep_dims=False)
        total = mb.reduce_sum(x=x, keep_dims=False)
        values = half(1, 4096), half(1, 4096)
        chosen = mb.cond(
            pred=mb.greater(x=total, y=np.float16(0)),
            _true_fn=lambda: mb.const(val=values[0], name="returned"),
            _false_fn=lambda: mb.const(val=values[1], name="other_returned"),
        )
        chosen = mb.slice_by_size(x=chosen, begin=[0, 0], size=[1, 64])
        return mb.add(x=mb.add(x=x, y=chosen), y=picked)

    model = converted(body, (1, 64), "iOS18")
    return saved(model, tmp_path_factory.mktemp("menagerie") / "menagerie.mlpackage")


KEPT = {
    "named": ("left alone by op_name_configs['named_op']", None),
    "small": ("256 elements, not more than weight_threshold 2048", "not more elements than"),
    "odd": ("kept by type", None),
    "holey": ("it holds an infinity or a NaN", "infinity or NaN"),
    "endless": ("it holds an infinity or a NaN", "infinity or NaN"),
    "additive": ("it looks like an attention mask", "attention mask"),
    "multiplicative": ("it looks like an attention mask", "attention mask"),
    "bias": ("rank 1; Core ML wants rank 2 or more", "rank 0 or 1"),
    "select_0": ("int32; only float16 and float32 can be palettized", "not a float"),
    "returned": ("a block returns it as it is", "returned by a block"),
    "other_returned": ("a block returns it as it is", "returned by a block"),
}


def test_every_reason_to_keep_a_weight_is_given(menagerie, tmp_path):
    config = OptimizationConfig(
        global_config=OpPalettizerConfig(nbits=4),
        op_name_configs={"named_op": None},
        op_type_configs={"matmul": None},
    )
    result = palettize(menagerie, config, output=tmp_path / "out.mlpackage")
    rows = {row.name: row for row in result.report}
    for name, (reason, category) in KEPT.items():
        row = rows[name]
        assert row.outcome == "kept", name
        if reason == "kept by type":
            reason = "left alone by op_type_configs['matmul']"
        assert row.reason == reason, name
        assert (category or reason) in row.category
        assert row.bytes_after == row.bytes_before
        assert row.mode is row.nbits is row.granularity is row.snr_db is None
    changed = {name for name, row in rows.items() if row.is_palettized}
    assert changed == {"good", "added", "signs"}
    assert judges.messages_equal_except(menagerie, result.path, changed) == []


def test_without_a_rule_nothing_is_palettized(menagerie, tmp_path):
    report = palettize(menagerie, OptimizationConfig(), output=tmp_path / "out.mlpackage").report
    assert report["good"].reason == "no rule applies"
    assert report["bias"].reason.startswith("rank 1")
    assert not report.palettized


def test_what_no_operation_reads_is_kept(one, tmp_path):
    """Conversion removes such constants, so one is written in by hand."""
    source = tmp_path / "source.mlpackage"
    shutil.copytree(one("iOS18"), source)
    path = source / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    (weight,) = [op for op in block.operations if op.outputs[0].name == "w"]
    lonely = block.operations.add()
    lonely.CopyFrom(weight)
    lonely.outputs[0].name = "lonely"
    lonely.attributes["name"].immediateValue.tensor.strings.values[0] = "lonely"
    value = lonely.attributes["val"]
    value.immediateValue.tensor.bytes.values = np.ones((64, 80), np.float16).tobytes()
    path.write_bytes(spec.SerializeToString())
    result = palettize(source, global_config(), output=tmp_path / "out.mlpackage")
    row = result.report["lonely"]
    assert (row.outcome, row.reason) == ("kept", "no operation reads it")
    assert row.consumers == ()
    assert judges.messages_equal_except(source, result.path, ["w"]) == []


def test_the_threshold_is_exceeded_or_not(menagerie):
    """Exactly as many elements are not more."""
    for threshold, palettized in ((255, True), (256, False), (257, False)):
        report = preview(menagerie, global_config(weight_threshold=threshold))
        assert report["small"].is_palettized == palettized


def test_indivisible_channels_are_told(menagerie, tmp_path):
    rule = {"nbits": 4, "granularity": "per_grouped_channel", "group_size": 24}
    outcomes = {
        "skip": (None, "64 channels on axis 0 do not divide into groups of 24"),
        "divisor": ((4, 1), "64 channels on axis 0 do not divide into groups of 24: groups of 16"),
        "per_tensor": ((1, 1), "do not divide into groups of 24: one table for the tensor"),
    }
    for choice, (tables, text) in outcomes.items():
        path = tmp_path / f"{choice}.mlpackage"
        config = by_name({"good": rule | {"on_indivisible": choice}})
        row = palettize(menagerie, config, output=path).report["good"]
        if tables is None:
            assert row.outcome == "kept"
            assert row.reason == text
            assert row.category == "channels do not divide into groups"
        else:
            assert text in row.note
            assert stored(path, "good").table.shape[:2] == tables
            assert row.group_size == (16 if choice == "divisor" else None)
            assert row.granularity == ("per_grouped_channel" if tables[0] > 1 else "per_tensor")


@pytest.mark.parametrize("size", [None, 0])
def test_a_group_of_all_channels_is_one_table(size, menagerie):
    """As coremltools takes it; and one table needs no target for groups."""
    rule = {"nbits": 4, "granularity": "per_grouped_channel", "group_size": size}
    for more in ({}, {"on_indivisible": "divisor"}, {"cluster_dim": 2}):
        row = preview(menagerie, by_name({"good": rule | more}))["good"]
        assert row.is_palettized
        assert (row.granularity, row.group_size) == ("per_tensor", None)
        assert row.cluster_dim == more.get("cluster_dim", 1)


def test_a_vector_belongs_to_one_group(menagerie):
    rule = {"nbits": 4, "granularity": "per_grouped_channel", "group_size": 16, "cluster_dim": 32}
    row = preview(menagerie, by_name({"good": rule}))["good"]
    assert row.outcome == "kept"
    assert row.reason == (
        "cluster_dim 32 does not divide groups of 16 channels; a vector cannot belong to two groups"
    )
    assert row.category == "cluster_dim does not divide the channels"


@pytest.mark.parametrize(
    ("group_size", "d", "expected"),
    [
        (20, 1, 16),
        (20, 2, 16),
        (65, 1, None),
        (100, 4, None),
        (3, 1, 2),
        (63, 1, 32),
        (5, 5, "kept"),
    ],
)
def test_the_largest_divisor_not_above_the_group_size(group_size, d, expected, menagerie, tmp_path):
    rule = {"nbits": 4, "granularity": "per_grouped_channel", "group_size": group_size}
    rule |= {"on_indivisible": "divisor", "cluster_dim": d}
    path = tmp_path / "out.mlpackage"
    row = palettize(menagerie, by_name({"good": rule}), output=path).report["good"]
    if expected == "kept":
        assert row.outcome == "kept"
        return
    assert row.is_palettized
    assert row.group_size == expected  # None: one group of all 64 channels
    assert stored(path, "good").table.shape[:2] == (64 // (expected or 64), 1)


def test_per_tensor_instead_of_groups_needs_no_newer_target(tmp_path):
    source = saved(
        chain({"w": Cell("kmeans", 4).weight((64, 80))}, "iOS15"), tmp_path / "a.mlpackage"
    )
    rule = {"nbits": 4, "granularity": "per_grouped_channel", "group_size": 48}
    rule["on_indivisible"] = "per_tensor"
    result = palettize(source, by_name({"w": rule}), output=tmp_path / "b.mlpackage")
    assert result.report.target_after == "iOS16"
    assert stored(result.path, "w").table.shape == (1, 1, 16, 1)


# --- rows and sizes -------------------------------------------------------------------------------


def stored_bytes(package, name, function):
    """Bytes of what stands for a weight, measured in the package: blobs and values alike."""
    ops = operations_by_name(package, function)
    _, folder = spec_and_weights(package)
    if ops[name].type == "const":
        return len(raw(ops[name].attributes["val"], folder))
    return stored(package, name, function).nbytes


@pytest.mark.parametrize("kind", [k for k in models.kinds("iOS18") if k != "pipeline"])
@pytest.mark.parametrize("form", CONFIGS)
@pytest.mark.covering(1)
def test_sizes_and_ratios_are_those_of_the_package(kind, form, package_of, tmp_path):
    source = package_of(kind, "iOS18")
    config = global_config(**CONFIGS[form])
    result = palettize(source, config, output=tmp_path / "out.mlpackage")
    if form != "unique":
        assert result.report.palettized
    dense = judges.decompressed_constants(source)
    new = judges.decompressed_constants(result.path)
    for row in result.report:
        function = row.functions[0]
        key = row.name if kind != "multifunction" else f"{function}/{row.name}"
        if row.dtype in ("float16", "float32"):
            assert row.bytes_after == stored_bytes(result.path, row.name, function), row.name
            assert row.bytes_before == stored_bytes(source, row.name, function)
        assert row.bits_per_weight == pytest.approx(8 * row.bytes_after / dense[key].size)
        assert row.shape == dense[key].shape
        if not row.is_palettized:
            assert new[key].tobytes() == dense[key].tobytes()
            continue
        noise = squared_error(dense[key], new[key])
        signal = squared_error(dense[key], np.zeros(()))
        expected = math.inf if noise == 0 else 10 * math.log10(signal / noise)
        assert row.snr_db == pytest.approx(expected, abs=1e-6)
        assert row.bits_per_weight < 16
    # a row for every stored weight, in the order of the program, and once
    names = [row.name for row in result.report]
    if kind != "multifunction":
        large = {name for name, value in dense.items() if value.size >= 10 and value.ndim}
        spec, _ = judges.spec_and_weights(source)
        order = [
            op.outputs[0].name
            for op in judges.operations(spec.mlProgram.functions["main"])
            if op.type == "const" and op.outputs[0].name in large
        ]
        assert [name for name in names if name in large] == order
        assert len(set(names)) == len(names)
    assert result.report.bytes_after == sum(row.bytes_after for row in result.report)
    assert json.loads(result.report.to_json())["totals"]["bytes_after"] == result.report.bytes_after


@pytest.mark.parametrize("kind", models.kinds("iOS18"))
@pytest.mark.parametrize("form", CONFIGS)
@pytest.mark.covering(1)
def test_a_preview_has_the_same_rows_without_clustering(
    kind, form, package_of, tmp_path, monkeypatch
):
    source = package_of(kind, "iOS18")
    config = global_config(**CONFIGS[form])
    real = palettize(source, config, output=tmp_path / "out.mlpackage").report.as_dict()
    if form != "unique":
        module = sys.modules["mlopt.statistics.fitting"]
        monkeypatch.setattr(module, "palettize", lambda *a, **k: pytest.fail("clustered"))
    seen = preview(source, config).as_dict()
    for row in [*real["rows"], *seen["rows"]]:
        if form != "unique":
            del row["snr_db"], row["lossless"]
    assert seen == real


def test_a_preview_of_older_targets_tells_the_raise(package_of, tmp_path):
    source = package_of("classifier", "iOS15")
    seen = preview(source, global_config())
    real = palettize(source, global_config(), output=tmp_path / "out.mlpackage").report
    assert (seen.target_before, seen.target_after) == ("iOS15", "iOS16")
    assert seen.target_reason == real.target_reason
    assert nothing_beside(tmp_path, ["out.mlpackage"])
    assert judges.spec_and_weights(source)[0].specificationVersion == 6


def test_a_preview_says_that_custom_is_not_known(menagerie):
    def lut_function(weight):
        raise AssertionError("called")

    row = preview(menagerie, by_name({"good": {"mode": "custom", "lut_function": lut_function}}))[
        "good"
    ]
    assert row.nbits == 8
    assert "lut_function decides" in row.note


def test_a_palette_larger_than_the_weight_is_told(tmp_path):
    source = saved(
        chain({"w": Cell("kmeans", 4).weight((64, 80))[:, :8]}, "iOS18"), tmp_path / "a.mlpackage"
    )
    rule = {
        "nbits": 8,
        "granularity": "per_grouped_channel",
        "group_size": 1,
        "weight_threshold": 0,
    }
    result = palettize(source, by_name({"w": rule}), output=tmp_path / "b.mlpackage")
    row = result.report["w"]
    assert row.bytes_after > row.bytes_before
    assert "larger than the weight" in row.note
    np.testing.assert_array_equal(
        judges.decompressed_constants(result.path)["w"], judges.decompressed_constants(source)["w"]
    )


def test_the_report_goes_to_json_and_to_a_table(menagerie, tmp_path):
    report = palettize(menagerie, global_config(), output=tmp_path / "out.mlpackage").report
    values = json.loads(report.to_json())
    assert [row["name"] for row in values["rows"]] == [row.name for row in report]
    text = str(report)
    for row in report:
        assert row.name in text
    assert "attention mask" in text


# --- targets --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A package of one weight, made once a target."""
    folder = tmp_path_factory.mktemp("one")
    weight = Cell("kmeans", 4).weight((64, 80))
    made = {}

    def package(target):
        if target not in made:
            made[target] = saved(chain({"w": weight}, target), folder / f"{target}.mlpackage")
        return made[target]

    return package


SCALAR, VECTOR = {"nbits": 4}, {"nbits": 4, "cluster_dim": 2}


@pytest.mark.parametrize(
    ("model", "minimum", "rule", "after"),
    [
        ("iOS15", None, SCALAR, "iOS16"),
        ("iOS15", "iOS16", SCALAR, "iOS16"),
        ("iOS15", "iOS18", SCALAR, "iOS16"),  # no further than is needed
        ("iOS15", "macOS15", VECTOR, "iOS18"),
        ("iOS16", None, SCALAR, "iOS16"),
        ("iOS16", ct.target.iOS18, SCALAR, "iOS16"),
        ("iOS16", ct.target.iOS18, VECTOR, "iOS18"),
        ("iOS17", Target.iOS18, VECTOR, "iOS18"),
        ("iOS17", "iOS15", SCALAR, "iOS17"),  # never lowered either
        ("iOS18", "iOS16", VECTOR, "iOS18"),
        ("iOS18", None, VECTOR, "iOS18"),
        ("iOS15", "iOS26", VECTOR, "iOS18"),
        ("iOS15", "iOS15", SCALAR, None),
        ("iOS15", "iOS16", VECTOR, None),
        ("iOS15", "iOS17", VECTOR, None),
        ("iOS17", "macOS14", VECTOR, None),
        ("iOS17", None, VECTOR, None),
    ],
)
def test_the_target_of_the_result(model, minimum, rule, after, one, tmp_path):
    source, output = one(model), tmp_path / "out.mlpackage"
    options = {"minimum_deployment_target": minimum}
    if after is None:
        for run in (
            lambda: palettize(source, by_name({"w": rule}), output=output, **options),
            lambda: preview(source, by_name({"w": rule}), **options),
        ):
            with pytest.raises(TargetError, match="w \\(op_name_configs"):
                run()
        assert nothing_beside(tmp_path)
        return
    report = palettize(source, by_name({"w": rule}), output=output, **options).report
    assert (report.target_before, report.target_after) == (model, after)
    spec, _ = judges.spec_and_weights(output)
    version = {"iOS15": 6, "iOS16": 7, "iOS17": 8, "iOS18": 9}[after]
    assert spec.specificationVersion == version
    assert spec.mlProgram.functions["main"].opset == f"CoreML{version - 1}"
    assert list(spec.mlProgram.functions["main"].block_specializations) == [f"CoreML{version - 1}"]
    if after == model:
        assert report.target_reason is None
    else:
        assert f"of w needs {after}" in report.target_reason
        assert f"raised from {model} to {after}" in report.summary()
    judges.load_program(output)
    assert preview(source, by_name({"w": rule}), **options).target_after == after


def test_a_target_is_not_raised_for_weights_that_are_kept(one, tmp_path):
    rule = VECTOR | {"granularity": "per_grouped_channel", "group_size": 6, "cluster_dim": 3}
    result = palettize(one("iOS15"), by_name({"w": rule}), output=tmp_path / "out.mlpackage")
    assert not result.report.palettized
    assert (result.report.target_before, result.report.target_after) == ("iOS15", "iOS15")
    assert result.report.target_reason is None
    assert judges.messages_equal_except(one("iOS15"), result.path) == []


def test_an_unknown_target_is_an_error(one):
    with pytest.raises(TargetError, match="iOS14"):
        preview(one("iOS15"), global_config(), minimum_deployment_target="iOS14")


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17"])
def test_raising_keeps_every_operation_working(target, package_of, tmp_path):
    """The model of all operations that change between the opsets loads as what it was."""
    source = package_of("redefined", target)
    result = palettize(
        source,
        global_config(**VECTOR),
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target="iOS18",
    )
    assert result.report.target_after == "iOS18"
    program = judges.load_program(result.path)
    before = judges.load_program(source)
    counts = [
        [op.op_type for op in judges.pymil_operations(p.functions["main"]) if op.op_type != "const"]
        for p in (before, program)
    ]
    old, new = ([t for t in each if not t.startswith("constexpr")] for each in counts)
    if target == "iOS17":
        assert old == new
    else:
        assert set(old) <= set(new)
    assert len(result.report.palettized) == 3


# --- rules ----------------------------------------------------------------------------------------


def test_rules_that_match_nothing_are_told_and_strict_refuses_them(one, tmp_path):
    config = OptimizationConfig(
        global_config=OpPalettizerConfig(nbits=4),
        op_type_configs={"conv": None, "linaer": None},
        op_name_configs={"ww": None, "w_linea?": OpPalettizerConfig(nbits=2)},
    )
    report = palettize(one("iOS16"), config, output=tmp_path / "out.mlpackage").report
    assert [rule.key for rule in report.unmatched_rules] == ["conv", "linaer", "ww"]
    assert report.unmatched_rules[1].near_matches == ("linear",)
    assert (
        "w" in report.unmatched_rules[2].near_matches or not report.unmatched_rules[2].near_matches
    )
    assert report["w"].nbits == 2
    assert "Unused rule: " in report.summary()
    with pytest.raises(ConfigError) as refusal:
        palettize(one("iOS16"), config, output=tmp_path / "strict.mlpackage", strict=True)
    for key in ("conv", "linaer", "ww"):
        assert f"[{key!r}]" in str(refusal.value)
    assert "did you mean 'linear'" in str(refusal.value)
    assert "w_linea?" not in str(refusal.value)
    with pytest.raises(ConfigError):
        preview(one("iOS16"), config, strict=True)
    assert nothing_beside(tmp_path, ["out.mlpackage"])


def test_globs_and_exact_names_by_weight_and_by_operation(tmp_path):
    shapes = [(64, 80), (80, 64)] * 2
    weights = {f"layer.{i}.w": Cell("kmeans", 1 + i).weight(s) for i, s in enumerate(shapes)}
    source = saved(
        chain({k.replace(".", "_"): v for k, v in weights.items()}, "iOS16"),
        tmp_path / "a.mlpackage",
    )
    config = OptimizationConfig(
        global_config=OpPalettizerConfig(nbits=8),
        op_type_configs={"lin*": OpPalettizerConfig(nbits=6)},
        op_name_configs={
            "layer_[01]_*": OpPalettizerConfig(nbits=2),
            "layer_1_w_linear": OpPalettizerConfig(nbits=1),
            "layer_3_w": None,
        },
    )
    report = palettize(source, config, output=tmp_path / "b.mlpackage", strict=True).report
    found = [(report[f"layer_{i}_w"].nbits, report[f"layer_{i}_w"].reason) for i in range(4)]
    assert found == [
        (2, "op_name_configs['layer_[01]_*']"),
        (1, "op_name_configs['layer_1_w_linear']"),
        (6, "op_type_configs['lin*']"),
        (None, "left alone by op_name_configs['layer_3_w']"),
    ]


def test_all_errors_are_of_one_family(one):
    for run in (
        lambda: palettize(one("iOS16"), by_name({"w": VECTOR})),
        lambda: palettize(one("iOS16"), global_config(lut_dtype="int4")),
        lambda: palettize("/nowhere/at/all.mlpackage", global_config()),
    ):
        with pytest.raises(MlOptError) as error:
            run()
        assert isinstance(error.value, ValueError)
