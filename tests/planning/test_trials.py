"""Trials: what is measured is what the package that is written gives."""

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt import runtime
from mlopt.calibration import calibrate
from mlopt.calibration.answers.runner import Runner
from mlopt.coreml import OpPalettizerConfig
from mlopt.planning import plan
from mlopt.planning.trials import Trials
from tests.models import build_program

FORM = OpPalettizerConfig(nbits=1, weight_threshold=256)


def test_biases_of_operations_in_blocks_are_corrected(tmp_path):
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float16)

    def program(x):
        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        return mb.cond(
            pred=mb.greater(x=total, y=np.float16(0)),
            _true_fn=lambda: mb.linear(x=x, weight=mb.const(val=weight, name="weight")),
            _false_fn=lambda: mb.identity(x=x),
        )

    model = build_program(program, (1, 32), target="iOS16", precision="float16")
    # inputs of a mean that is not 0, whose errors a bias takes up
    xs = np.random.default_rng(1).uniform(0.5, 1.5, size=(6, 1, 32)).astype(np.float32)
    samples = [{"x": x} for x in xs]
    output = tmp_path / "planned.mlpackage"
    recipe = plan(
        model,
        budget=3_300,
        samples=samples,
        calibration=calibrate(model, samples),
        candidates=[FORM],
        output=output,
    )
    assert recipe.weights[0].chosen.config == FORM
    (wanted,), (given,) = (
        zip(*(program.predict(s).values() for s in samples), strict=True)
        for program in (runtime.load(model), runtime.load(output))
    )
    error = np.square(np.subtract(wanted, given, dtype=float)).sum()
    assert recipe.measured == pytest.approx(error / np.square(wanted, dtype=float).sum(), rel=1e-3)


class Rounded:
    """A loss that is below 0 by a rounding error, as divergences of equal distributions are."""

    def note(self, originals):
        pass

    def __call__(self, outputs, originals):
        return torch.tensor(-1e-8)


def test_no_loss_is_below_0(digits):
    image = np.zeros((1, 1, 8, 8), np.float32)
    runner = Runner(runtime.load(digits), keeps_weights=True)
    trials = Trials(runner, Rounded(), [{"image": image}], identity="")
    assert trials.together([]) == 0.0
