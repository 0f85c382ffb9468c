"""Pipelines: every program is calibrated in one run, and fitted by its own statistics."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

import mlopt.coreml as cto
from mlopt.calibration import calibrate
from mlopt.errors import ConfigError, InputError
from mlopt.runtime import load
from tests import models
from tests.calibration.comparisons import assert_same
from tests.cli.commands import invoke
from tests.runtime.programs import convert

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(64, 64)) * np.exp(-np.arange(64) / 12)[:, None]
SAMPLES = [{"x": (RNG.normal(size=(1, 64)) @ MIX).astype(np.float32)} for _ in range(80)]
CONFIG = cto.OptimizationConfig(global_config=cto.OpPalettizerConfig(nbits=2, weight_threshold=0))


@pytest.fixture(scope="module")
def pipeline(package_of):
    return package_of("pipeline")


@pytest.fixture(scope="module")
def calibration(pipeline):
    return calibrate(pipeline, SAMPLES)


def between(pipeline):
    """What the second program is given."""
    first = load(pipeline, stage=0)
    return [first.predict(sample)["between"] for sample in SAMPLES]


def test_each_program_has_the_moments_of_its_inputs(pipeline, calibration):
    assert [weight.shape for weight in calibration.weights] == [(96, 64), (48, 96)]
    assert calibration.weights[0].name == calibration.weights[1].name
    inputs = np.concatenate([sample["x"] for sample in SAMPLES]), np.concatenate(between(pipeline))
    for weight, x in zip(calibration.weights, inputs, strict=True):
        moments = calibration.moments_of(weight)
        assert moments.count == 80
        second = x.T.astype(np.float64) @ x / 80
        np.testing.assert_allclose(moments.second[0], second, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.mean[0], x.mean(0), rtol=1e-4, atol=1e-5)
    # biases of both, which have equal names
    assert len(calibration.without) == 2
    assert sum(name.startswith("model 1/") for name in calibration.without) == 1


def test_palettize_fits_every_program(pipeline, calibration, tmp_path):
    ratios = {}
    for name, options in {"plain": {}, "fitted": {"calibration": calibration}}.items():
        output = tmp_path / f"{name}.mlpackage"
        report = cto.palettize(pipeline, CONFIG, output=output, **options).report
        method = "hessian" if options else "plain"
        assert [row.method for row in report.palettized] == [method] * 2
        assert sum(row.has_corrected_bias for row in report.palettized) == 2 * bool(options)
        wanted, given = (
            np.concatenate([load(path).predict(sample)["out"] for sample in SAMPLES])
            for path in (pipeline, output)
        )
        ratios[name] = 10 * np.log10((wanted**2).sum() / ((given - wanted) ** 2).sum())
    assert ratios["fitted"] > ratios["plain"] + 3


def test_in_a_file_and_on_the_command_line(pipeline, calibration, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.concatenate([sample["x"] for sample in SAMPLES]))
    given = ("--data", tmp_path / "data.npz", "-o", tmp_path / "a")
    result = invoke("calibrate", pipeline, *given)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("80 samples, hessian statistics of 2 weights")
    assert_same(calibration, type(calibration).load(tmp_path / "a"), exactly=True)
    output = tmp_path / "small.mlpackage"
    options = ("--nbits", 2, "--calibration", tmp_path / "a", "-o", output)
    result = invoke("palettize", pipeline, *options)
    assert result.exit_code == 0, result.output


def test_what_is_refused(pipeline):
    with pytest.raises(ConfigError, match=r"guided statistics are of one ML program.*'hessian'"):
        calibrate(pipeline, SAMPLES, statistics="guided")
    with pytest.raises(ConfigError, match="has no function 'f'"):
        calibrate(pipeline, SAMPLES, function="f")
    with pytest.raises(InputError, match=r"sample 1: .*no input 'y'"):
        calibrate(pipeline, [SAMPLES[0], {"y": SAMPLES[0]["x"]}])


def stage(inputs, output, weight, op):
    """A program that multiplies its input by a constant ``w``."""

    def body(**given):
        (x,) = given.values()
        constant = mb.const(val=weight, name="w")
        made = mb.linear(x=x, weight=constant) if op == "linear" else mb.matmul(x=x, y=constant)
        return mb.identity(x=made, name=output)

    return convert(body, {inputs: np.ones((1, 64), np.float32)})


@pytest.mark.parametrize("ops", [("linear", "linear"), ("linear", "matmul")])
def test_equal_weights_of_several_programs(ops, tmp_path):
    weight = (RNG.normal(size=(64, 64)) / 8).astype(np.float32)
    stages = [stage("x", "y", weight, ops[0]), stage("y", "z", weight, ops[1])]
    made = models.quietly(ct.utils.make_pipeline, *stages)
    path = tmp_path / "p.mlpackage"
    models.quietly(made.save, str(path))
    calibration = calibrate(path, SAMPLES)
    x = np.concatenate([sample["x"] for sample in SAMPLES]).astype(np.float64)
    y = x @ weight.T
    found = {weight.moments for weight in calibration.weights}
    if ops[0] == ops[1]:
        assert len(found) == len(calibration.moments) == 1
        moments = calibration.moments_of(calibration.weights[0])
        assert moments.count == 160
        np.testing.assert_allclose(
            moments.second[0], (x.T @ x + y.T @ y) / 160, rtol=1e-3, atol=1e-4
        )
        assert "weight 'w' has the statistics of all 2 models that read it" in calibration.notes
    else:
        assert len(found) == len(calibration.moments) == 2
        assert any("in different ways; it has" in note for note in calibration.notes)
