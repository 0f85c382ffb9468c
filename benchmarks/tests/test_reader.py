"""The independent reader sees what coremltools itself decompresses, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.reader import expand, read_package

SHAPE = (24, 16)


def model_for(target: str, weight: np.ndarray) -> Any:
    """A program of one linear layer."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    opset = getattr(ct.target, target)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, SHAPE[1]))], opset_version=opset)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=weight, name="out")

    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("iOS16", {"nbits": 2}),
        ("iOS16", {"nbits": 6}),
        ("iOS18", {"nbits": 4}),
        ("iOS18", {"nbits": 3}),
        ("iOS18", {"nbits": 4, "granularity": "per_grouped_channel", "group_size": 4}),
        (
            "iOS18",
            {
                "nbits": 2,
                "granularity": "per_grouped_channel",
                "group_size": 4,
                "channel_axis": 1,
            },
        ),
        ("iOS18", {"nbits": 3, "cluster_dim": 4}),
        ("iOS18", {"nbits": 4, "enable_per_channel_scale": True}),
    ],
)
def test_reads_what_coremltools_decompresses(
    target: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    ct = import_coremltools()
    api = ct.optimize.coreml
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    config = api.OptimizationConfig(api.OpPalettizerConfig(weight_threshold=0, **settings))
    palettized = api.palettize_weights(model_for(target, weight.copy()), config)
    palettized.save(str(tmp_path / "palettized.mlpackage"))
    api.decompress_weights(palettized).save(str(tmp_path / "dense.mlpackage"))

    (stored,) = read_package(tmp_path / "palettized.mlpackage").values()
    (dense,) = read_package(tmp_path / "dense.mlpackage").values()

    assert stored.palettized
    assert not dense.palettized
    assert stored.shape == SHAPE
    np.testing.assert_array_equal(stored.read(), dense.read())


def test_expand_by_hand() -> None:
    table = np.array([[10.0, 11.0], [20.0, 21.0]]).reshape(2, 1, 2, 1)
    indices = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.uint8)
    expected = [[10, 11], [11, 11], [21, 20], [20, 20]]
    np.testing.assert_array_equal(expand(indices, table), expected)


def test_expand_vectors_along_axis_zero() -> None:
    table = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    indices = np.array([[0, 1], [1, 1]], np.uint8)
    expected = [[1, 3], [2, 4], [3, 3], [4, 4]]
    np.testing.assert_array_equal(expand(indices, table, vector_axis=0), expected)
