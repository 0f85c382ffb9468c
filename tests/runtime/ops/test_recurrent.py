"""Recurrent layers against their equations step by step, and against PyTorch's modules."""

from __future__ import annotations

import functools

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from mlopt.runtime import load
from mlopt.runtime.ops import recurrent
from mlopt.runtime.ops.recurrent import gru, lstm, rnn
from tests import models
from tests.runtime.programs import assert_of_halves, run

STEPS, BATCH, INPUTS, HIDDEN = 4, 2, 3, 5
DIRECTIONS = ("forward", "reverse")
RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True, params=["fused", "step by step"])
def way(request, monkeypatch):
    """Every layer by PyTorch's kernels, where they take it, and step by step."""
    if request.param == "step by step":
        monkeypatch.setattr(recurrent, "can_be_fused", lambda *tensors: False)
    return request.param


X, H, C = random(STEPS, BATCH, INPUTS), random(BATCH, HIDDEN), random(BATCH, HIDDEN)


def weights(gates):
    return {
        "weight_ih": random(gates * HIDDEN, INPUTS),
        "weight_hh": random(gates * HIDDEN, HIDDEN),
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {
    "hard_sigmoid": lambda x: np.minimum(np.maximum(0.2 * x + 0.5, 0), 1),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "scaled_tanh": np.tanh,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
}


def order(direction):
    """The steps as they are taken."""
    return range(STEPS) if direction == "forward" else range(STEPS - 1, -1, -1)


def check(found, wanted, rtol=1e-5, atol=1e-5):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def as_output(outputs, output_sequence):
    return np.stack(outputs if output_sequence else outputs[-1:])


def wanted_rnn(
    weight_ih,
    weight_hh,
    bias=None,
    direction="forward",
    output_sequence=False,
    activation="tanh",
):
    h, outputs = H.astype(np.float64), []
    for t in order(direction):
        new = np.empty_like(h)
        for b in range(BATCH):
            total = weight_ih @ X[t, b] + weight_hh @ h[b] + (0 if bias is None else bias)
            new[b] = FUNCTIONS[activation](total)
        h = new
        outputs.append(h)
    return as_output(outputs, output_sequence), h


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_rnn(direction, output_sequence, has_bias, target):
    given = weights(1) | {"direction": direction, "output_sequence": output_sequence}
    if has_bias:
        given["bias"] = random(HIDDEN)
    inputs = {"x": X, "initial_h": H}
    found = run(
        lambda x, initial_h: mb.rnn(x=x, initial_h=initial_h, **given), inputs, target=target
    )
    check(found, wanted_rnn(**given))


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations_of_rnn(activation):
    given = weights(1) | {"activation": activation, "output_sequence": True}
    inputs = {"x": X, "initial_h": H}
    found = run(lambda x, initial_h: mb.rnn(x=x, initial_h=initial_h, **given), inputs)
    check(found, wanted_rnn(**given))


def wanted_gru(
    weight_ih,
    weight_hh,
    bias=None,
    direction="forward",
    output_sequence=False,
    recurrent_activation="sigmoid",
    activation="tanh",
    reset_after=False,
    input_bias=None,
):
    zeros = np.zeros(3 * HIDDEN)
    w_r, w_o, w_z = np.split(weight_ih, 3)
    r_r, r_o, r_z = np.split(weight_hh, 3)
    b_r, b_o, b_z = np.split(zeros if bias is None else bias, 3)
    i_r, i_o, i_z = np.split(zeros if input_bias is None else input_bias, 3)
    gate, function = FUNCTIONS[recurrent_activation], FUNCTIONS[activation]
    h, outputs = H.astype(np.float64), []
    for t in order(direction):
        new = np.empty_like(h)
        for b in range(BATCH):
            r = gate(w_r @ X[t, b] + i_r + r_r @ h[b] + b_r)
            z = gate(w_z @ X[t, b] + i_z + r_z @ h[b] + b_z)
            if reset_after:
                o = function(w_o @ X[t, b] + i_o + r * (r_o @ h[b] + b_o))
            else:
                o = function(w_o @ X[t, b] + i_o + r_o @ (r * h[b]) + b_o)
            new[b] = (1 - z) * o + z * h[b]
        h = new
        outputs.append(h)
    return as_output(outputs, output_sequence), h


def run_gru(given, target="iOS15"):
    return run(
        lambda x, initial_h: mb.gru(x=x, initial_h=initial_h, **given),
        {"x": X, "initial_h": H},
        target=target,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS18"])
def test_gru(direction, output_sequence, has_bias, target):
    given = weights(3) | {"direction": direction, "output_sequence": output_sequence}
    if has_bias:
        given["bias"] = random(3 * HIDDEN)
    check(run_gru(given, target), wanted_gru(**given))


@pytest.mark.parametrize(("first", "second"), [("tanh", "relu"), ("hard_sigmoid", "linear")])
def test_activations_of_gru(first, second):
    given = weights(3) | {
        "recurrent_activation": first,
        "activation": second,
        "output_sequence": True,
    }
    check(run_gru(given), wanted_gru(**given))


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_input_bias", [False, True])
def test_gru_of_the_newest_opset(reset_after, has_bias, has_input_bias):
    given = weights(3) | {"reset_after": reset_after, "output_sequence": True}
    if has_bias:
        given["bias"] = random(3 * HIDDEN)
    if has_input_bias:
        given["input_bias"] = random(3 * HIDDEN)
    check(run_gru(given, "iOS18"), wanted_gru(**given))


def reordered(tensor, *places):
    """Rows of a weight of PyTorch in the order of Core ML."""
    parts = np.split(tensor.detach().numpy(), len(places))
    return np.concatenate([parts[place] for place in places])


def test_gru_with_the_reset_after_is_that_of_pytorch():
    torch.manual_seed(0)
    module = torch.nn.GRU(INPUTS, HIDDEN)
    given = {
        "weight_ih": reordered(module.weight_ih_l0, 0, 2, 1),
        "weight_hh": reordered(module.weight_hh_l0, 0, 2, 1),
        "input_bias": reordered(module.bias_ih_l0, 0, 2, 1),
        "bias": reordered(module.bias_hh_l0, 0, 2, 1),
        "reset_after": True,
        "output_sequence": True,
    }
    with torch.no_grad():
        outputs, hidden = module(torch.from_numpy(X), torch.from_numpy(H)[None])
    check(run_gru(given, "iOS18"), (outputs.numpy(), hidden.numpy()[0]))


def wanted_lstm_of_one(
    h,
    c,
    weight_ih,
    weight_hh,
    bias=None,
    peephole=None,
    direction="forward",
    recurrent_activation="sigmoid",
    cell_activation="tanh",
    activation="tanh",
    clip=None,
):
    w_i, w_f, w_o, w_z = np.split(weight_ih, 4)
    r_i, r_f, r_o, r_z = np.split(weight_hh, 4)
    b_i, b_f, b_o, b_z = np.split(np.zeros(4 * HIDDEN) if bias is None else bias, 4)
    p_i, p_f, p_o = np.split(np.zeros(3 * HIDDEN) if peephole is None else peephole, 3)
    gate, cell = FUNCTIONS[recurrent_activation], FUNCTIONS[cell_activation]
    h, c, outputs = h.astype(np.float64), c.astype(np.float64), []
    for t in order(direction):
        h, c = h.copy(), c.copy()
        for b in range(BATCH):
            x, last = X[t, b], h[b].copy()
            i = gate(w_i @ x + r_i @ last + b_i + p_i * c[b])
            f = gate(w_f @ x + r_f @ last + b_f + p_f * c[b])
            z = cell(w_z @ x + r_z @ last + b_z)
            c[b] = f * c[b] + i * z
            if clip is not None:
                c[b] = np.minimum(np.maximum(c[b], -clip), clip)
            o = gate(w_o @ x + r_o @ last + b_o + p_o * c[b])
            h[b] = o * FUNCTIONS[activation](c[b])
        outputs.append(h)
    return outputs, h, c


def wanted_lstm(output_sequence=False, direction="forward", **given):
    if direction != "bidirectional":
        outputs, h, c = wanted_lstm_of_one(H, C, direction=direction, **given)
        return as_output(outputs, output_sequence), h, c
    ahead = {name: value for name, value in given.items() if not name.endswith("_back")}
    back = ahead | {
        name.removesuffix("_back"): value for name, value in given.items() if name.endswith("_back")
    }
    first, h1, c1 = wanted_lstm_of_one(H, C, **ahead)
    second, h2, c2 = wanted_lstm_of_one(-H, -C, direction="reverse", **back)
    if not output_sequence:
        outputs = [np.concatenate((first[-1], second[-1]), axis=1)]
    else:
        # the second of them has gone through the last step first
        outputs = [np.concatenate((first[t], second[STEPS - 1 - t]), axis=1) for t in range(STEPS)]
    return np.stack(outputs), np.concatenate((h1, h2), axis=1), np.concatenate((c1, c2), axis=1)


def run_lstm(given, target="iOS15"):
    two = given.get("direction") == "bidirectional"
    inputs = {
        "x": X,
        "initial_h": np.concatenate((H, -H), axis=1) if two else H,
        "initial_c": np.concatenate((C, -C), axis=1) if two else C,
    }

    def build(x, initial_h, initial_c):
        return mb.lstm(x=x, initial_h=initial_h, initial_c=initial_c, **given)

    return run(build, inputs, target=target)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_lstm(direction, output_sequence, has_bias, target):
    given = weights(4) | {"direction": direction, "output_sequence": output_sequence}
    if has_bias:
        given["bias"] = random(4 * HIDDEN)
    check(run_lstm(given, target), wanted_lstm(**given))


@pytest.mark.parametrize("direction", [*DIRECTIONS, "bidirectional"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_lstm_with_peephole_and_clip(direction, clip):
    given = weights(4) | {"peephole": random(3 * HIDDEN), "direction": direction}
    if clip is not None:
        given["clip"] = np.float32(clip)
    if direction == "bidirectional":
        given |= {f"{name}_back": value for name, value in weights(4).items()}
        given["peephole_back"] = random(3 * HIDDEN)
    check(run_lstm(given), wanted_lstm(**given))


@pytest.mark.parametrize("output_sequence", [False, True])
@pytest.mark.parametrize("biases", [(), ("bias",), ("bias_back",), ("bias", "bias_back")])
def test_bidirectional_lstm(output_sequence, biases):
    given = weights(4) | {f"{name}_back": value for name, value in weights(4).items()}
    given |= {"direction": "bidirectional", "output_sequence": output_sequence}
    given |= {name: random(4 * HIDDEN) for name in biases}
    wanted = given | ({} if "bias_back" in biases else {"bias_back": None})
    check(run_lstm(given), wanted_lstm(**wanted))


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("hard_sigmoid", "relu", "linear"),
        ("tanh", "scaled_tanh", "sigmoid"),
        ("linear", "hard_sigmoid", "relu"),
    ],
)
def test_activations_of_lstm(first, second, third):
    given = weights(4) | {
        "recurrent_activation": first,
        "cell_activation": second,
        "activation": third,
        "output_sequence": True,
    }
    check(run_lstm(given), wanted_lstm(**given))


MODULES = {
    "lstm": functools.partial(torch.nn.LSTM, INPUTS, HIDDEN),
    "lstm of two layers, both directions, no bias": functools.partial(
        torch.nn.LSTM, INPUTS, HIDDEN, num_layers=2, bidirectional=True, bias=False
    ),
    "lstm, batch first": functools.partial(torch.nn.LSTM, INPUTS, HIDDEN, batch_first=True),
    "gru of both directions": functools.partial(
        torch.nn.GRU, INPUTS, HIDDEN, bidirectional=True, num_layers=2
    ),
    "rnn of two layers": functools.partial(torch.nn.RNN, INPUTS, HIDDEN, num_layers=2),
    "rnn, relu": functools.partial(torch.nn.RNN, INPUTS, HIDDEN, nonlinearity="relu"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_pytorch(name):
    torch.manual_seed(1)
    module = MODULES[name]().eval()

    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x):
            outputs, state = self.module(x)
            return (outputs, *state) if isinstance(state, tuple) else (outputs, state)

    x = torch.from_numpy(X)
    with torch.no_grad():
        wanted = Outputs()(x)
        traced = models.quietly(torch.jit.trace, Outputs(), x)
    names = [f"out_{number}" for number in range(len(wanted))]
    model = models.quietly(
        ct.convert,
        traced,
        inputs=[ct.TensorType(shape=X.shape, name="x")],
        outputs=[ct.TensorType(name=name) for name in names],
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    found = load(model).predict({"x": X})
    check([found[name] for name in names], [tensor.numpy() for tensor in wanted])


def halved(values):
    return {
        name: value.astype(np.float16) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def test_half_precision():
    given = weights(4) | {"bias": random(4 * HIDDEN), "output_sequence": True}
    inputs = halved({"x": X, "initial_h": H, "initial_c": C})
    found = run(
        lambda **variables: mb.lstm(**variables, **halved(given)),
        inputs,
        target="iOS17",
        computed="as_declared",
    )
    for array in found:
        assert_of_halves(array)
    check(found, wanted_lstm(**given), rtol=5e-3, atol=5e-3)


def tensors(gates):
    return [torch.from_numpy(array) for array in weights(gates).values()]


def test_bad_arguments():
    x, h = torch.from_numpy(X), torch.from_numpy(H)
    with pytest.raises(ValueError, match="direction must be one of forward, reverse, got 'both'"):
        rnn(x, h, *tensors(1), direction="both")
    with pytest.raises(ValueError, match=r"an activation must be one of .*, got 'gelu'"):
        gru(x, h, *tensors(3), activation="gelu")
    with pytest.raises(ValueError, match=r"need 3 \* 5 rows, got 20 and 20"):
        gru(x, h, *tensors(4))
    with pytest.raises(ValueError, match="a bidirectional layer needs weight_ih_back and"):
        lstm(x, h, h, *tensors(4), direction="bidirectional")
    with pytest.raises(ValueError, match="weights must be matrices"):
        rnn(x, h, h[0], h)


def test_the_usual_layers_are_fused(way, monkeypatch):
    calls = []
    for name in ("fused_rnn", "fused_gru", "fused_lstm"):
        kernel = getattr(recurrent, name)
        monkeypatch.setattr(
            recurrent, name, lambda *a, f=kernel, n=name, **k: (calls.append(n), f(*a, **k))[1]
        )
    x, h = torch.from_numpy(X), torch.from_numpy(H)
    rnn(x, h, *tensors(1))
    gru(x, h, *tensors(3), reset_after=True)
    lstm(x, h, h, *tensors(4))
    # no kernel computes these
    gru(x, h, *tensors(3))
    lstm(x, h, h, *tensors(4), clip=1.0)
    lstm(x, h, h, *tensors(4), activation="relu")
    lstm(x[:0], h, h, *tensors(4))
    assert calls == (["fused_rnn", "fused_gru", "fused_lstm"] if way == "fused" else [])


@pytest.mark.parametrize("batch", [1, 8])
def test_one_state_for_a_batch(batch):
    """As a traced module has it whose state is a buffer; the kernels would go out of bounds."""
    x, h = torch.randn(3, batch, INPUTS), torch.randn(1, HIDDEN)
    spread = h.expand(batch, HIDDEN).contiguous()
    for function, gates, count in ((rnn, 1, 1), (gru, 3, 1), (lstm, 4, 2)):
        given = tensors(gates)
        options = {"reset_after": True} if function is gru else {}
        found = function(x, *[h] * count, *given, output_sequence=True, **options)
        wanted = function(x, *[spread] * count, *given, output_sequence=True, **options)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_shapes_that_do_not_fit_are_refused_before_any_kernel():
    x, h = torch.from_numpy(X), torch.from_numpy(H)
    weight_ih, weight_hh = tensors(4)
    for wrong in (
        (x, h, h, weight_ih[:, :2], weight_hh),
        (x, torch.cat([h, h]), h, weight_ih, weight_hh),
        (x, h, torch.cat([h, h]), weight_ih, weight_hh),
        (x, h, h, weight_ih, weight_hh, torch.zeros(7)),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            lstm(*wrong)


def test_layers_without_units():
    empty = torch.zeros(BATCH, 0)
    found, _, _ = lstm(torch.from_numpy(X), empty, empty, torch.zeros(0, INPUTS), torch.zeros(0, 0))
    assert found.shape == (1, BATCH, 0)
