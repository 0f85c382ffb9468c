"""Moments of modules that read the very same tensor: kept once, and never wrongly."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from mlopt.calibration import Calibration, calibrate, merge
from mlopt.calibration.sums import Sums
from tests.calibration.comparisons import FIELDS

WIDTH = 6


def samples(count=9):
    random = np.random.default_rng(0)
    return [
        torch.from_numpy(random.normal(size=(4, WIDTH)).astype(np.float32)) for _ in range(count)
    ]


class Network(nn.Module):
    """Two linear layers, called by a function of both and the input."""

    def __init__(self, call):
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5)
        self.call = call

    def forward(self, x):
        return self.call(self.q, self.k, x)


def changed_between(q, k, x):
    x = x + 0
    y = q(x)
    x += 1
    return y, k(x)


def memory_used_again(q, k, x):
    """The second input is as a rule where the first one was."""
    y = q(x + 1)
    return y, k(x + 2)


def not_always(q, k, x):
    return q(x), k(x if x.sum() > 0 else x * 2)


def in_another_order(q, k, x):
    y = x * 2
    return q(x), k(y), q(y), k(x)


def replaced_data(q, k, x):
    """The memory of the first input is free for the second, and the first is still there."""
    first = x + 1
    y = q(first)
    first.data = torch.zeros(1)
    return y, k(x + 2)


SHARED = {
    "the same": lambda q, k, x: (q(x), k(x)),
    "another between": lambda q, k, x: (q(x), (x + 1).relu(), k(x)),
    "keywords": lambda q, k, x: (q(x), k(input=x)),
    "views": lambda q, k, x: (q(x.view(2, 2, WIDTH)), k(x.view(2, 2, WIDTH))),
    "twice": lambda q, k, x: (q(x), k(x), q(x * 2 if x.sum() > 99 else x), k(x)),
}


def inference(q, k, x):
    with torch.inference_mode():
        x = x + 1
        return q(x), k(x)


APART = {
    "changed between": changed_between,
    "memory used again": memory_used_again,
    "not always": not_always,
    "in another order": in_another_order,
    "replaced data": replaced_data,
    "slices": lambda q, k, x: (q(x[:2]), k(x[2:])),
    "transposed": lambda q, k, x: (q(x[:, :WIDTH]), k(x.flip(1))),
    "called once more": lambda q, k, x: (q(x), k(x), k(x)),
    "inference": inference,
}


class Tap:
    """A layer that remembers its inputs."""

    def __init__(self):
        self.rows = []

    def __call__(self, input):
        self.rows.append(input.detach().clone().reshape(-1, WIDTH))
        return input


def assert_moments_are_right(call, calibration):
    taps = Tap(), Tap()
    for x in samples():
        call(*taps, x)
    for tap, weight in zip(taps, calibration.weights, strict=True):
        rows = torch.cat(tap.rows).double().numpy()
        moments = calibration.moments_of(weight)
        assert moments.count == len(rows)
        second = rows.T @ rows / len(rows)
        np.testing.assert_allclose(moments.second[0], second, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.mean[0], rows.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SHARED)
def test_the_same_input_has_one_moments(name, tmp_path):
    model = Network(SHARED[name])
    calibration = calibrate(model, samples(), output=tmp_path / "a")
    # a view that is gone when the second layer reads another one cannot be told
    assert len(calibration.moments) == (2 if name == "views" else 1)
    assert_moments_are_right(SHARED[name], calibration)
    assert_same_file_and_memory(calibrate(model, samples()), calibration)


@pytest.mark.parametrize("name", APART)
def test_other_inputs_have_their_own(name, tmp_path):
    call = APART[name]
    model = Network(call)
    calibration = calibrate(model, samples(), output=tmp_path / "a")
    assert len(calibration.moments) == 2
    assert_moments_are_right(call, calibration)
    assert_same_file_and_memory(calibrate(model, samples()), calibration)


def assert_same_file_and_memory(one, other):
    assert one.weights == other.weights
    for key, moments in one.moments.items():
        for field in FIELDS[:3]:
            a, b = (getattr(each, field) for each in (moments, other.moments[key]))
            assert np.array_equal(a, b)
        assert moments.held_out == other.moments[key].held_out


class Attention(nn.Module):
    """Attention, a convolution beside one of the same and one of other options, two embeddings."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.one, self.two = (nn.Conv1d(1, n, 3, padding=1) for n in (2, 3))
        self.dilated = nn.Conv1d(1, 2, 3, padding=1, dilation=2)
        self.words, self.others = nn.Embedding(20, 4), nn.Embedding(20, 7)

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).T).softmax(-1)
        y = self.out(weights @ self.v(x))
        z = x[:, None]
        ids = x.long().clamp(0, 19)
        return y, self.one(z), self.two(z), self.dilated(z), self.words(ids), self.others(ids)


def test_groups_of_layers(tmp_path):
    calibration = calibrate(Attention(), samples(), output=tmp_path / "a")
    keys = {w.name.partition(".")[0]: w.moments for w in calibration.weights}
    assert keys["q"] == keys["k"] == keys["v"] != keys["out"]
    assert keys["one"] == keys["two"] != keys["dilated"]
    assert keys["words"] == keys["others"]
    assert len(calibration.moments) == 5
    for weight in calibration.weights:
        moments = calibration.moments_of(weight)
        assert moments.arrangement.columns == len(moments.mean[0])


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    model = Attention()
    whole = calibrate(model, samples(), output=tmp_path / "whole")
    plain = Sums.add
    for stop in (3, 14, 40):
        count = itertools.count()

        def add(self, *args, stop=stop, count=count):
            if next(count) == stop:
                raise KeyboardInterrupt
            plain(self, *args)

        monkeypatch.setattr(Sums, "add", add)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, samples(), output=tmp_path / "a")
        monkeypatch.undo()
        calibrate(model, samples(), output=tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()
        (tmp_path / "a").unlink()
    assert Calibration.load(tmp_path / "whole").weights == whole.weights


@pytest.mark.parametrize("has_files", [False, True])
def test_parts_that_share_differently_are_merged(tmp_path, has_files):
    model = Network(not_always)
    given = sorted(samples(), key=lambda x: float(x.sum()))
    same = sum(float(x.sum()) > 0 for x in given)
    assert 1 < same < 8
    parts = [
        calibrate(model, part, output=tmp_path / name if has_files else None)
        for name, part in {"a": given[:-same], "b": given[-same:]}.items()
    ]
    assert [len(part.moments) for part in parts] == [2, 1]
    for order in (parts, parts[::-1]):
        merged = merge(order, tmp_path / "merged" if has_files else None)
        assert len(merged.moments) == 2
        assert_moments_are_right(not_always, merged)
    assert len(merge([parts[1], parts[1]]).moments) == 1
