"""Recurrent networks: palettized, carried along, and converted."""

import copy
import functools
import io
import pickle
import warnings

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from mlopt.errors import ConfigError, TargetError
from mlopt.torch import convert, load_state_dict, remove_palettes
from mlopt.torch.carried import carried_palettes
from mlopt.torch.palettization import PostTrainingPalettizer
from tests.torch.conversions import (
    compressed_weights,
    outputs,
    plainly_converted,
    quietly,
    same_arrays,
)
from tests.torch.palettization.test_post_training import FORMS, config, palettized

HIDDEN, INPUTS = 24, 16
X = torch.linspace(-2, 2, 5 * INPUTS).sin().reshape(1, 5, INPUTS)
KINDS = {
    "LSTM": lambda: nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True),
    "LSTM without bias": lambda: nn.LSTM(INPUTS, HIDDEN, bias=False, batch_first=True),
    "GRU": lambda: nn.GRU(INPUTS, HIDDEN, bidirectional=True, batch_first=True),
    "RNN": lambda: nn.RNN(INPUTS, HIDDEN, 2, nonlinearity="relu", batch_first=True),
}


class Network(nn.Module):
    """A recurrent module and a linear layer on what it gives."""

    def __init__(self, kind):
        super().__init__()
        self.recurrent = KINDS[kind]()
        width = HIDDEN * (1 + self.recurrent.bidirectional)
        self.head = nn.Linear(width, 8, bias=False)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])


def network(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(kind).eval()


@functools.cache
def result(kind, form):
    return palettized(network(kind), **FORMS[form])


def weights(model):
    return {name: p.detach().numpy() for name, p in model.named_parameters() if p.dim() == 2}


def parts(name, weight):
    """What coremltools makes of a weight, by PyTorch's order of gates."""
    gates = {4: "ifgo", 3: "rzn"}.get(len(weight) // HIDDEN)
    if gates is None or "recurrent" not in name:
        return [weight]
    rows = dict(zip(gates, np.split(weight, len(gates)), strict=True))
    return [np.concatenate([rows[g] for g in "ifog"])] if gates == "ifgo" else list(rows.values())


def computed(model, x=X):
    with torch.no_grad():
        return model(x).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.covering(1)
def test_all_matrices_are_palettized(form, kind):
    model, report = result(kind, form)
    assert {row.name for row in report.palettized} == set(weights(model))
    assert all(row.reason.startswith("rank 1") for row in report.kept)
    for palette in carried_palettes(model.state_dict()):
        weight = model.get_parameter(palette.name).detach().numpy()
        assert np.array_equal(palette.palettized().dequantize(), weight)
    # what the module computes with are these weights
    flat = [p for p in model.recurrent._flat_weights if p.dim() == 2]
    assert {id(p) for p in flat} <= {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("LSTM", "4 bits"),
        ("LSTM", "output groups"),
        ("LSTM without bias", "vectors"),
        ("LSTM without bias", "input groups"),
        ("GRU", "4 bits"),
        ("GRU", "uint8 table in groups"),
        ("RNN", "input vectors"),
    ],
)
@pytest.mark.covering(1)
def test_the_program_has_the_palettes_and_computes_what_the_module_does(kind, form):
    model, _ = result(kind, form)
    found = quietly(convert, model, X, compute_precision=ct.precision.FLOAT32)
    expected = [part for name, w in weights(model).items() for part in parts(name, w)]
    assert same_arrays(compressed_weights(found), expected)
    np.testing.assert_allclose(outputs(found, (X,))[0], computed(model), rtol=1e-4, atol=1e-6)
    assert np.abs(computed(network(kind)) - computed(model)).max() > 1e-3


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_coremltools_by_itself_takes_dense_weights_where_it_needs_them(kind):
    model, report = result(kind, "4 bits")
    found = plainly_converted(model, (X,), compute_precision=ct.precision.FLOAT32)
    np.testing.assert_allclose(outputs(found, (X,))[0], computed(model), rtol=1e-4, atol=1e-6)
    is_kept = {"head.weight"} if kind != "RNN" else set(weights(model))
    assert len(compressed_weights(found)) == len(is_kept)
    for row in report.palettized:
        assert ("coremltools.convert makes it dense" in (row.note or "")) == (
            row.name not in is_kept
        )


def test_float16_programs_have_the_palettes_rounded():
    model, _ = result("LSTM without bias", "3 bits")
    found = quietly(convert, model, X)
    expected = [p for name, w in weights(model).items() for p in parts(name, w)]
    assert same_arrays(compressed_weights(found), [w.astype(np.float16) for w in expected])
    scaled, _ = result("LSTM without bias", "scale")
    found = quietly(convert, scaled, X)
    assert len(compressed_weights(found)) == 3
    np.testing.assert_allclose(outputs(found, (X,))[0], computed(scaled), atol=5e-3)


def test_models_in_half_precision_are_converted():
    model, _ = palettized(network("GRU").half(), n_bits=2)
    found = quietly(convert, model, X.half())
    expected = [p for name, w in weights(model).items() for p in parts(name, w)]
    assert same_arrays(compressed_weights(found), expected)


def test_targets_are_those_that_the_gates_need():
    """A group of a whole gate of a GRU is a table for each of its weights."""
    model, _ = palettized(
        nn.GRU(INPUTS, HIDDEN), n_bits=4, granularity="per_grouped_channel", group_size=HIDDEN
    )
    found = quietly(convert, model, X, minimum_deployment_target="iOS16")
    assert len(compressed_weights(found)) == 6
    model, _ = palettized(
        nn.LSTM(INPUTS, HIDDEN), n_bits=4, granularity="per_grouped_channel", group_size=HIDDEN
    )
    with pytest.raises(TargetError, match=r"weight_hh_l0: 4-bit, groups of 24 needs iOS18"):
        quietly(convert, model, X, minimum_deployment_target="iOS16")


def test_palettes_that_do_not_fit_the_gates_are_dense_and_said_to_be():
    options = {"n_bits": 8, "granularity": "per_grouped_channel", "group_size": 32}
    model, report = palettized(nn.LSTM(INPUTS, HIDDEN, batch_first=True), **options)
    notes = [row.note for row in report.palettized]
    assert len(notes) == 2
    assert all("do not fit the 4 gates of LSTM" in note for note in notes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = convert(model, X, compute_precision=ct.precision.FLOAT32)
    (own,) = (str(w.message) for w in caught if "palettized weights" in str(w.message))
    assert "as dense ones: weight_ih_l0, weight_hh_l0" in own
    assert not compressed_weights(found)
    with torch.no_grad():
        expected = model(X)[0].numpy()
    np.testing.assert_allclose(outputs(found, (X,))[0], expected, rtol=1e-4, atol=1e-6)


def test_vectors_do_not_reach_across_gates():
    _, report = palettized(nn.LSTM(8, 6), n_bits=2, cluster_dim=4)
    for row in report.kept:
        if "weight" in row.name:
            assert "does not divide the 6 channels on axis 0 of a group" in row.reason
    _, report = palettized(nn.LSTM(8, 6), n_bits=2, cluster_dim=3)
    assert len(report.palettized) == 2


def test_projections_and_what_coremltools_cannot_convert():
    model, report = palettized(nn.LSTM(INPUTS, HIDDEN, proj_size=6, bidirectional=True), n_bits=2)
    assert report["weight_hr_l0_reverse"].is_palettized
    assert model.weight_hr_l0_reverse.unique().numel() == 4
    assert "coremltools does not convert LSTM with proj_size" in report["weight_hr_l0"].note
    _, report = palettized(nn.RNN(INPUTS, HIDDEN, bidirectional=True), n_bits=2)
    assert report["weight_hh_l0_reverse"].note == "coremltools does not convert a bidirectional RNN"


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_palettes_go_wherever_the_state_goes(kind):
    model, _ = result(kind, "int8 table, scale")
    expected = computed(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), network(kind)]
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    load_state_dict(copies[-1], torch.load(buffer, weights_only=True))
    for each in copies:
        assert list(each.state_dict()) == list(model.state_dict())
        assert len(list(carried_palettes(each.state_dict()))) == len(weights(model))
        assert np.array_equal(computed(each), expected)
        remove_palettes(each)
        assert list(each.state_dict()) == list(network(kind).state_dict())
        assert np.array_equal(computed(each), expected)


def test_changed_weights_and_damaged_palettes_are_refused():
    model, _ = palettized(network("LSTM without bias"), n_bits=2)
    model.recurrent._buffers["_MLOPT_/weight_hh_l0/gates"].fill_(5)
    with pytest.raises(ConfigError, match=r"weight_hh_l0: .* damaged \(5 gates\)"):
        quietly(convert, model, X)
    model, _ = palettized(network("LSTM without bias"), n_bits=2)
    with torch.no_grad():
        model.recurrent.weight_hh_l0[0, 0] += 1
    with pytest.raises(ConfigError, match="changed after it was palettized"):
        quietly(convert, model, X)


class Shared(nn.Module):
    """Two LSTMs, one of them used twice, that share a matrix, as a linear layer does."""

    def __init__(self, is_linear_first):
        super().__init__()
        if is_linear_first:
            self.linear = nn.Linear(INPUTS, 4 * INPUTS)
        self.first = nn.LSTM(INPUTS, INPUTS, batch_first=True)
        self.alias = self.first
        self.second = nn.LSTM(INPUTS, INPUTS, batch_first=True)
        self.second.weight_hh_l0 = self.first.weight_hh_l0
        if not is_linear_first:
            self.linear = nn.Linear(INPUTS, 4 * INPUTS)
        self.linear.weight = self.first.weight_ih_l0

    def forward(self, x):
        x = self.second(self.alias(self.first(x)[0])[0])[0]
        return self.linear(x)


@pytest.mark.parametrize("is_linear_first", [False, True])
def test_shared_weights_stay_shared(is_linear_first):
    torch.manual_seed(1)
    given = Shared(is_linear_first).eval()
    model, report = palettized(given, n_bits=3)
    assert len(report.palettized) == 3
    assert model.second.weight_hh_l0 is model.first.weight_hh_l0
    assert model.second._flat_weights[1] is model.first.weight_hh_l0
    assert model.linear.weight is model.first.weight_ih_l0
    found = quietly(convert, model, X, compute_precision=ct.precision.FLOAT32)
    # three matrices as LSTMs have them, and one of these for the linear layer as it is
    assert len(compressed_weights(found)) == 4
    np.testing.assert_allclose(outputs(found, (X,))[0], computed(model), rtol=1e-4, atol=1e-6)
    plain = plainly_converted(model, (X,), compute_precision=ct.precision.FLOAT32)
    np.testing.assert_allclose(outputs(plain, (X,))[0], computed(model), rtol=1e-4, atol=1e-6)
    # the model itself can be changed as well
    PostTrainingPalettizer(given, config(n_bits=3)).compress(inplace=True)
    assert np.array_equal(computed(given), computed(model))
