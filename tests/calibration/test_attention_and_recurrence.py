"""Moments of attention and of recurrent modules, against their steps written out."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from mlopt.calibration import calibrate
from mlopt.torch.palettization import PostTrainingPalettizer, PostTrainingPalettizerConfig

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def assert_moments(calibration, name, rows, block=0):
    """Of one block, against all inputs [positions, columns]."""
    weight = next(w for w in calibration.weights if w.name == name)
    moments = calibration.moments_of(weight)
    rows = torch.cat([r.reshape(-1, r.shape[-1]) for r in rows]).detach().double().numpy()
    second = rows.T @ rows / moments.count
    np.testing.assert_allclose(moments.second[block], second, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.mean[block], rows.sum(0) / moments.count, atol=1e-5)
    return moments.count, len(rows)


def attended(module, query, key, value, allowed=None):
    """What the heads put out, [N, L, E], of inputs [N, *, E]; allowed: [N, 1, L, S] or None."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    biases = module.in_proj_bias.chunk(3)
    q, k, v = (
        nn.functional.linear(x, w, b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-1, -2) / module.head_dim**0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("is_self", [True, False])
def test_attention(batch_first, is_self):
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    nn.init.normal_(module.in_proj_bias, generator=GENERATOR)
    given = []
    for _ in range(3):
        query = normal(2, 5, 8)
        key = query if is_self else normal(2, 7, 8)
        given.append((query, key, key))
    turned = given if batch_first else [tuple(x.transpose(0, 1) for x in each) for each in given]
    calibration = calibrate(module, turned)
    for block in range(3):
        rows = [each[block] for each in given]
        count, _ = assert_moments(calibration, "in_proj_weight", rows, block)
        assert count == 3 * 2 * (5 if is_self else 7)
    outputs = [attended(module, *each) for each in given]
    assert_moments(calibration, "out_proj.weight", outputs)
    weight = module.out_proj.weight
    assert weight is module.get_parameter("out_proj.weight")
    assert {w.name for w in calibration.weights} == {"in_proj_weight", "out_proj.weight"}


def test_attention_with_a_mask_and_widths_of_its_own():
    module = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    query, key, value = normal(2, 5, 8), normal(2, 7, 6), normal(2, 7, 4)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    causal = torch.ones(5, 7).triu(1).bool()
    sample = {
        "query": query,
        "key": key,
        "value": value,
        "key_padding_mask": padding,
        "attn_mask": causal,
        "need_weights": False,
    }
    calibration = calibrate(module, [sample])
    for name, x in {"q": query, "k": key, "v": value}.items():
        assert_moments(calibration, f"{name}_proj_weight", [x])
    allowed = ~(padding[:, None, None] | causal)
    assert_moments(calibration, "out_proj.weight", [attended(module, query, key, value, allowed)])


def test_attention_is_fitted_and_its_bias_corrected():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    mix = normal(16, 16)
    samples = [(x, x, x) for x in (normal(1, 12, 16) @ mix + 1 for _ in range(16))]
    calibration = calibrate(module, samples)
    config = PostTrainingPalettizerConfig.from_dict({"global_config": {"n_bits": 3}})

    def error(**options):
        palettizer = PostTrainingPalettizer(module, config)
        made = palettizer.compress(**options).eval()
        total = sum(float((made(*s)[0] - module(*s)[0]).detach().square().sum()) for s in samples)
        return total, palettizer.report()

    fitted, report = error(calibration=calibration)
    assert report["out_proj.weight"].has_corrected_bias
    assert not report["in_proj_weight"].has_corrected_bias
    assert {row.method for row in report.palettized} == {"hessian"}
    assert fitted < 0.7 * error()[0]


KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}


def steps(module, layer, end, x, state):
    """Run one direction of one layer on one sequence [T, I] with a cell.

    Returns the states before each step and those after, [T, H] each, in the order of the sequence.
    """
    kind = next(name for name, each in KINDS.items() if isinstance(module, each))
    cell = CELLS[kind](x.shape[1], module.hidden_size)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.copy_(module.get_parameter(f"{name}_l{layer}{end}"))
    before, after = [], []
    hidden = [part[None] for part in state]
    for row in x.flip(0) if end else x:
        before.append(hidden[0][0])
        made = cell(row[None], tuple(hidden) if kind == "LSTM" else hidden[0])
        hidden = list(made) if kind == "LSTM" else [made]
        after.append(hidden[0][0])
    return tuple(torch.stack(each[::-1] if end else each) for each in (before, after))


def written_out(module, sequences, states):
    """What every weight multiplies, of sequences [T, I] and their first states, by name."""
    given = {}
    ends = ("", "_reverse") if module.bidirectional else ("",)
    with torch.no_grad():
        for x, first in zip(sequences, states, strict=True):
            for layer in range(module.num_layers):
                outputs = []
                for d, end in enumerate(ends):
                    state = [part[layer * len(ends) + d] for part in first]
                    before, after = steps(module, layer, end, x, state)
                    given.setdefault(f"weight_ih_l{layer}{end}", []).append(x)
                    given.setdefault(f"weight_hh_l{layer}{end}", []).append(before)
                    outputs.append(after)
                x = torch.cat(outputs, dim=1)
    return given


def check(module, samples, sequences, states):
    calibration = calibrate(module, samples)
    wanted = written_out(module, sequences, states)
    assert {w.name for w in calibration.weights} == set(wanted)
    for name, rows in wanted.items():
        count, length = assert_moments(calibration, name, rows)
        assert count == length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain", "batch first", "unbatched", "packed", "states"])
def test_recurrent_modules(kind, form):
    module = KINDS[kind](3, 4, num_layers=2, bidirectional=True, batch_first=form == "batch first")
    count = 2 if kind == "LSTM" else 1
    zeros = [torch.zeros(4, 4)] * count
    if form == "unbatched":
        x = normal(6, 3)
        check(module, [x], [x], [zeros])
    elif form == "packed":
        # neither sorted nor of equal lengths
        sequences = [normal(n, 3) for n in (2, 5, 1, 4)]
        own = [[normal(4, 4) for _ in range(count)] for _ in sequences]
        packed = pack_sequence(sequences, enforce_sorted=False)
        parts = [torch.stack(part, dim=1) for part in zip(*own, strict=True)]
        sample = (packed, tuple(parts) if kind == "LSTM" else parts[0])
        check(module, [sample], sequences, own)
        padded = normal(5, 2, 3)
        packed = pack_padded_sequence(padded, torch.tensor([5, 3]))
        check(module, [{"input": packed}], [padded[:, 0], padded[:3, 1]], [zeros] * 2)
    else:
        x = normal(2, 6, 3)
        own = [[normal(4, 4) for _ in range(count)] for _ in x]
        given = x if form == "batch first" else x.transpose(0, 1)
        if form == "states":
            parts = [torch.stack(part, dim=1) for part in zip(*own, strict=True)]
            given = (given, tuple(parts) if kind == "LSTM" else parts[0])
        check(module, [given], list(x), own if form == "states" else [zeros] * 2)


def test_one_layer_without_biases_and_another_nonlinearity():
    module = nn.RNN(3, 4, nonlinearity="relu", bias=False)
    x = normal(6, 2, 3)
    calibration = calibrate(module, [x])
    states = torch.cat((torch.zeros(1, 2, 4), module(x)[0][:-1]))
    assert_moments(calibration, "weight_ih_l0", [x])
    assert_moments(calibration, "weight_hh_l0", [states])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_states():
    module = nn.LSTM(3, 6, proj_size=2, num_layers=2)
    x = normal(5, 2, 3)
    calibration = calibrate(module, [x])
    states = torch.cat((torch.zeros(1, 2, 2), module(x)[0][:-1]))
    assert_moments(calibration, "weight_hh_l1", [states])
    assert calibration.without["weight_hr_l1"] == (
        "LSTM() reads it as weight_hr_l1, which multiplies states that are not put out"
    )


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind):
    cell = CELLS[kind](3, 4)
    x, h = normal(5, 3), normal(5, 4)
    states = (h, normal(5, 4)) if kind == "LSTM" else h
    calibration = calibrate(cell, [(x, states), x])
    assert_moments(calibration, "weight_ih", [x, x])
    assert_moments(calibration, "weight_hh", [h, torch.zeros(5, 4)])


def test_a_forward_of_its_own_is_named():
    class Own(nn.LSTM):
        def forward(self, x):
            return super().forward(x * 2)

    class OwnAttention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.attention, self.head = Own(4, 4), OwnAttention(4, 1), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.attention(self.lstm(x)[0])[0])

    calibration = calibrate(Both(), [normal(5, 4)])
    assert [weight.name for weight in calibration.weights] == ["head.weight"]
    words = "in a forward of its own, whose products are not measured"
    for name in ("lstm.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj.weight"):
        assert calibration.without[name].endswith(words)


def test_random_numbers_are_left_alone():
    module = nn.Sequential(nn.LSTM(3, 4))
    state = torch.get_rng_state()
    calibrate(module, [normal(5, 3)])
    attention = nn.MultiheadAttention(4, 2)
    before = torch.get_rng_state()
    calibrate(attention, [(normal(5, 4),) * 3])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(state, before)
