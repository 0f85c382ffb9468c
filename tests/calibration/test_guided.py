"""Guided statistics: second moments of inputs, weighted by gradients of the outputs."""

import itertools

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch.nn import functional as F

from mlopt.calibration import Calibration, calibrate, merge
from mlopt.errors import ConfigError
from mlopt.runtime import load
from mlopt.runtime.comparison.random_samples import random_samples
from mlopt.statistics import content_of
from tests.calibration.comparisons import assert_same
from tests.calibration.test_operations import CASES, model_of, normal, powers
from tests.runtime.programs import convert

F32 = np.float32


def guided(model, samples, **options):
    return calibrate(model, samples, statistics="guided", **options)


def random_numbers(number, *shapes):
    """The v of a sample, for outputs of these shapes."""
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def moments_for(calibration, weight):
    """The moments of a weight, and the arrays that they are made of."""
    match = calibration.find("", weight.shape, content_of(weight))
    known = next(w for w in calibration.weights if w.content == content_of(weight))
    return match.moments, calibration.moments[known.moments]


def squares_by_position(case, shape, gradient):
    """The mean squared gradient over the rows of the weight, broadcast to the shape of outputs."""
    squares = np.square(gradient.numpy().astype(np.float64))
    if "conv" in case:
        groups = {"conv, groups": 2, "conv, depthwise": 4, "conv_transpose, groups": 2}
        n, _, *positions = squares.shape
        parted = squares.reshape(n, groups.get(case, 1), -1, *positions)
        means = np.broadcast_to(parted.mean(axis=2, keepdims=True), parted.shape)
        return means.reshape(squares.shape)
    if len(shape) == 1:
        return squares
    axis = -1
    if "left" in case or case == "matmul, partly batched":
        axis = -3 if "einsum" in case else -2
    return np.broadcast_to(squares.mean(axis=axis, keepdims=True), squares.shape)


@pytest.mark.parametrize("case", CASES)
def test_positions_count_by_the_gradients_at_their_outputs(case):
    operation, shape, x_shape = CASES[case]
    samples = [{"x": normal(*x_shape, seed=seed)} for seed in range(2)]
    x, weight = samples[0]["x"], normal(*shape, seed=7)
    model = model_of(operation, weight, x)
    calibration = guided(model, samples)
    moments, arrays = moments_for(calibration, weight)
    other = normal(*shape, seed=100)
    own, changed = load(model), load(model_of(operation, other, x))
    power = mean = total = 0.0
    for number, sample in enumerate(samples):
        (y,) = own.predict(sample).values()
        (v,) = random_numbers(number, y.shape)
        gradient = v / np.sqrt(np.square(y.astype(np.float64)).sum())
        factors = squares_by_position(case, shape, gradient)
        (answer,) = (each.astype(np.float64) for each in changed.predict(sample).values())
        power += (factors * np.square(answer)).sum()
        mean += (factors * answer).sum()
        total += factors.sum()
    rows = moments.arrangement.rows
    assert arrays.sensitivity.sum() * rows == pytest.approx(total, rel=1e-4)
    assert arrays.sensitivity.mean() * powers(moments, other)[0] == pytest.approx(power, rel=1e-4)
    matrices = moments.arrangement.matrices(other).astype(np.float64)
    means = np.einsum("bri,bi,b->", matrices, moments.mean, arrays.sensitivity)
    assert means == pytest.approx(mean, rel=1e-3, abs=1e-5)
    assert np.array_equal(moments.second, moments.second.transpose(0, 2, 1))


def weighted(inputs, gradients):
    """Mean of s x x^T by that of s, mean of s x by that of s; sum of s. [positions, features]."""
    x, g = (np.concatenate(each).astype(np.float64) for each in (inputs, gradients))
    s = np.square(g).mean(axis=1)
    return (x.T * s) @ x / s.sum(), s @ x / s.sum(), s.sum()


def assert_weighted(calibration, weight, inputs, gradients):
    moments, arrays = moments_for(calibration, weight)
    second, mean, total = weighted(inputs, gradients)
    assert np.allclose(moments.second[0], second, rtol=1e-3, atol=1e-4 * np.abs(second).max())
    assert np.allclose(moments.mean[0], mean, rtol=1e-3, atol=1e-4 * np.abs(mean).max())
    assert arrays.sensitivity[0] == pytest.approx(total, rel=1e-3)


def loss_of(number, outputs):
    numbers = random_numbers(number, *(output.shape for output in outputs))
    return sum((v * y).sum() / y.detach().norm() for v, y in zip(numbers, outputs, strict=True))


W0, W1 = normal(12, 5, seed=1), normal(9, 12, seed=2)
HEADS = normal(3, 9, seed=3), normal(40, 9, seed=4)
MLP_SAMPLES = [{"x": normal(6, 5, seed=50 + number)} for number in range(5)]


def two_heads():
    def program(x):
        h = mb.gelu(x=mb.linear(x=x, weight=W0), mode="EXACT")
        h = mb.tanh(x=mb.linear(x=h, weight=W1))
        return tuple(mb.linear(x=h, weight=head, name=f"head_{len(head)}") for head in HEADS)

    return convert(program, MLP_SAMPLES[0])


def test_a_network_with_two_heads_against_autograd():
    model = two_heads()
    calibration = guided(model, MLP_SAMPLES)
    order = load(model).plan.outputs
    inputs, gradients = ([[] for _ in range(4)] for _ in range(2))
    for number, sample in enumerate(MLP_SAMPLES):
        x = torch.from_numpy(sample["x"])
        first = (x @ torch.from_numpy(W0).T).requires_grad_()
        hidden = F.gelu(first)
        second = hidden @ torch.from_numpy(W1).T
        last = torch.tanh(second)
        heads = [last @ torch.from_numpy(head).T for head in HEADS]
        for each in (second, *heads):
            each.retain_grad()
        by_name = {f"head_{len(w)}": head for w, head in zip(HEADS, heads, strict=True)}
        loss_of(number, [by_name[name] for name in order]).backward()
        layers = ((x, first), (hidden, second), (last, heads[0]), (last, heads[1]))
        for i, (given, answer) in enumerate(layers):
            inputs[i].append(given.detach().numpy())
            gradients[i].append(answer.grad.numpy())
    for weight, x, g in zip((W0, W1, *HEADS), inputs, gradients, strict=True):
        assert_weighted(calibration, weight, x, g)
    keys = [weight.moments for weight in calibration.weights]
    assert len(set(keys)) == 4
    assert not any("gradient" in note for note in calibration.notes)


def test_a_convolutional_network_against_autograd():
    kernels, classes = (normal(6, 3, 3, 3, seed=1), normal(4, 6, 2, 2, seed=2)), normal(5, 4)
    samples = [{"x": normal(1, 3, 8, 7, seed=10 + number)} for number in range(3)]

    def program(x):
        h = mb.relu(x=mb.conv(x=x, weight=kernels[0], strides=[2, 1]))
        h = mb.relu(x=mb.conv(x=h, weight=kernels[1]))
        h = mb.reduce_mean(x=h, axes=[2, 3], keep_dims=False)
        return mb.softmax(x=mb.linear(x=h, weight=classes), axis=-1)

    calibration = guided(convert(program, samples[0]), samples)
    inputs, gradients = ([[] for _ in range(3)] for _ in range(2))
    for number, sample in enumerate(samples):
        tensors = [torch.from_numpy(each) for each in kernels]
        x = torch.from_numpy(sample["x"])
        first = F.conv2d(x, tensors[0], stride=(2, 1)).requires_grad_()
        hidden = F.relu(first)
        second = F.conv2d(hidden, tensors[1])
        pooled = F.relu(second).mean((2, 3))
        scores = pooled @ torch.from_numpy(classes).T
        for each in (second, scores):
            each.retain_grad()
        loss_of(number, [F.softmax(scores, -1)]).backward()
        patches = F.unfold(x, (3, 3), stride=(2, 1)), F.unfold(hidden, (2, 2))
        for i, each in enumerate((*patches, pooled.T[None])):
            inputs[i].append(each.detach()[0].T.numpy())
        for i, each in enumerate((first, second)):
            gradients[i].append(each.grad[0].flatten(1).T.numpy())
        gradients[2].append(scores.grad.numpy())
    for weight, x, g in zip((*kernels, classes), inputs, gradients, strict=True):
        assert_weighted(calibration, weight, x, g)


def test_the_factors_against_finite_differences():
    x = normal(1, 5, seed=9)

    def model(bias):
        def program(x):
            h = mb.tanh(x=mb.linear(x=x, weight=W0 / 4, bias=bias))
            return mb.sigmoid(x=mb.linear(x=h, weight=W1 / 4))

        return convert(program, {"x": x})

    def answer(bias):
        (y,) = load(model(bias)).predict({"x": x}).values()
        return y.astype(np.float64)

    zero = np.zeros(len(W0), F32)
    y = answer(zero)
    (v,) = random_numbers(0, y.shape)
    differences = []
    for row in np.eye(len(W0), dtype=F32):
        slope = (answer(0.02 * row) - answer(-0.02 * row)) / 0.04
        differences.append((v.numpy() * slope).sum() / np.linalg.norm(y))
    _, arrays = moments_for(guided(model(zero), [{"x": x}]), W0 / 4)
    assert arrays.sensitivity[0] == pytest.approx(np.square(differences).mean(), rel=2e-3)


def test_equal_factors_give_the_unweighted_moments():
    wide, x = normal(20000, 5), normal(8, 5, seed=1)
    model = model_of(lambda w, x: mb.linear(x=x, weight=w), wide, x)
    one, _ = moments_for(guided(model, [{"x": x}]), wide)
    other, _ = moments_for(calibrate(model, [{"x": x}]), wide)
    # of so many outputs the mean squared gradient is nearly the same at every position
    assert np.allclose(one.second, other.second, atol=0.05 * np.abs(other.second).max())
    assert np.allclose(one.mean, other.mean, atol=0.05 * np.abs(other.mean).max())
    alone = [{"x": x[:1]}]
    single = model_of(lambda w, x: mb.linear(x=x, weight=w), wide, x[:1])
    one, _ = moments_for(guided(single, alone), wide)
    other, _ = moments_for(calibrate(single, alone), wide)
    assert np.allclose(one.second, other.second, rtol=1e-5)
    assert np.allclose(one.mean, other.mean, rtol=1e-5)


def test_the_weighted_error_is_that_of_the_outputs():
    """To first order, for errors of a weight that are independent of each other."""
    rng = np.random.default_rng(0)
    samples = [{"x": normal(16, 5, seed=200 + number)} for number in range(40)]
    scale = 10.0 ** rng.uniform(-1, 0.5, W1.shape[0]).astype(F32)

    def model(weight):
        def program(x):
            h = mb.tanh(x=mb.linear(x=x, weight=W0 / 3))
            h = mb.mul(x=mb.tanh(x=mb.linear(x=h, weight=weight)), y=scale)
            return mb.linear(x=h, weight=HEADS[0])

        return convert(program, samples[0])

    weight = W1 / 3
    float_model = model(weight)
    moments, arrays = moments_for(guided(float_model, samples), weight)
    answers = [next(iter(load(float_model).predict(s).values())) for s in samples]
    measured, predicted = [], []
    for _ in range(12):
        stored = weight + rng.normal(0, 1e-3, weight.shape).astype(F32)
        changed = load(model(stored))
        measured.append(
            sum(
                np.square(next(iter(changed.predict(s).values())) - y).sum() / np.square(y).sum()
                for s, y in zip(samples, answers, strict=True)
            )
        )
        predicted.append(arrays.sensitivity[0] * moments.output_error(weight, stored))
    assert np.mean(predicted) == pytest.approx(np.mean(measured), rel=0.15)


def test_tokens_start_the_graph_at_the_embedding():
    table, head = normal(7, 5), normal(3, 5, seed=2)
    samples = [{"ids": np.array([0, 3, 3, 6], np.int32)}, {"ids": np.array([1, 3, 0, 2], np.int32)}]

    def program(ids):
        h = mb.tanh(x=mb.gather(x=table, indices=ids, axis=0))
        return mb.linear(x=h, weight=head)

    calibration = guided(convert(program, samples[0]), samples)
    moments, arrays = moments_for(calibration, table)
    wanted = np.zeros(7)
    for number, sample in enumerate(samples):
        rows = torch.from_numpy(table)[torch.from_numpy(sample["ids"]).long()].requires_grad_()
        loss_of(number, [torch.tanh(rows) @ torch.from_numpy(head).T]).backward()
        np.add.at(wanted, sample["ids"], rows.grad.square().mean(1).numpy())
    assert np.allclose(moments.diagonal[0], wanted / wanted.sum(), rtol=1e-4)
    assert arrays.sensitivity[0] == pytest.approx(wanted.sum(), rel=1e-4)
    assert moments.count == 8


def test_weights_that_no_gradient_reaches_are_named_and_unweighted():
    x, samples = normal(6, 5), [{"x": normal(6, 5, seed=number)} for number in range(2)]

    def program(x):
        h = mb.round(x=mb.linear(x=x, weight=W0))
        return mb.linear(x=h, weight=W1)

    model = convert(program, {"x": x})
    calibration, plain = guided(model, samples), calibrate(model, samples)
    note = next(note for note in calibration.notes if "gradient" in note)
    assert note.startswith("no gradient reached 1 weight, whose inputs all count alike: ")
    one, arrays = moments_for(calibration, W0)
    other, _ = moments_for(plain, W0)
    assert not arrays.is_guided
    assert np.array_equal(one.second, other.second)
    assert np.array_equal(one.mean, other.mean)
    assert calibration.find("", W0.shape, content_of(W0)).is_guided is False
    assert calibration.find("", W1.shape, content_of(W1)).is_guided
    joined = merge([guided(model, samples, part=(i, 2)) for i in (1, 2)])
    assert_same(calibration, joined)


def test_only_samples_that_a_gradient_reaches_count():
    samples = [{"x": sign * np.abs(normal(2, 5, seed=3))} for sign in (-1.0, 1.0, -1.0)]
    samples = [{"x": sample["x"].astype(F32)} for sample in samples]
    first = np.abs(W0)

    def program(x):
        h = mb.relu(x=mb.linear(x=x, weight=first))
        return mb.linear(x=h, weight=W1, bias=np.ones(9, F32))

    model = convert(program, samples[0])
    calibration = guided(model, samples)
    moments, _ = moments_for(calibration, first)
    x = samples[1]["x"]
    assert moments.count == 6
    assert moments.mean.min() > 0
    assert np.all(moments.diagonal[0] <= np.square(x).max(0) * 1.001)
    for order in itertools.permutations(range(3)):
        parts = [guided(model, samples, part=(i + 1, 3)) for i in order]
        assert_same(calibration, merge(parts))


def test_without_any_gradient_it_is_an_error(digits):
    x = normal(6, 5)
    model = convert(lambda x: mb.round(x=mb.linear(x=x, weight=W0)), {"x": x})
    with pytest.raises(ConfigError, match="sample 0: the outputs have no gradient at any"):
        guided(model, [{"x": x}])
    (name,) = load(digits).inputs
    (sample,) = random_samples(load(digits), 1, 0)
    wrong = {name: np.full_like(sample[name], np.nan)}
    with pytest.raises(ConfigError, match=r"sample 1: output '.*' has NaN or infinite elements"):
        guided(digits, [sample, wrong])
    root = convert(lambda x: mb.sqrt(x=mb.linear(x=mb.abs(x=x), weight=np.abs(W0))), {"x": x})
    with pytest.raises(ConfigError, match="sample 0: the gradient of the outputs at linear"):
        guided(root, [{"x": np.concatenate((np.zeros((1, 5), F32), x[1:]))}])


@pytest.mark.parametrize(
    "kind", ["control_flow", "recurrent", "stateful", "convolutional", "transformer", "matmuls"]
)
def test_kinds_of_models(package_of, kind):
    model = package_of(kind, "iOS18")
    samples = random_samples(load(model), 3, 0)
    calibration, plain = guided(model, samples), calibrate(model, samples)
    assert [w.name for w in calibration.weights] == [w.name for w in plain.weights]
    for one, other in zip(calibration.weights, plain.weights, strict=True):
        moments = calibration.moments_of(one)
        assert moments.count == plain.moments[other.moments].count
        assert moments.importance().shape == one.shape
    assert any(calibration.moments[w.moments].is_guided for w in calibration.weights)
    if kind == "recurrent":
        assert any("no gradient reached" in note for note in calibration.notes)


class EndError(BaseException):
    """The end of a run, in the middle."""


@pytest.fixture(scope="module")
def digit_samples(digits):
    return random_samples(load(digits), 5, 0)


def test_an_interrupted_run_goes_on(digits, digit_samples, tmp_path):
    def interrupted(after):
        yield from digit_samples[:after]
        raise EndError

    for after in (2, 3):
        with pytest.raises(EndError):
            guided(digits, interrupted(after), output=tmp_path / "a")
    with pytest.raises(ConfigError, match="the unfinished sums of another calibration"):
        calibrate(digits, digit_samples, output=tmp_path / "a")
    resumed = guided(digits, digit_samples, output=tmp_path / "a")
    in_memory = guided(digits, digit_samples)
    assert_same(in_memory, resumed, exactly=True)
    assert_same(in_memory, Calibration.load(tmp_path / "a"), exactly=True)
    assert Calibration.load(tmp_path / "a").statistics == "guided"


def test_parts_are_merged_by_their_sensitivities(digits, digit_samples, tmp_path):
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, path in enumerate(parts, start=1):
        guided(digits, digit_samples, part=(number, 2), output=path)
    merged = merge(parts, tmp_path / "merged")
    assert_same(guided(digits, digit_samples), merged)
    with pytest.raises(ConfigError, match="'guided', number 2 'hessian'"):
        merge([parts[0], calibrate(digits, digit_samples)])
