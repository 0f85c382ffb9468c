"""Losses of guided statistics: their gradients, names, and what has none."""

import attrs
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.calibration import calibrate, merge
from mlopt.calibration.losses import loss_of
from mlopt.errors import ConfigError
from tests.runtime.programs import convert

WEIGHT = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
SAMPLES = [
    {"x": np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)}
    for seed in range(1, 9)
]
SCORES = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.1, -0.2]])


def mean_of_products(loss, outputs, draws):
    """The mean of g g^T over draws, g the gradient at the outputs, flattened."""
    total = torch.zeros(outputs.numel(), outputs.numel())
    for number in range(draws):
        leaf = outputs.clone().requires_grad_()
        loss_of(loss, {"y": leaf}, number).backward()
        gradient = leaf.grad.reshape(-1)
        total += gradient[:, None] * gradient
    return total / draws


def hessian_of_divergence(log_probabilities, outputs):
    """The second derivative of sum p log(p / q) in the outputs that give q, where q is p."""
    wanted = log_probabilities(outputs)

    def divergence(given):
        return (wanted.exp() * (wanted - log_probabilities(given))).sum()

    size = outputs.numel()
    return torch.autograd.functional.hessian(divergence, outputs).reshape(size, size)


@pytest.mark.parametrize("kind", ["scores", "probabilities"])
def test_the_mean_product_of_gradients_is_the_hessian_of_the_divergence(kind):
    outputs = SCORES if kind == "scores" else SCORES.softmax(1)
    own = {"scores": lambda y: y.log_softmax(1), "probabilities": torch.log}[kind]
    wanted = hessian_of_divergence(own, outputs)
    found = mean_of_products("kl", outputs, 3000)
    assert torch.allclose(found, wanted, atol=0.1 * float(wanted.max()))


def test_the_mean_product_of_gradients_of_squares_is_the_identity_by_the_power():
    found = mean_of_products("squared", SCORES, 3000)
    wanted = torch.eye(6) / SCORES.square().sum()
    assert torch.allclose(found, wanted, atol=0.1 * float(wanted.max()))


def classifier(has_softmax):
    def program(x):
        y = mb.linear(x=x, weight=WEIGHT, name="scores")
        return mb.softmax(x=y, axis=-1, name="classes") if has_softmax else y

    return convert(program, SAMPLES[0])


def guided(model, samples=SAMPLES, **options):
    return calibrate(model, samples, statistics="guided", **options)


def test_scores_and_their_probabilities_have_the_same_statistics():
    one, other = (guided(classifier(has_softmax), loss="kl") for has_softmax in (False, True))
    assert np.allclose(one.moments["0"].second, other.moments["0"].second, rtol=1e-3, atol=1e-4)
    assert one.moments["0"].sensitivity == pytest.approx(other.moments["0"].sensitivity, rel=1e-3)


def test_a_loss_of_ones_own():
    """With the sum of outputs all positions count alike: as without gradients."""
    model = classifier(has_softmax=False)
    own = guided(model, loss=lambda outputs: sum(y.sum() for y in outputs.values()))
    plain = calibrate(model, SAMPLES)
    assert own.loss == "custom"
    assert np.allclose(own.moments["0"].second, plain.moments["0"].second, rtol=1e-4, atol=1e-5)


def test_the_loss_is_part_of_the_file_and_of_what_is_merged(tmp_path):
    model = classifier(has_softmax=True)
    path = tmp_path / "kl.calibration"
    known = guided(model, loss="kl", output=path)
    assert type(known).load(path).loss == "kl"
    squared = guided(model)
    assert squared.identity != known.identity
    with pytest.raises(ConfigError, match=r"different losses cannot be merged: .*'kl'.*'squared'"):
        merge([known, squared])
    assert attrs.evolve(known, loss="squared").identity == squared.identity


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "cross entropy"}, "loss must be 'squared' or 'kl', or a function"),
        ({"loss": "kl", "statistics": "hessian"}, "loss 'kl' is for guided statistics"),
        ({"loss": lambda outputs: 3.0}, "a tensor of one element"),
    ],
)
def test_losses_that_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        calibrate(classifier(has_softmax=False), SAMPLES, **{"statistics": "guided", **options})


def test_outputs_without_classes_are_refused():
    model = convert(
        lambda x: mb.reduce_sum(x=mb.linear(x=x, weight=WEIGHT), axes=[-1], keep_dims=True),
        SAMPLES[0],
    )
    with pytest.raises(ConfigError, match="loss 'kl' is for outputs of classes"):
        guided(model, loss="kl")
