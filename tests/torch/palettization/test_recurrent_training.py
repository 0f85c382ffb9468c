"""Recurrent networks whose palettes follow training, or heed what a loss depends on."""

import copy

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from mlopt.torch import convert
from mlopt.torch.activations import NAME
from mlopt.torch.palettization import (
    DKMPalettizer,
    DKMPalettizerConfig,
    FakePalettize,
    SKMPalettizer,
    SKMPalettizerConfig,
)
from tests.torch.conversions import compressed_weights, outputs, quietly
from tests.torch.palettization.test_post_training import palettized
from tests.torch.palettization.test_recurrent import KINDS, X, computed, network, weights

TARGET = X.flip(1)[..., :8]


def loss_of(model, x=X):
    return (model(x) - TARGET).square().mean()


def prepared(model, inplace=False, **options):
    rules = {"global_config": {"n_bits": 2, "weight_threshold": 0} | options}
    palettizer = DKMPalettizer(model, DKMPalettizerConfig.from_dict(rules))
    return palettizer, palettizer.prepare(inplace)


def train(palettizer, model, steps=4):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        palettizer.step()
        losses.append(float(loss.detach()))
    return losses


def used(model, kind):
    """The parameters of a plain network, as those of a prepared one are computed now."""
    modules = dict(model.named_modules())
    found = {}
    for name, _ in network(kind).named_parameters():
        module_name, _, own = name.rpartition(".")
        found[name] = getattr(modules[module_name], own)
    return found


def original(model, name):
    module_name, _, own = name.rpartition(".")
    return getattr(model.get_submodule(module_name).parametrizations, own).original


@pytest.mark.parametrize("kind", KINDS)
def test_passes_compute_with_the_palettes_and_their_gradients_go_through(kind):
    _, model = prepared(network(kind))
    loss_of(model).backward()
    names = list(weights(network(kind)))
    gradients = {name: original(model, name).grad.clone() for name in names}
    model.zero_grad()
    values = used(model, kind)
    assert set(names) == {name for name, w in values.items() if w.grad_fn is not None}
    loss = (functional_call(network(kind), values, (X,)) - TARGET).square().mean()
    loss.backward()
    for name in names:
        gradient = original(model, name).grad
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradients[name], gradient)

    model.eval()
    with torch.no_grad():
        values = used(model, kind)
        for name in names:
            assert values[name].unique().numel() <= 4
        expected = functional_call(network(kind), values, (X,))
        torch.testing.assert_close(model(X), expected)
        assert (expected - network(kind)(X)).abs().max() > 1e-3


def test_each_weight_is_computed_once_a_pass(monkeypatch):
    calls = []
    forward = FakePalettize.forward
    monkeypatch.setattr(
        FakePalettize, "forward", lambda self, w: calls.append(self) or forward(self, w)
    )
    _, model = prepared(network("LSTM"))
    model(X)
    assert len(calls) == len(set(calls)) == 9
    model(X)
    assert len(calls) == 18


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.covering(1)
def test_trained_networks_are_finalized_and_converted(kind, inplace):
    given = network(kind)
    palettizer, model = prepared(given, inplace)
    losses = train(palettizer, model)
    assert losses[-1] < losses[0]
    final = palettizer.finalize(inplace=inplace)
    assert (final is given) == inplace
    report = palettizer.report()
    assert {row.name for row in report.palettized} == set(weights(network(kind)))
    assert type(final.recurrent) is type(network(kind).recurrent)
    assert all(isinstance(p, nn.Parameter) for p in final.recurrent._flat_weights)
    assert {n for n, _ in final.named_parameters()} == {
        n for n, _ in network(kind).named_parameters()
    }
    for name in weights(network(kind)):
        assert final.get_parameter(name).unique().numel() <= 4
    found = quietly(convert, final, X, compute_precision=ct.precision.FLOAT32)
    split = 3 if kind == "GRU" else 1
    assert len(compressed_weights(found)) == 1 + split * (len(weights(final)) - 1)
    np.testing.assert_allclose(outputs(found, (X,))[0], computed(final), rtol=1e-4, atol=1e-6)


def test_prepared_networks_can_be_copied_cast_and_averaged():
    palettizer, model = prepared(network("LSTM"))
    loss_of(model).backward()
    copied = copy.deepcopy(model)
    averaged = AveragedModel(model)
    train(palettizer, model, steps=2)
    averaged.update_parameters(model)
    with torch.no_grad():
        assert not torch.equal(copied.eval()(X), model.eval()(X))
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        assert wide(X.double()).dtype == torch.float64
        fresh = prepared(network("LSTM"))[1].eval()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh(X), model(X))
    one = palettizer.finalize(averaged)
    # the prepared model goes on as it was
    model.train()
    loss_of(model).backward()
    two = palettizer.finalize()
    assert not np.array_equal(computed(one), computed(two))


def test_weights_that_stay_as_they_are_beside_palettized_ones():
    """An expression and a threshold may leave a part of a model alone, and tables may come late."""
    model = nn.ModuleDict({"a": nn.LSTM(4, 8), "b": nn.LSTM(64, 8)})
    palettizer, ready = prepared(model, weight_threshold=200, milestone=1)
    report = palettizer.report()
    assert {row.name for row in report.palettized} == {"b.weight_ih_l0", "b.weight_hh_l0"}
    assert type(ready["a"]) is nn.LSTM
    x = torch.ones(2, 3, 64)
    assert torch.equal(ready["b"](x)[0], model["b"](x)[0])
    palettizer.step()
    assert not torch.equal(ready["b"](x)[0], model["b"](x)[0])


def test_outputs_can_be_quantized_also_of_packed_sequences():
    model = nn.Sequential(nn.LSTM(16, 8, batch_first=True))
    palettizer, ready = prepared(model, quantize_activations=True)
    lengths = torch.tensor([5, 3])
    inputs = nn.utils.rnn.pack_padded_sequence(torch.cat([X, -X]), lengths, batch_first=True)
    assert ready(inputs)[0].batch_sizes.tolist() == inputs.batch_sizes.tolist()
    final = palettizer.finalize()
    scale = final[0]._modules[NAME].scale

    def is_quantized(values):
        return torch.allclose((values / scale).round() * scale, values, atol=1e-3 * scale)

    with torch.no_grad():
        assert is_quantized(final(inputs)[0].data)
        assert is_quantized(final(X)[0])
        assert not is_quantized(model(inputs)[0].data)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_sensitivities_are_the_mean_squared_gradients(kind):
    model = network(kind)
    samples = [X, X.flip(2), X / 2]
    expected = {name: 0.0 for name in weights(model)}
    for x in samples:
        model.zero_grad()
        loss_of(model, x).backward()
        for name in expected:
            expected[name] = expected[name] + model.get_parameter(name).grad.square() / 3
    model.zero_grad()
    palettizer = SKMPalettizer(model, SKMPalettizerConfig.from_dict({}))
    for workers in (1, 2):
        found = palettizer.compute_sensitivity(samples, loss_of, num_sensitivity_workers=workers)
        assert set(found) == set(expected)
        for name, values in found.items():
            torch.testing.assert_close(values, expected[name])


@pytest.mark.parametrize("is_training", [False, True])
def test_cudnn_is_left_out_where_it_has_no_gradients(is_training):
    enabled = []

    def loss(model, x):
        enabled.append(torch.backends.cudnn.enabled)
        return loss_of(model, x)

    palettizer = SKMPalettizer(network("GRU").train(is_training), SKMPalettizerConfig())
    palettizer.compute_sensitivity([X], loss)
    assert enabled == [is_training]
    assert torch.backends.cudnn.enabled


def test_sensitive_palettes_have_the_lesser_weighted_error():
    model = network("LSTM without bias")
    rules = SKMPalettizerConfig.from_dict({"global_config": {"n_bits": 2}})
    palettizer = SKMPalettizer(model, rules)
    importance = palettizer.compute_sensitivity([X], loss_of)
    heeding = palettizer.compress(dataloader=[X], loss_fn=loss_of)
    plain, _ = palettized(model, n_bits=2)
    assert len(palettizer.report().palettized) == 3
    for name, weight in weights(model).items():
        errors = [
            float((importance[name] * (other - torch.from_numpy(weight)).square()).sum())
            for other in (m.get_parameter(name).detach() for m in (heeding, plain))
        ]
        assert errors[0] < errors[1]
