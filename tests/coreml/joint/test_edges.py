"""Joint compression of packages made by hand: what coremltools' own functions do not write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, Report, palettize, preview
from mlopt.errors import ConfigError, TargetError
from tests import foreign, judges
from tests.foreign import constant, constexpr, value

SHAPE = (16, 8)


def rules(**options: Any) -> OpPalettizerConfig:
    return OpPalettizerConfig(weight_threshold=0, **options)


def palettized(
    package: Path, config: OptimizationConfig | None = None, target: str = "iOS18", **options: Any
) -> tuple[Report, dict[str, np.ndarray]]:
    """The report, judged by coremltools' decompression and by ``preview``; and the new values."""
    config = config or OptimizationConfig(rules(**options))
    common = {"joint_compression": True, "minimum_deployment_target": target}
    result = palettize(package, config, **common)
    before = foreign.materialised_constants(package)
    after = foreign.materialised_constants(result.path)
    for row in result.report.rows:
        if row.name not in before:
            continue
        old, new = (values[row.name].astype(np.float64) for values in (before, after))
        if not row.is_palettized:
            np.testing.assert_array_equal(old, new)
            continue
        noise, signal = np.sum((old - new) ** 2), np.sum(old**2)
        assert row.is_lossless == (noise == 0)
        if noise:
            assert row.snr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-6)
    foreseen = preview(package, config, **common)
    for row, ahead in zip(result.report.rows, foreseen.rows, strict=True):
        for field in ("name", "outcome", "reason", "note", "nbits", "bytes_before", "bytes_after"):
            assert getattr(row, field) == getattr(ahead, field)
    return result.report, after


def codes(dtype: str, seed: int = 0) -> np.ndarray:
    bounds = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(bounds.min, bounds.max + 1, SHAPE).astype(dtype)


def affine(name: str, data: np.ndarray, zero_point: Any, *, axis: int = 0) -> Any:
    return constexpr(
        "affine_dequantize",
        {name: ("fp16", data.shape)},
        old=True,
        quantized_data=value(data, data.dtype.name),
        zero_point=value(zero_point, np.asarray(zero_point).dtype.name.replace("float", "fp")),
        scale=value(np.float16(0.5), "fp16"),
        axis=value(np.int32(axis), "int32"),
    )


def blockwise(name: str, data: np.ndarray, scale: Any, offset: Any = None) -> Any:
    scale = np.asarray(scale, np.float16)
    parts = {"data": value(data, data.dtype.name), "scale": value(scale, "fp16")}
    if offset is not None:
        parts["offset"] = value(np.asarray(offset, np.float16), "fp16")
    return constexpr("blockwise_shift_scale", {name: ("fp16", data.shape)}, **parts)


def sparse(name: str, mask: str, seed: int = 0) -> list[Any]:
    data = np.random.default_rng(seed).standard_normal(np.count_nonzero(MASK)).astype(np.float16)
    return [
        constant(f"{name}_data", value(data, "fp16")),
        constexpr(
            "sparse_to_dense", {name: ("fp16", SHAPE)}, nonzero_data=f"{name}_data", mask=mask
        ),
    ]


MASK = np.random.default_rng(1).random(SHAPE) < 0.5


def names(package: Path) -> list[str]:
    spec, _ = judges.spec_and_weights(package)
    ops = judges.operations(spec.mlProgram.functions["main"])
    return [output.name for op in ops for output in op.outputs]


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("zero_point", [np.int8(5), np.float32(7), np.arange(16, dtype=np.int8)])
def test_a_zero_point_may_have_another_type(
    target: str, zero_point: np.ndarray, tmp_path: Path
) -> None:
    package = foreign.handmade(
        tmp_path / "a.mlpackage", target, [affine("w", codes("uint8"), zero_point)], ["w"]
    )
    report, _ = palettized(package, nbits=3)
    assert [row.name for row in report.palettized] == ["w"]


def test_an_offset_that_is_no_such_integer_keeps_the_weight(tmp_path: Path) -> None:
    ops = [
        affine("a", codes("uint8"), np.int8(-5)),
        blockwise("b", codes("int8"), [[1]], [[0.5]]),
        blockwise("c", codes("int8"), [[1]], [[4.0]]),
    ]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, "abc")
    report, _ = palettized(package, nbits=3)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["a"] == "an offset of its integers cannot be stored as uint8"
    assert reasons["b"] == "an offset of its integers cannot be stored as int8"
    assert [row.name for row in report.palettized] == ["c"]


def test_weights_that_raising_makes_equal_keep_their_own_decisions(tmp_path: Path) -> None:
    # One scale for all: the axis says nothing, and is gone afterwards.
    data = codes("uint8")
    ops = [affine(name, data, np.uint8(3), axis=axis) for axis, name in enumerate("ab")]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS16", ops, "ab")
    for wanted, left in ("ab", "ba"):
        config = OptimizationConfig(op_name_configs={wanted: rules(nbits=1), left: None})
        report, values = palettized(package, config)
        assert [row.name for row in report.palettized] == [wanted]
        assert len(np.unique(values[wanted].astype(np.float32))) == 2
        assert len(np.unique(values[left].astype(np.float32))) > 2


def test_constants_that_others_use_stay(tmp_path: Path) -> None:
    ops = [constant("mask", value(MASK, "uint1")), *sparse("a", "mask"), *sparse("b", "mask", 2)]
    package = foreign.handmade(tmp_path / "shared.mlpackage", "iOS18", ops, "ab")
    both = palettize(package, OptimizationConfig(rules(nbits=2)), joint_compression=True)
    assert not {"mask", "a_data", "b_data"} & set(names(both.path))
    config = OptimizationConfig(op_name_configs={"a": rules(nbits=2)})
    palettized(package, config)
    one = palettize(package, config, joint_compression=True)
    assert {"mask", "b_data"} <= set(names(one.path))

    returned = foreign.handmade(tmp_path / "r.mlpackage", "iOS18", ops, "ab", returns=["mask"])
    report, _ = palettized(returned, nbits=2)
    assert [row.name for row in report.rows if not row.is_palettized] == ["mask"]


def test_equal_weights_are_palettized_together_or_not_at_all(tmp_path: Path) -> None:
    ops = [constant("mask", value(MASK, "uint1")), *sparse("a", "mask"), *sparse("b", "mask")]
    together = foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, "ab")
    report, _ = palettized(together, nbits=2)
    assert [(row.name, row.is_palettized) for row in report.rows] == [("a", True)]
    # what an ordinary operation reads has to stay, and b shares its form with a
    read = foreign.handmade(tmp_path / "b.mlpackage", "iOS18", ops, ["a", "b", "b_data"])
    report, _ = palettized(read, nbits=2)
    assert {row.name: row.reason for row in report.rows} == {
        "a": "compressed already",
        "b_data": "part of something compressed already",
    }


@pytest.mark.parametrize("taken", ["w_nonzero_mask", "w_nonzero"])
def test_new_names_are_not_in_use(taken: str, tmp_path: Path) -> None:
    ops = [
        constant(taken, value(np.ones(16), "fp16")),
        constant("mask", value(MASK, "uint1")),
        *sparse("w", "mask"),
    ]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, ["w"])
    report, _ = palettized(package, nbits=2)
    assert [row.name for row in report.palettized] == ["w"]


def test_a_function_may_not_leave_the_range_of_the_weight(tmp_path: Path) -> None:
    def outside(data: np.ndarray) -> tuple[Iterable[float], np.ndarray]:
        return [1.0, 127.0], np.abs(data.reshape(-1)) > 0

    def inside(data: np.ndarray) -> tuple[Iterable[float], np.ndarray]:
        return [0.2, -0.6, 1.3], data.reshape(-1) % 3

    ops = [blockwise("w", codes("int8") % 2, [[1000]])]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, ["w"])
    report, _ = palettized(package, mode="custom", lut_function=outside)
    assert "out of the range of floats" in report["w"].reason
    _, values = palettized(package, mode="custom", lut_function=inside)
    assert set(np.unique(values["w"].astype(np.float32))) <= {0.0, -1000.0, 1000.0}


def test_what_is_kept_needs_no_newer_target(tmp_path: Path) -> None:
    nothing = constexpr(
        "sparse_to_dense",
        {"w": ("fp16", SHAPE)},
        old=True,
        nonzero_data=value(np.zeros(0, np.float16), "fp16"),
        mask=value(np.zeros(16, np.uint8), "uint8"),
        shape=value(np.array(SHAPE), "uint32"),
    )
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS16", [nothing], ["w"])
    for target in ("iOS16", "iOS18"):
        report, _ = palettized(package, target=target, nbits=2)
        assert (report["w"].reason, report.target_after) == ("all of it is zero", "iOS16")
    needing = [affine("w", codes("uint8"), np.uint8(3))]
    package = foreign.handmade(tmp_path / "b.mlpackage", "iOS16", needing, ["w"])
    with pytest.raises(TargetError, match="needs iOS18"):
        palettized(package, target="iOS16", nbits=2)


def test_weights_with_few_values_have_rows(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), bool)
    mask[0, :3] = True
    few = constexpr(
        "sparse_to_dense",
        {"w": ("fp16", mask.shape)},
        old=True,
        nonzero_data=value(np.array([1, 2, 3]), "fp16"),
        mask=value(np.packbits(mask.reshape(-1), bitorder="little"), "uint8"),
        shape=value(np.array(mask.shape), "uint32"),
    )
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS16", [few], ["w"])
    report, _ = palettized(package, nbits=2)
    assert [(row.name, row.is_lossless) for row in report.palettized] == [("w", True)]


def test_rules_reach_weights_by_each_name_and_never_their_parts(tmp_path: Path) -> None:
    ops = [blockwise(name, codes("int8"), [[1]]) for name in "ab"]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, "ab")
    for key in ("b", "b_read"):
        config = OptimizationConfig(op_name_configs={key: rules(nbits=2)})
        result = palettize(package, config, joint_compression=True, strict=True)
        assert result.report["a"].is_palettized
    for config in (
        OptimizationConfig(op_name_configs={"b.data": rules(nbits=2)}),
        OptimizationConfig(op_type_configs={"constexpr_*": rules(nbits=2)}),
    ):
        for joint in (False, True):
            with pytest.raises(ConfigError, match="apply to no weight"):
                palettize(package, config, joint_compression=joint, strict=True)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, -0.25, 6e-8])
def test_odd_scales(scale: float, tmp_path: Path) -> None:
    scales = np.full((16, 1), 0.5)
    scales[3] = scale
    ops = [blockwise("w", codes("int8"), scales)]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS18", ops, ["w"])
    report, _ = palettized(package, nbits=2)
    assert report["w"].is_palettized == np.isfinite(scale)


def test_a_compressed_weight_without_elements_has_no_row(tmp_path: Path) -> None:
    # damaged: the values are there, but the declared result has no elements
    data = np.ones(SHAPE, np.int8)
    package = foreign.handmade(
        tmp_path / "source.mlpackage",
        "iOS18",
        [
            constexpr(
                "blockwise_shift_scale",
                {"w": ("fp16", (0, 8))},
                data=value(data, "int8"),
                scale=value(np.ones((1, 1), np.float16), "fp16"),
            )
        ],
        reads=["w"],
    )
    result = palettize(package, OptimizationConfig(rules(nbits=2)))
    assert not result.report.rows
    assert "w" in names(result.path)
