"""Palettizing weights that coremltools made sparse or quantized, beside what it does with them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs
import coremltools.optimize.coreml as cto
import numpy as np
import pytest

from mlopt.coreml import (
    OpPalettizerConfig,
    OptimizationConfig,
    Report,
    decompress,
    foreseen_package_bytes,
    palettize,
    palettize_weights,
    preview,
)
from mlopt.coreml.decisions import decide
from mlopt.coreml.execution import compute
from mlopt.coreml.inspection import package_bytes
from mlopt.coreml.joint import Clustered, strategy_of
from mlopt.errors import TargetError
from mlopt.mil.opening import open_package
from mlopt.palette.value.spec import PaletteSpec
from mlopt.text.words import human_bytes
from tests import foreign, judges

SHAPES = {"conv_w": (32, 8, 3, 3), "up_w": (32, 16, 2, 2), "linear_w": (48, 16), "y": (48, 40)}
WEIGHTS = tuple(SHAPES)
SPARSE = ("sparse threshold", "sparse magnitude", "sparse n:m", "sparse block")
QUANTIZED = (
    "quantized int8",
    "quantized int8, shifted",
    "quantized uint8, symmetric",
    "quantized int4",
    "quantized uint4 per block",
    "quantized int8 per block",
)
GROUPED = {"granularity": "per_grouped_channel", "group_size": 8}


def request(**options: Any) -> OptimizationConfig:
    return OptimizationConfig(OpPalettizerConfig(weight_threshold=0, **options))


def dense(source: Any) -> dict[str, np.ndarray]:
    """The plain weights by name, without what coremltools adds to one."""
    values = judges.decompressed_constants(source)
    return {
        weight: [  # the last one, behind a scale
            value
            for name, value in values.items()
            if _is_of(weight, name) and (value.dtype.kind, value.shape) == ("f", shape)
        ][-1]
        for weight, shape in SHAPES.items()
    }


def _is_of(weight: str, name: str) -> bool:
    return name == weight or name.startswith(f"{weight}_")


def squared(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def by_reference(model: Any, **options: Any) -> Any:
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=0, **options))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return cto.palettize_weights(model, config, joint_compression=True)


def row_of(report: Report, weight: str) -> Any:
    (row,) = [row for row in report.rows if _is_of(weight, row.name)]
    return row


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("sparse block", {"nbits": 2, "cluster_dim": 4, "lut_dtype": "uint8"}),
        ("sparse n:m", {"nbits": 4, "enable_per_channel_scale": True, **GROUPED}),
        ("quantized uint4 per block", {"nbits": 3}),
        ("quantized uint8, symmetric", {"nbits": 2, "cluster_dim": 2}),
        ("quantized int8, shifted", {"nbits": 4, **GROUPED}),
    ],
)
def test_palettes_are_foreseen(form: str, options: dict[str, Any]) -> None:
    package = open_package(foreign.build(form, "iOS18"))
    plan = decide(package, request(**options), joint_compression=True)
    chosen = [d for d in plan.decisions if isinstance(d.result, PaletteSpec)]
    assert chosen
    for decision in chosen:
        made = compute(decision.weight, decision.result)
        assert isinstance(made, Clustered)
        foreseen = strategy_of(decision.weight).foresee(decision.weight, decision.result)
        assert sizes_of(foreseen) == sizes_of(made.palette)


def sizes_of(palette: Any) -> dict[str, Any]:
    """What the parts of a palette are, but for their values; a mask is known."""
    values = attrs.asdict(palette, recurse=True)
    mask = values.pop("mask")
    sizes = {
        name: (value.dtype, value.shape) if isinstance(value, np.ndarray) else value
        for name, value in (*values.items(), *(values.pop("quantized") or {}).items())
        if name != "quantized"
    }
    return {**sizes, "mask": None if mask is None else mask.tolist()}


@pytest.mark.parametrize("options", [{"nbits": 3}, {"nbits": 2, **GROUPED}], ids=["one", "groups"])
@pytest.mark.parametrize("form", SPARSE)
def test_zeros_stay_and_the_rest_is_nearer_than_by_coremltools(
    form: str, options: dict[str, Any]
) -> None:
    source = foreign.build(form, "iOS18")
    reference = dense(by_reference(source, mode="kmeans", **options))
    result = palettize(source, request(**options), joint_compression=True)
    before, after = dense(source), dense(result.model)
    for weight in WEIGHTS:
        np.testing.assert_array_equal(before[weight] == 0, after[weight] == 0)
        if not before[weight].any():
            assert row_of(result.report, weight).reason == "all of it is zero"
            continue
        assert row_of(result.report, weight).is_palettized
        worst = squared(before[weight], reference[weight]) * (1 + 1e-9)
        assert squared(before[weight], after[weight]) <= worst
    # mask and values have no rows of their own
    assert not [row.name for row in result.report.rows if "." in row.name]


@pytest.mark.parametrize("form", QUANTIZED)
def test_integers_are_nearer_than_by_coremltools(form: str) -> None:
    source = foreign.build(form, "iOS18")
    result = palettize(source, request(nbits=3), joint_compression=True)
    before, after = dense(source), dense(result.model)
    if "int4" not in form:  # tables of int4 fail there
        reference = dense(by_reference(source, mode="kmeans", nbits=3))
    for weight in WEIGHTS:
        row = row_of(result.report, weight)
        assert row.is_palettized
        error = squared(before[weight], after[weight])
        signal = squared(before[weight], np.zeros_like(before[weight]))
        assert row.snr_db == pytest.approx(10 * np.log10(signal / error), abs=1e-6)
        if "int4" in form:
            assert error < 0.1 * signal
        else:
            assert error <= squared(before[weight], reference[weight]) * (1 + 1e-9)


@pytest.mark.parametrize("form", ["sparse threshold", "quantized int8", "quantized uint8"])
@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_older_forms_are_raised_first(form: str, target: str, tmp_path: Path) -> None:
    if (form, target) == ("quantized uint8", "iOS17"):
        target = "iOS16"
    source = foreign.build(form, target)
    with pytest.raises(TargetError, match=r"needs iOS18.*joint_compression=False"):
        palettize(source, request(nbits=4), joint_compression=True, output=tmp_path / "a")
    assert not list(tmp_path.iterdir())
    result = palettize(
        source, request(nbits=4), joint_compression=True, minimum_deployment_target="iOS18"
    )
    newer = palettize(foreign.build(form, "iOS18"), request(nbits=4), joint_compression=True)
    assert result.report.target_after == "iOS18"
    ours, direct = dense(result.model), dense(newer.model)
    for weight in WEIGHTS:
        np.testing.assert_array_equal(ours[weight], direct[weight])


def test_the_form_is_that_of_coremltools() -> None:
    source = foreign.build("sparse threshold", "iOS18")
    (theirs,) = judges.load_programs(by_reference(source, mode="kmeans", nbits=4))
    (ours,) = judges.load_programs(
        palettize_weights(source, request(nbits=4), joint_compression=True)
    )

    def shapes(program: Any) -> list[Any]:
        found = []
        for op in program.functions["main"].operations:
            if op.op_type.startswith("constexpr_"):
                inputs = {
                    name: (var.dtype, tuple(var.shape))
                    for name, var in op.inputs.items()
                    if var is not None
                }
                found.append((op.op_type, inputs, [tuple(o.shape) for o in op.outputs]))
        return found

    assert shapes(ours) == shapes(theirs)
    assert len(shapes(ours)) == 2 * len(WEIGHTS)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("sparse threshold", {"nbits": 4, "enable_per_channel_scale": True}),
        ("sparse magnitude", {"nbits": 4, "lut_dtype": "int8", **GROUPED}),
        ("sparse magnitude", {"nbits": 2, "lut_dtype": "uint8", "enable_per_channel_scale": True}),
        ("sparse block", {"nbits": 4, "cluster_dim": 4}),
        ("sparse threshold", {"nbits": 2, "mode": "uniform"}),
        ("quantized int4", {"mode": "unique"}),
        ("quantized uint8, symmetric", {"nbits": 2, "cluster_dim": 2}),
        ("quantized int8 per tensor", {"nbits": 4, "mode": "uniform", **GROUPED}),
    ],
)
def test_what_is_written_is_what_the_report_says(
    form: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source = foreign.build(form, "iOS18")
    result = palettize(source, request(**options), joint_compression=True)
    before, after = dense(source), dense(result.model)
    # decompression by the library agrees with that by coremltools
    plain = decompress(result.path, tmp_path / "plain.mlpackage")
    assert {row.name for row in result.report.palettized}
    rows = {row.name: row for row in result.report.rows}
    for weight in WEIGHTS:
        row = row_of(result.report, weight)
        if not row.is_palettized:
            np.testing.assert_array_equal(before[weight], after[weight])
            continue
        if "sparse" in form:
            np.testing.assert_array_equal(before[weight] == 0, after[weight] == 0)
        error = squared(before[weight], after[weight])
        signal = squared(before[weight], np.zeros_like(before[weight]))
        assert row.is_lossless == (error == 0)
        if error:
            assert row.snr_db == pytest.approx(10 * np.log10(signal / error), abs=1e-6)
        stored = next(w for w in plain.weights if w.name == row.name)
        assert stored.compression.nbytes == row.bytes_after
    values = judges.decompressed_constants(plain.path)
    for weight in WEIGHTS:
        np.testing.assert_array_equal(values[row_of(result.report, weight).name], after[weight])
    nbytes = foreseen_package_bytes(source, request(**options), joint_compression=True)
    assert nbytes == package_bytes(result.path)
    foreseen = preview(source, request(**options), joint_compression=True)
    assert {row.name: row.bytes_after for row in foreseen.rows} == {
        name: row.bytes_after for name, row in rows.items()
    }


def test_a_sparse_palette_larger_than_a_plain_one_is_warned_of(tmp_path: Path) -> None:
    # half a bit and one for the mask, against one bit
    source = foreign.build("sparse block", "iOS18")
    result = palettize(source, request(nbits=1), joint_compression=True)
    row = row_of(result.report, "conv_w")
    plain = decompress(source, tmp_path / "plain.mlpackage")
    alone = row_of(palettize(plain.path, request(nbits=1)).report, "conv_w")
    assert row.bytes_after > alone.bytes_after
    sizes = f"{human_bytes(row.bytes_after)} like this, {human_bytes(alone.bytes_after)} if"
    assert sizes in row.note

    thin = palettize(
        foreign.build("sparse magnitude", "iOS18"), request(nbits=8), joint_compression=True
    )
    assert row_of(thin.report, "conv_w").note is None


def test_vectors_that_reach_over_zeros_are_kept() -> None:
    source = foreign.build("sparse threshold", "iOS18")
    result = palettize(source, request(nbits=2, cluster_dim=2), joint_compression=True)
    assert not result.report.palettized
    assert "reach over zeros" in row_of(result.report, "conv_w").reason
    assert judges.messages_equal_except(source, result.path) == []


def test_without_joint_compression_nothing_of_it_changes() -> None:
    source = foreign.build("sparse threshold", "iOS18")
    result = palettize(source, request(nbits=2))
    assert row_of(result.report, "conv_w").reason == "compressed already"
    assert not result.report.palettized
    # mask and values are no rows of their own, and the way on is told
    assert {row.category for row in result.report.rows} == {"compressed already", "rank 0 or 1"}
    assert not [row.name for row in result.report.rows if "." in row.name]
    (note,) = result.report.notes
    assert note.startswith("4 of the weights that are already compressed can also be palettized")
    jointly = palettize(source, request(nbits=2), joint_compression=True)
    assert jointly.report.notes == ()


@pytest.mark.parametrize("form", ["sparse, quantized", "lut grouped", "palettized, quantized"])
def test_chains_and_palettes_are_left_alone(form: str) -> None:
    source = foreign.build(form, "iOS18")
    result = palettize(source, request(nbits=2), joint_compression=True)
    assert not result.report.palettized
    assert [row_of(result.report, weight).reason for weight in WEIGHTS] == 4 * [
        "compressed already"
    ]
    assert judges.messages_equal_except(source, result.path) == []


def test_a_result_that_is_larger_is_called_so() -> None:
    source = foreign.build("quantized int4 per block", "iOS18")
    report = palettize(source, request(mode="unique"), joint_compression=True).report
    assert report.bytes_after > report.bytes_before
    assert "times larger." in report.summary()
    assert "Larger than before: 4 palettized weights, " in report.summary()


def test_rules_by_type_and_name_reach_compressed_weights() -> None:
    source = foreign.build("sparse threshold", "iOS18")
    config = OptimizationConfig(
        op_type_configs={"conv": OpPalettizerConfig(nbits=2, weight_threshold=0)},
        op_name_configs={"linear": OpPalettizerConfig(nbits=6, weight_threshold=0)},
    )
    result = palettize(source, config, joint_compression=True, strict=True)
    assert row_of(result.report, "conv_w").nbits == 2
    assert row_of(result.report, "linear_w").nbits == 6
    assert not row_of(result.report, "y").is_palettized


def test_data_and_mask_in_const_operations_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((16, 8)) < 0.5
    data = rng.standard_normal(int(mask.sum())).astype(np.float16)
    package = foreign.handmade(
        tmp_path / "source.mlpackage",
        "iOS18",
        [
            foreign.constant("data", foreign.value(data, "fp16")),
            foreign.constant("mask", foreign.value(mask, "uint1")),
            foreign.constexpr(
                "sparse_to_dense", {"w": ("fp16", mask.shape)}, nonzero_data="data", mask="mask"
            ),
        ],
        reads=["w"],
    )
    result = palettize(package, request(nbits=2), joint_compression=True)
    (row,) = result.report.palettized
    assert (row.name, row.bytes_after) == ("w", -(-2 * data.size // 8) + 4 * 2 + 16)
    (program,) = open_package(result.path).programs
    names = [node.name for node in program.nodes()]
    assert "data" not in names
    assert "mask" not in names
    after = foreign.materialised_constants(result.path)["w"]
    np.testing.assert_array_equal(after == 0, ~mask)
    assert len(np.unique(after[mask].astype(np.float32))) <= 4
