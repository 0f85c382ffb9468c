"""Foreseen bytes against those of the packages that are written."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from mlopt.calibration import calibrate, palettize_sequentially
from mlopt.coreml import palettize
from mlopt.coreml.calibrated import guides_of
from mlopt.coreml.decisions import decide
from mlopt.coreml.foreseen import foreseen_nbytes, foreseen_package_bytes
from mlopt.coreml.inspection import package_bytes
from mlopt.errors import TargetError
from mlopt.mil.opening import open_package
from mlopt.palette.value.spec import PaletteSpec
from tests.coreml.conftest import by_name, chain, global_config, saved
from tests.runtime.programs import convert

FORMS = (
    {"nbits": 1},
    {"nbits": 8, "weight_threshold": 20},
    {"nbits": 4, "mode": "uniform"},
    {"nbits": 3, "weight_threshold": 20},
    {"nbits": 4, "mode": "uniform", "enable_per_channel_scale": True},
    {"mode": "unique"},
    {"nbits": 6, "granularity": "per_grouped_channel", "group_size": 8, "weight_threshold": 20},
    {"nbits": 4, "cluster_dim": 2, "lut_dtype": "int8"},
    {"nbits": 2, "cluster_dim": 4, "enable_per_channel_scale": True, "weight_threshold": 20},
    {"nbits": 8, "granularity": "per_grouped_channel", "group_size": 4, "lut_dtype": "uint8"},
)
TARGETS = ("iOS16", "iOS17", "iOS18")


def written(source, config, folder, **options):
    return package_bytes(palettize(source, config, output=folder / "out", **options).path)


@pytest.mark.parametrize("target", TARGETS)
def test_every_form_on_the_digits(digits, tmp_path, target):
    checked = 0
    for form in FORMS:
        config, options = global_config(**form), {"minimum_deployment_target": target}
        try:
            expected = written(digits, config, tmp_path, **options)
        except TargetError:
            continue
        assert foreseen_package_bytes(digits, config, **options) == expected, form
        checked += 1
    assert checked >= (len(FORMS) if target == "iOS18" else 4)


@pytest.mark.parametrize(
    ("kind", "target"),
    [("multifunction", "iOS18"), ("pipeline", "iOS15"), ("transformer", "iOS15")],
)
def test_functions_and_programs(package_of, tmp_path, kind, target):
    source = package_of(kind, target)
    for options in ({"nbits": 4}, {"nbits": 3, "enable_per_channel_scale": True}):
        config = global_config(weight_threshold=200, **options)
        allowed = {"minimum_deployment_target": "iOS18"}
        expected = written(source, config, tmp_path, **allowed)
        assert foreseen_package_bytes(source, config, **allowed) == expected


def test_what_is_equal_is_stored_once(tmp_path):
    """Weights of equal values, tables of equal steps, and weights of two values."""
    draw = np.random.default_rng(0)
    first, bits = draw.standard_normal((64, 64)), draw.integers(0, 2, (64, 64))
    weights = {"w0": first, "w1": first + 0, "w2": 2.0 * bits - 1, "w3": 6.0 * bits - 3}
    weights |= {"w4": draw.uniform(-1, 1, (64, 64)), "w5": draw.uniform(-1, 1, (64, 64))}
    weights["w4"][0, :2] = weights["w5"][0, :2] = -1, 1
    model = chain({name: each.astype(np.float16) for name, each in weights.items()}, "iOS18")
    source = saved(model, tmp_path / "source.mlpackage")
    for mode in ("kmeans", "uniform"):
        config = global_config(mode=mode)
        assert foreseen_package_bytes(source, config) == written(source, config, tmp_path)


WIDTH = 40
RULES = {f"{name}_weight": {"nbits": 2, "weight_threshold": 100} for name in ("first", "last")}


@functools.cache
def calibrated(folder):
    """A model with a bias of its own, one that two layers share, and none; its samples."""
    draw = np.random.default_rng(1)
    a, b, c, d = draw.standard_normal((4, WIDTH, WIDTH)).astype(np.float32)
    mine, shared = draw.standard_normal((2, WIDTH)).astype(np.float32)
    samples = [{"x": draw.standard_normal((8, WIDTH)).astype(np.float32)} for _ in range(12)]

    def program(x):
        bias = mb.const(val=shared, name="shared_bias")
        x = mb.relu(x=mb.linear(x=x, weight=a, bias=mine, name="first"))
        x = mb.relu(x=mb.linear(x=x, weight=b, bias=bias, name="second"))
        x = mb.relu(x=mb.linear(x=x, weight=c, bias=bias, name="third"))
        return mb.linear(x=x, weight=d, name="last")

    source = saved(convert(program, samples[0], target="iOS18"), folder / "source.mlpackage")
    return source, samples, calibrate(source, samples)


def test_with_a_calibration(tmp_path_factory, tmp_path):
    source, samples, calibration = calibrated(tmp_path_factory.getbasetemp())
    for form in ({"nbits": 4, "cluster_dim": 2}, {"nbits": 2, "lut_dtype": "uint8"}):
        config = global_config(weight_threshold=100, **form)
        for correct in (False, True):
            options = {"calibration": calibration, "correct_biases": correct}
            expected = written(source, config, tmp_path, **options)
            assert foreseen_package_bytes(source, config, **options) == expected
    result = palettize_sequentially(source, config, samples, calibration=calibration)
    found = foreseen_package_bytes(source, config, calibration=calibration)
    assert found == package_bytes(result.path)
    assert found != foreseen_package_bytes(source, config)


def test_nothing_is_written_and_the_model_can_be_used_again(digits):
    before = sorted(digits.parent.iterdir())
    model_file = digits / "Data/com.apple.CoreML/model.mlmodel"
    content = model_file.read_bytes()
    first = foreseen_package_bytes(digits, global_config())
    assert first == foreseen_package_bytes(digits, global_config())
    assert sorted(digits.parent.iterdir()) == before
    assert model_file.read_bytes() == content


def test_sums_over_weights(digits):
    """They differ from sizes of packages by one number, but for a few bytes of each reference."""
    differences, options = [], {"minimum_deployment_target": "iOS18"}
    for form in ({"nbits": 4, "weight_threshold": 10**9}, *FORMS):
        if form.get("enable_per_channel_scale") and form.get("mode") == "uniform":
            continue  # the tables of all weights are equal, and stored once
        config = global_config(**form)
        plan = decide(open_package(digits), config, **options)
        palettes = [d.result if isinstance(d.result, PaletteSpec) else None for d in plan.decisions]
        costs = [
            foreseen_nbytes(decision.weight, spec, target=plan.target_after)
            for decision, spec in zip(plan.decisions, palettes, strict=True)
        ]
        differences.append(foreseen_package_bytes(digits, config, **options) - sum(costs))
    assert len(differences) == len(FORMS)
    assert max(differences) - min(differences) < 32


def test_the_sum_of_a_corrected_bias(tmp_path_factory):
    source, _, calibration = calibrated(tmp_path_factory.getbasetemp())
    differences = []
    for correct in (False, True):
        plan = decide(open_package(source), by_name(RULES))
        guides = guides_of(plan.decisions, calibration, correct_biases=correct)
        costs = [
            foreseen_nbytes(
                decision.weight,
                decision.result if isinstance(decision.result, PaletteSpec) else None,
                target=plan.target_after,
                guidance=guides.of(decision.weight),
            )
            for decision in plan.decisions
        ]
        options = {"calibration": calibration, "correct_biases": correct}
        size = foreseen_package_bytes(source, by_name(RULES), **options)
        differences.append(size - sum(costs))
    assert abs(differences[0] - differences[1]) < 16
