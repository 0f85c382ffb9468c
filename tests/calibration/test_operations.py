"""The moments of every supported operation, against its own outputs for other weights.

``sum of y^2 = count tr(W H W^T)`` and ``sum of y = count 1^T W mu`` for the outputs y of an
operation without a bias, whatever the weight W: moments that hold for random ones are right.
"""

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch.nn import functional as F

from mlopt.calibration import calibrate
from mlopt.runtime import load
from mlopt.statistics import content_of
from tests.calibration.comparisons import only, powers
from tests.runtime.programs import convert

F32 = np.float32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1.0, shape).astype(F32)


def linear(w, x):
    return mb.linear(x=x, weight=w)


def conv(**options):
    return lambda w, x: mb.conv(x=x, weight=w, **options)


def transposed(**options):
    return lambda w, x: mb.conv_transpose(x=x, weight=w, **options)


def left(**options):
    return lambda w, x: mb.matmul(x=w, y=x, **options)


def right(**options):
    return lambda w, x: mb.matmul(x=x, y=w, **options)


def einsum_left(equation):
    return lambda w, x: mb.einsum(values=(w, x), equation=equation)


def einsum_right(equation):
    return lambda w, x: mb.einsum(values=(x, w), equation=equation)


CASES = {
    # operation, shape of the weight, shape of x
    "linear": (linear, (6, 5), (4, 5)),
    "linear, rank 3": (linear, (6, 5), (2, 4, 5)),
    "matmul, right": (right(), (5, 6), (4, 5)),
    "matmul, right, transposed": (right(transpose_y=True), (6, 5), (4, 5)),
    "matmul, right of a transposed one": (right(transpose_x=True), (5, 6), (5, 4)),
    "matmul, left": (left(), (6, 5), (5, 4)),
    "matmul, left, transposed": (left(transpose_x=True), (5, 6), (5, 4)),
    "matmul, left of a transposed one": (left(transpose_y=True), (6, 5), (4, 5)),
    "matmul, batched": (right(), (3, 5, 6), (3, 4, 5)),
    "matmul, batched with one input": (right(), (3, 5, 6), (4, 5)),
    "matmul, batches of inputs": (right(), (5, 6), (3, 4, 5)),
    "matmul, partly batched": (left(), (2, 1, 6, 5), (2, 3, 5, 4)),
    "matmul, batched by one": (right(), (1, 5, 6), (3, 4, 5)),
    "matmul, vector on the left": (left(), (12,), (12, 4)),
    "matmul of a vector": (right(), (5, 6), (5,)),
    "einsum, right": (einsum_right("nchw,nwhu->nchu"), (1, 5, 3, 6), (1, 4, 3, 5)),
    "einsum, left": (einsum_left("nchw,nwhu->nchu"), (1, 6, 3, 5), (1, 5, 3, 4)),
    "einsum, rank 3": (einsum_right("chw,whu->chu"), (5, 3, 6), (4, 3, 5)),
    "conv": (conv(), (6, 3, 3, 2), (2, 3, 7, 6)),
    "conv, 1 axis": (conv(strides=[2], pad_type="same"), (6, 3, 4), (1, 3, 9)),
    "conv, 3 axes": (conv(dilations=[1, 2, 1]), (6, 2, 2, 2, 3), (1, 2, 4, 5, 4)),
    "conv, point": (conv(), (6, 3, 1, 1), (1, 3, 4, 4)),
    "conv, strides, same": (
        conv(strides=[2, 3], pad_type="same"),
        (6, 3, 3, 3),
        (1, 3, 7, 8),
    ),
    "conv, same_lower": (
        conv(strides=[2, 2], pad_type="same_lower"),
        (6, 3, 3, 4),
        (1, 3, 8, 7),
    ),
    "conv, pads": (
        conv(pad_type="custom", pad=[1, 0, 2, 1], dilations=[2, 1]),
        (6, 3, 3, 3),
        (1, 3, 7, 6),
    ),
    "conv, groups": (conv(groups=2), (6, 2, 3, 3), (1, 4, 6, 6)),
    "conv, depthwise": (conv(groups=4, pad_type="same"), (8, 1, 3, 3), (2, 4, 6, 5)),
    "conv_transpose": (transposed(), (3, 4, 3, 2), (2, 3, 4, 5)),
    "conv_transpose, strides": (transposed(strides=[2, 3]), (3, 4, 3, 2), (1, 3, 4, 5)),
    "conv_transpose, groups": (transposed(strides=[2, 2], groups=2), (4, 3, 2, 2), (1, 4, 4, 5)),
    "conv_transpose, pads, dilations": (
        transposed(pad_type="custom", pad=[1, 2, 0, 1], dilations=[2, 1], strides=[2, 1]),
        (3, 4, 3, 3),
        (1, 3, 4, 5),
    ),
    "conv_transpose, same": (
        transposed(pad_type="same", strides=[2, 2]),
        (3, 4, 4, 3),
        (1, 3, 4, 5),
    ),
    "conv_transpose, 1 axis": (transposed(strides=[2]), (3, 4, 5), (1, 3, 6)),
}


def model_of(operation, weight, x, target="iOS16"):
    return convert(lambda x: operation(weight, x), {"x": x}, target=target)


@pytest.mark.parametrize("case", CASES)
def test_the_outputs_of_other_weights_have_the_power_that_the_moments_say(case):
    operation, shape, x_shape = CASES[case]
    samples = [{"x": normal(*x_shape, seed=seed)} for seed in range(2)]
    x = samples[0]["x"]
    calibration = calibrate(model_of(operation, normal(*shape, seed=7), x), samples)
    weight, moments = only(calibration)
    assert weight.shape == shape
    assert np.array_equal(moments.second, moments.second.transpose(0, 2, 1))
    assert np.allclose(np.einsum("bii->bi", moments.second), moments.diagonal, rtol=1e-5)
    for seed in range(3):
        other = normal(*shape, seed=100 + seed)
        program = load(model_of(operation, other, x))
        (name,) = program.outputs
        y = np.stack([program.predict(sample)[name] for sample in samples]).astype(np.float64)
        power, mean = powers(moments, other)
        assert np.square(y).sum() == pytest.approx(moments.count * power, rel=1e-5)
        assert y.sum() == pytest.approx(moments.count * mean, rel=1e-4, abs=1e-3)


def test_the_second_moments_of_a_convolution_are_those_of_its_patches():
    x = normal(2, 3, 7, 6)
    weight = normal(4, 3, 3, 2, seed=1)
    _, moments = only(calibrate(model_of(conv(strides=[2, 1]), weight, x), [{"x": x}]))
    patches = F.unfold(torch.from_numpy(x), (3, 2), stride=(2, 1)).numpy().astype(np.float64)
    columns = patches.transpose(1, 0, 2).reshape(18, -1)
    assert moments.count == columns.shape[1]
    assert np.allclose(moments.second[0], columns @ columns.T / columns.shape[1], atol=1e-5)
    assert np.allclose(moments.mean[0], columns.mean(1), atol=1e-6)


def test_large_patches_are_taken_in_parts(monkeypatch):
    from mlopt.calibration.readers import patches

    x, weight = normal(2, 3, 17, 16), normal(4, 3, 3, 2, seed=1)
    model = model_of(conv(), weight, x)
    _, whole = only(calibrate(model, [{"x": x}]))
    monkeypatch.setattr(patches, "CHUNK", 200)
    _, parts = only(calibrate(model, [{"x": x}]))
    assert parts.count == whole.count
    assert np.allclose(parts.second, whole.second, rtol=1e-5, atol=1e-5)


def gathered(table, indices, **options):
    return convert(
        lambda indices: mb.gather(x=table, indices=indices, **options),
        {"indices": indices},
        target="iOS16",
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis):
    table = normal(5, 6, 4)
    length = table.shape[axis]
    indices = np.array([0, 3, 3, -1, 2, 3], np.int32)
    calibration = calibrate(gathered(table, indices, axis=axis), [{"indices": indices}])
    weight, moments = only(calibration)
    share = np.bincount(indices % length, minlength=length) / len(indices)
    assert moments.second is None
    assert moments.count == len(indices)
    assert np.allclose(moments.diagonal, share)
    assert np.allclose(moments.mean, share)
    importance = moments.importance()
    assert importance.shape == weight.shape == table.shape
    shape = [1, 1, 1]
    shape[axis] = length
    damped = share + 0.01 / length  # of the mean share
    assert np.allclose(importance, np.broadcast_to(damped.reshape(shape), table.shape))


def test_gather_along_axis():
    table = normal(7, 5)
    indices = np.random.default_rng(0).integers(-7, 7, (4, 5)).astype(np.int32)
    model = convert(
        lambda indices: mb.gather_along_axis(x=table, indices=indices, axis=0),
        {"indices": indices},
        target="iOS16",
    )
    _, moments = only(calibrate(model, [{"indices": indices}]))
    share = [np.bincount(column % 7, minlength=7) / 4 for column in indices.T]
    damped = np.stack(share, axis=1) + 0.01 / 7  # of the mean share
    assert np.allclose(moments.importance(), damped)


def recurrent_model(name, x, weights, **options):
    gates, hidden = {"lstm": 4, "gru": 3, "rnn": 1}[name], 6
    sizes = 2 if options.get("direction") == "bidirectional" else 1
    state = np.full((x.shape[1], sizes * hidden), 0.5, F32)
    states = {"initial_h": state} | ({"initial_c": state} if name == "lstm" else {})
    for suffix in ("", "_back")[:sizes]:
        rng = np.random.default_rng(3 + len(suffix))
        for parameter, columns in (("weight_ih", x.shape[2]), ("weight_hh", hidden)):
            value = rng.normal(size=(gates * hidden, columns)).astype(F32) / 3
            weights[parameter + suffix] = value
    given = {**states, **weights, "output_sequence": True, **options}
    return convert(lambda x: getattr(mb, name)(x=x, **given), {"x": x}, target="iOS17")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_states_of_an_lstm_are_its_outputs_a_step_later(direction):
    x, weights = normal(5, 2, 3), {}
    model = recurrent_model("lstm", x, weights, direction=direction)
    calibration = calibrate(model, [{"x": x}])
    sequence = next(v for v in load(model).predict({"x": x}).values() if v.ndim == 3)
    for parameter, value in weights.items():
        moments = calibration.find("", value.shape, content_of(value)).moments
        if parameter.startswith("weight_ih"):
            rows = x.reshape(-1, 3)
        else:
            is_back = parameter.endswith("_back")
            own = sequence[..., 6:] if is_back else sequence[..., :6]
            own = own[::-1] if is_back else own
            rows = np.concatenate((np.full((1, 2, 6), 0.5, F32), own[:-1])).reshape(-1, 6)
        assert moments.count == len(rows)
        assert np.allclose(moments.second[0], rows.T @ rows / len(rows), atol=1e-5)


def test_states_that_are_not_known_have_no_statistics():
    x, weights = normal(5, 2, 3), {}
    model = recurrent_model("rnn", x, weights, output_sequence=False)
    calibration = calibrate(model, [{"x": x}])
    assert [weight.shape for weight in calibration.weights] == [(6, 3)]
    assert "puts out its last step only" in " ".join(calibration.without.values())
    model = recurrent_model("gru", x, {})
    assert "reset_after is false" in " ".join(calibrate(model, [{"x": x}]).without.values())
