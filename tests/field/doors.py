"""What users do to a package, each step judged by coremltools, PyTorch or ONNX Runtime.

A door takes the package and a folder to write to. It returns what it saw in a few words, and raises
AssertionError where a judge disagrees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlopt.coreml as mc
from mlopt import runtime
from mlopt.coreml.inspection import inspect_weights
from mlopt.errors import ModelFormatError
from mlopt.runtime.comparison.random_samples import random_samples
from tests import judges
from tests.field.models import same_network_in_onnx

Door = Callable[[Path, Path], str]

GROUPS = {"granularity": "per_grouped_channel", "on_indivisible": "divisor"}
FORMS: Mapping[str, dict[str, Any]] = {
    "8 bits": {"nbits": 8},
    "6 bits": {"nbits": 6},
    "4 bits": {"nbits": 4},
    "2 bits": {"nbits": 2},
    "uniform": {"nbits": 8, "mode": "uniform"},
    "unique": {"mode": "unique"},
    "groups": {"nbits": 4, "group_size": 16, **GROUPS},
    "groups of inputs": {"nbits": 4, "group_size": 16, "channel_axis": 1, **GROUPS},
    "vectors": {"nbits": 4, "cluster_dim": 2},
    "long vectors": {"nbits": 8, "cluster_dim": 4},
    "scale": {"nbits": 4, "enable_per_channel_scale": True},
    "scale and groups": {"nbits": 4, "enable_per_channel_scale": True, "group_size": 16, **GROUPS},
    "integer tables": {"nbits": 4, "lut_dtype": "int8"},
}
SAMPLES = 2
"""Random inputs on which answers are compared."""
CLOSE = 1e-5
"""Of the largest output: how far the same network may be off in another runtime, in float32."""


def doors(package: Path) -> dict[str, Door]:
    """The doors of a package by name, in the order in which they are tried."""
    found: dict[str, Door] = {"inspect": inspect, "lint": lint, "run": run}
    if same_network_in_onnx(package) is not None:
        found["ONNX Runtime"] = onnx_runtime
    found["raise"] = raise_target
    found["decompress"] = decompress
    for name, options in FORMS.items():
        found[name] = _palettizing(options)
    return found


def is_program(package: Path) -> bool:
    """Whether it holds an ML program; what does not is refused by a name for what it is."""
    import coremltools as ct

    kind = ct.utils.load_spec(str(package)).WhichOneof("Type")
    if kind in ("mlProgram", "pipeline"):
        return True
    with pytest.raises(ModelFormatError, match=kind):
        inspect_weights(package)
    return False


def inspect(package: Path, folder: Path) -> str:
    """Every weight that coremltools lists is there under its name, with its values."""
    import coremltools as ct
    import coremltools.optimize.coreml as reference

    str(inspect_weights(package, statistics=True))
    model = ct.models.MLModel(str(package), skip_model_load=True)
    expected = reference.get_weights_metadata(model, weight_threshold=0)
    found = mc.get_weights_metadata(package, weight_threshold=0)
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name].val, weight.val, err_msg=name)
    return f"{len(found)} weights, {len(expected)} of them as coremltools lists them"


def lint(package: Path, folder: Path) -> str:
    """Findings, as text and as JSON."""
    report = mc.lint(package)
    str(report)
    report.to_json()
    return f"{len(report.findings)} findings"


def run(package: Path, folder: Path) -> str:
    """Random inputs give finite outputs; the same twice."""
    first, second = (_answers(package) for _ in range(2))
    for name, value in first.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    return f"{len(first)} outputs"


def onnx_runtime(package: Path, folder: Path) -> str:
    """The same network in ONNX gives the same answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(same_network_in_onnx(package)), providers=["CPUExecutionProvider"]
    )
    program = runtime.load(package)
    (sample,) = random_samples(program, 1)
    (given,) = sample.values()
    expected = session.run(None, {session.get_inputs()[0].name: given})
    found = [np.asarray(value) for value in program.predict(sample).values()]
    worst = 0.0
    for value in expected:
        scale = np.abs(value).max()
        alike = [other for other in found if other.shape == value.shape]
        worst = max(worst, min(float(np.abs(value - other).max() / scale) for other in alike))
    assert worst <= CLOSE, f"{worst} of the largest output apart"
    return f"{worst:.1e} of the largest output apart"


def raise_target(package: Path, folder: Path) -> str:
    """Loaded and type-checked by coremltools, the same constants, the same answers."""
    output = folder / "raised.mlpackage"
    mc.raise_target(package, output, "iOS18")
    before, after = _constants_of(package), judges.decompressed_constants(output)
    for name, value in before.items():
        if value.dtype.kind == "f":
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    answers = _answers(output)
    for name, value in _answers(package).items():
        np.testing.assert_array_equal(answers[name], value, err_msg=name)
    return f"{len(before)} constants"


def decompress(package: Path, folder: Path) -> str:
    """What coremltools decompresses, value for value."""
    output = folder / "plain.mlpackage"
    mc.decompress(package, output)
    _same_constants(_constants_of(package), judges.decompressed_constants(output))
    return "the same values"


def _palettizing(options: dict[str, Any]) -> Door:
    def palettize(package: Path, folder: Path) -> str:
        """The report is true of what coremltools decompresses, and the answers are compared."""
        output, plain = folder / "palettized.mlpackage", folder / "palettized-plain.mlpackage"
        config = mc.OptimizationConfig(global_config=mc.OpPalettizerConfig(**options))
        result = mc.palettize(package, config, output=output, minimum_deployment_target="iOS18")
        str(result.report)
        result.report.to_json()
        before, after = _constants_of(package), judges.decompressed_constants(output)
        for row in result.report:
            _check_row(row, before, after)
        mc.decompress(output, plain)
        _same_constants(after, judges.decompressed_constants(plain))
        comparison = runtime.compare(package, output, random=SAMPLES)
        str(comparison)
        worst = min(row.distance.snr_db for row in comparison.outputs)
        kept = len(result.report) - len(result.report.palettized)
        return (
            f"{len(result.report.palettized)} palettized, {kept} kept, "
            f"{result.report.ratio:.2f} times smaller, answers {worst:.1f} dB"
        )

    return palettize


@functools.lru_cache(maxsize=1)
def _constants_of(package: Path) -> dict[str, np.ndarray]:
    """What coremltools reads of a package that every door compares with."""
    return judges.decompressed_constants(package)


def _check_row(row: Any, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    """A row's error is that of the values which coremltools reads."""
    if row.name not in before:
        return  # a weight without a constant of its own has another name there
    old, new = (values[row.name].astype(np.float64) for values in (before, after))
    if row.outcome != "palettized":
        np.testing.assert_array_equal(old, new, err_msg=row.name)
        return
    noise = float(((old - new) ** 2).sum())
    if noise == 0:
        assert row.snr_db == float("inf"), row
        return
    snr = 10 * np.log10((old**2).sum() / noise)
    assert abs(snr - row.snr_db) < 1e-3, f"{row.name}: {row.snr_db} dB reported, {snr} dB read"


def _same_constants(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    for name, value in found.items():
        if name in expected:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def _answers(package: Path) -> dict[str, np.ndarray]:
    program = runtime.load(package)
    (sample,) = random_samples(program, 1)
    return {name: np.asarray(value) for name, value in program.predict(sample).items()}
