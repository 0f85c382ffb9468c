"""Gradients of tuned constants against finite differences, in every form that has some."""

import numpy as np
import pytest
import torch

from mlopt.calibration.answers.losses import SquaredError
from mlopt.calibration.answers.runner import Runner
from mlopt.calibration.tuning.parameters import Parameter
from mlopt.calibration.tuning.substitutes import Substitutes
from mlopt.calibration.tuning.tunables import tunables_of
from mlopt.choices import TUNED
from mlopt.coreml.weights import weights_of
from mlopt.mil.opening import open_package
from mlopt.runtime import load
from mlopt.runtime.comparison.random_samples import random_samples
from tests import foreign, models

CASES = [
    (name, target)
    for name, form in foreign.FORMS.items()
    for target in form.targets
    if "float32" in form.precisions and name != "sparse threshold" and target != "iOS17"
]

KINDS = {"lut scaled": {"tables", "scales"}, "sparse, palettized": {"tables"}}


class Distance:
    """The squared error of a model's answers for one sample, and its gradient."""

    def __init__(self, compressed, original, what=TUNED):
        self.runner = Runner(load(compressed), keeps_weights=True)
        (sample,) = random_samples(self.runner.program, 1, 0)
        self.inputs = self.runner.converted(sample)
        with torch.no_grad():
            self.wanted = Runner(load(original), keeps_weights=False).outputs(self.inputs, 0)
        self.loss = SquaredError()
        self.loss.note(self.wanted)
        _, (nodes,) = weights_of(open_package(compressed))
        found, self.left = tunables_of(nodes, self.runner.program.function, what)
        parameters = {each.key: Parameter(each, torch.device("cpu")) for each in found}
        self.substitutes = Substitutes(self.runner.program, parameters)
        self.parameters = list(self.substitutes.parameters.values())

    def __call__(self):
        with torch.no_grad():
            leaves = self.substitutes.leaves(with_gradients=False)
            return self.loss(self.runner.outputs(self.inputs, 0, leaves), self.wanted).item()

    def gradients(self):
        leaves = self.substitutes.leaves(with_gradients=True)
        self.loss(self.runner.outputs(self.inputs, 0, leaves), self.wanted).backward()
        return dict(self.substitutes.gradients(leaves))

    def difference(self, parameter, direction, length):
        start, values = parameter.numbers.clone(), []
        for sign in (1, -1):
            parameter.numbers = start + sign * length * direction
            values.append(self())
        parameter.numbers = start
        return (values[0] - values[1]) / (2 * length)


def assert_gradients(distance):
    gradients = distance.gradients()
    assert [*gradients] == distance.parameters
    assert sum(bool(each.any()) for each in gradients.values()) > len(gradients) // 2
    largest = max(float(each.norm()) * p.unit for p, each in gradients.items())
    for parameter, gradient in gradients.items():
        if not bool(gradient.any()):
            continue
        # along the gradient, where rounding counts least, and in both halves of it apart
        for half in (slice(None), slice(None, None, 2), slice(1, None, 2)):
            direction = torch.zeros(gradient.numel())
            direction[half] = gradient.reshape(-1)[half]
            wanted = float(direction.norm())
            if wanted * parameter.unit < 1e-2 * largest:
                continue  # too little to be seen in a loss in float32
            direction = (direction / wanted).reshape(gradient.shape)
            slope = distance.difference(parameter, direction, 1e-2 * parameter.unit)
            assert slope == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.short("lut kmeans 4 iOS16", "lut vectors, grouped iOS18", "sparse, quantized iOS18")
def test_every_form(case):
    name, target = case
    distance = Distance(foreign.build(name, target, "float32"), foreign.source(target, "float32"))
    kinds = {each.tunable.kind for each in distance.parameters} - {"biases"}
    assert kinds == KINDS.get(name, {"tables" if "lut" in name else "scales"})
    assert_gradients(distance)


@pytest.mark.short("transformer")
@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_biases_and_norms(kind):
    model = models.build(kind, "iOS18", "float32")
    noise = np.random.default_rng(0)
    distance = Distance(model, model, ("biases", "norms"))
    for parameter in distance.parameters:  # at the model itself there is no slope
        shape = tuple(parameter.numbers.shape)
        parameter.numbers += 0.1 * torch.from_numpy(noise.normal(size=shape).astype(np.float32))
    assert {each.tunable.kind for each in distance.parameters} == {"biases", "norms"}
    for parameter in distance.parameters:
        parameter.unit = parameter.unit or 0.1
    assert_gradients(distance)
