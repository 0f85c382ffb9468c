"""Raising a program and replacing its weights in one edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlopt.coreml import OptimizationConfig, palettize  # type: ignore[attr-defined]
from mlopt.coreml.inspection import inspect_weights
from mlopt.coreml.joint import integers
from mlopt.mil.package import Package
from mlopt.palette.palettize import NoPaletteError
from tests import foreign
from tests.coreml.joint.test_edges import affine, codes, rules


def test_what_turns_out_to_have_no_palette_is_raised_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = integers.palettize  # type: ignore[attr-defined]

    def second_fails(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise NoPaletteError("no table can hold it")
        return cluster(*args, **options)

    calls: list[Any] = []
    monkeypatch.setattr(integers, "palettize", second_fails)
    ops = [affine(name, codes("uint8", seed), np.uint8(3)) for seed, name in enumerate("ab")]
    package = foreign.handmade(tmp_path / "a.mlpackage", "iOS16", ops, "ab")
    result = palettize(
        package,
        OptimizationConfig(rules(nbits=2)),
        minimum_deployment_target="iOS18",
        joint_compression=True,
        workers=1,
    )
    assert [row.is_palettized for row in result.report.rows] == [True, False]
    assert result.report["b"].reason == "no table can hold it"
    forms = [row.compression for row in inspect_weights(result.path).rows]
    assert [form.operations[-1] for form in forms if form is not None] == [
        "constexpr_lut_to_dense",
        "constexpr_blockwise_shift_scale",
    ]
    before, after = (foreign.materialised_constants(path)["b"] for path in (package, result.path))
    np.testing.assert_array_equal(before, after)


def test_a_raised_model_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = foreign.handmade(
        tmp_path / "a.mlpackage", "iOS16", [affine("a", codes("uint8"), np.uint8(3))], "a"
    )
    opened: list[Any] = []
    initialize = Package.__init__

    def counted(self: Package, *args: Any, **options: Any) -> None:
        opened.append(args)
        initialize(self, *args, **options)

    monkeypatch.setattr(Package, "__init__", counted)
    report = palettize(
        package,
        OptimizationConfig(rules(nbits=2)),
        minimum_deployment_target="iOS18",
        joint_compression=True,
    ).report
    assert (report.target_before, report.target_after) == ("iOS16", "iOS18")
    assert len(opened) == 1
