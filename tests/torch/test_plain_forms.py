"""Modules that coremltools has no form of, converted in a plain one."""

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from mlopt.torch import convert
from mlopt.torch.plain_forms import has_plain_form, use_plain_form
from tests.torch.conversions import compressed_weights, outputs, quietly, same_arrays
from tests.torch.palettization.test_post_training import palettized

HIDDEN, INPUTS = 12, 8


def values(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


CALLS = {
    "LSTMCell": (nn.LSTMCell(INPUTS, HIDDEN), (values(2, INPUTS),)),
    "LSTMCell with states": (
        nn.LSTMCell(INPUTS, HIDDEN, bias=False),
        (values(2, INPUTS), (values(2, HIDDEN), values(2, HIDDEN) / 2)),
    ),
    "LSTMCell without a batch": (
        nn.LSTMCell(INPUTS, HIDDEN),
        (values(INPUTS), (values(HIDDEN), values(HIDDEN) / 2)),
    ),
    "GRUCell": (nn.GRUCell(INPUTS, HIDDEN), (values(2, INPUTS),)),
    "GRUCell with a state": (nn.GRUCell(INPUTS, HIDDEN), (values(2, INPUTS), values(2, HIDDEN))),
    "GRUCell without a batch": (
        nn.GRUCell(INPUTS, HIDDEN, bias=False),
        (values(INPUTS), values(HIDDEN)),
    ),
    "Bilinear": (nn.Bilinear(INPUTS, HIDDEN, 5), (values(3, 2, INPUTS), values(3, 2, HIDDEN))),
    "Bilinear of vectors": (
        nn.Bilinear(INPUTS, HIDDEN, 5, bias=False),
        (values(INPUTS), values(HIDDEN)),
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_plain_forms_compute_the_same(call):
    module, arguments = CALLS[call]
    kind = type(module)
    with torch.no_grad():
        expected = module(*arguments)
        use_plain_form(module)
        assert type(module) is not kind
        found = module(*arguments)
    module.__class__ = kind
    if isinstance(expected, torch.Tensor):
        expected, found = (expected,), (found,)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


def test_classes_that_compute_something_else_are_left_alone():
    class Halved(nn.GRUCell):
        def forward(self, x, h):
            return super().forward(x, h) / 2

    class Named(nn.GRUCell):
        pass

    assert not has_plain_form(Halved(2, 2))
    assert not has_plain_form(nn.RNNCell(2, 2))
    assert has_plain_form(Named(2, 2))


class Steps(nn.Module):
    """Cells of each kind, two steps each, and a bilinear form of what they give."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(INPUTS, HIDDEN), nn.GRUCell(INPUTS, HIDDEN)
        self.rnn, self.bilinear = nn.RNNCell(HIDDEN, HIDDEN), nn.Bilinear(HIDDEN, HIDDEN, 6)

    def forward(self, x):
        states, hidden = None, None
        for step in range(2):
            states, hidden = self.lstm(x[:, step], states), self.gru(x[:, step], hidden)
        return self.bilinear(self.rnn(states[0]), hidden)


@pytest.mark.parametrize(
    "options", [{"n_bits": 4}, {"n_bits": 2, "granularity": "per_grouped_channel", "group_size": 3}]
)
def test_cells_and_bilinear_forms_are_palettized_and_converted(options):
    torch.manual_seed(0)
    model, report = palettized(Steps().eval(), **options)
    matrices = {n: p.detach().numpy() for n, p in model.named_parameters() if p.dim() > 1}
    assert {row.name for row in report.palettized} == set(matrices)
    assert len(matrices) == 7
    for name in ("lstm.weight_ih", "gru.weight_hh", "bilinear.weight"):
        assert "; mlopt.torch.convert does" in report[name].note
    assert report["rnn.weight_ih"].note is None
    x = values(1, 2, INPUTS)
    found = quietly(convert, model, x, compute_precision=ct.precision.FLOAT32)
    assert same_arrays(compressed_weights(found), matrices.values())
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(outputs(found, (x,))[0], expected, rtol=1e-4, atol=1e-6)
    assert type(model.lstm) is nn.LSTMCell
