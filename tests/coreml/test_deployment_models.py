"""Whole models: raised from iOS15, beside what coremltools converts for the newer target.

``tests.canonical`` says what it looks through, and why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlopt.coreml import raise_target
from mlopt.mil.opening import open_package
from tests import models
from tests.canonical import canonical
from tests.coreml.conftest import saved
from tests.judges import load_programs

#: Most conversions are for iOS18: the way there takes every rule, and a conversion takes a second.
#: ``tests.mil.raising.test_direct`` goes to each target with each operation.
NEWER = "iOS18"


class Inverted(nn.Module):
    """A MobileNet-like block: expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        inner = 4 * width
        self.expand = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
        )
        self.down, self.up = nn.Conv2d(inner, width, 1), nn.Conv2d(width, inner, 1)
        self.project = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(y.mean(dim=(2, 3), keepdim=True)))))
        y = self.project(y)
        return x + y if y.shape == x.shape else y


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.blocks = nn.Sequential(Inverted(16, 1), Inverted(16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.leaky_relu(self.stem(image), 0.1))
        x = F.adaptive_avg_pool2d(F.elu(x), 1).flatten(1)
        return self.head(x).clamp(-4, 4).log_softmax(dim=1)


class UNet(nn.Module):
    """Downsampling, both kinds of upsampling, transposed convolution, instance norm, skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.groups = nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(4, 16)
        self.transposed = nn.ConvTranspose2d(16, 8, 2, 2)
        self.middle, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        a = F.gelu(self.norm(self.first(image)))
        b = F.silu(self.groups(self.second(F.max_pool2d(a, 2))))
        c = torch.cat([self.transposed(b), a], dim=1)
        d = F.softplus(self.middle(c))
        half = F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        aligned = F.interpolate(d, size=(16, 16), mode="bilinear", align_corners=True)
        nearest = F.interpolate(half[:, :8], scale_factor=2, mode="nearest")
        e = torch.cat([F.avg_pool2d(nearest, 2), aligned], dim=1)
        return torch.sigmoid(self.shuffle(F.pad(self.last(e), (1, 1, 1, 1), mode="reflect")))


class Recurrent(nn.Module):
    """A bidirectional LSTM, a GRU and a plain RNN, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(32, 20, batch_first=True)
        self.rnn = nn.RNN(20, 12, batch_first=True)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x, (hidden, _) = self.lstm(frames)
        x, _ = self.gru(x)
        x, last = self.rnn(x)
        return torch.cat([x.flatten(1), hidden.transpose(0, 1).flatten(1), last[0]], dim=1)


class Bert(nn.Module):
    """Embeddings of words and positions, attention, and a head of topk, argmax and a gather.

    The attention is written out: for torch's own, coremltools takes an operation of iOS18.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(80, 32), nn.Embedding(12, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.positions(torch.arange(12))
        q, k, v = self.qkv(x).view(1, 12, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(2, 3) / 8**0.5).softmax(dim=-1) @ v
        x = self.norm(x + self.out(y.transpose(1, 2).reshape(1, 12, 32)))
        x = self.norm(x + self.down(F.gelu(self.up(x), approximate="tanh")))
        scores = x @ self.words.weight.T
        best, where = scores.topk(4, dim=1)
        chosen = self.words(scores.argmax(dim=-1))
        first = x.gather(1, where[:, :, :1].expand(-1, -1, 32))
        worst = scores.argmin(dim=-1).float()
        return torch.cat([t.flatten(1) for t in (best, chosen, first, worst)], dim=1)


class Detector(nn.Module):
    """Boxes of the best places gathered, and written back by scatters of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 12, 3, 2, 1)
        self.boxes, self.scores = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.body(image))
        boxes = self.boxes(x).flatten(2).transpose(1, 2)
        scores = self.scores(x).flatten(2).transpose(1, 2).sigmoid()
        _, order = scores.amax(dim=2).topk(6, dim=1)
        picked = torch.gather(boxes, 1, order[:, :, None].expand(-1, -1, 4))
        shifted = boxes.index_select(1, torch.tensor([3, 1, 2]))
        marked = torch.zeros(1, 64).scatter(1, order, 1.0)
        summed = torch.zeros(1, 64).scatter_add(1, order, picked[:, :, 0])
        last = boxes[:, -1] + boxes[:, torch.tensor([-2, 5])].sum(dim=1)
        return torch.cat([picked.flatten(1), shifted.flatten(1), marked, summed, last], dim=1)


#: Name -> network, input, whether the input is of integers.
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]], bool]] = {
    "mobilenet": (MobileNet, {"image": (1, 3, 16, 16)}, False),
    "unet": (UNet, {"image": (1, 3, 16, 16)}, False),
    "sequences": (Recurrent, {"frames": (1, 5, 24)}, False),
    "bert": (Bert, {"tokens": (1, 12)}, True),
    "detector": (Detector, {"image": (1, 3, 16, 16)}, False),
}


@pytest.fixture(scope="module")
def net_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that converts one of ``NETS`` for a target, once, and saves it."""
    folder = tmp_path_factory.mktemp("nets")

    @functools.cache
    def make(name: str, target: str) -> Path:
        net, inputs, integer = NETS[name]
        model = models.convert(
            models.random_weights(net(), seed=40),
            inputs,
            ["out"],
            target=target,
            integer=integer,
        )
        return saved(model, folder / f"{name}-{target}.mlpackage")

    return make


def assert_equal_programs(raised: Path, direct: Path, *, half: bool) -> None:
    pairs = list(zip(load_programs(raised), load_programs(direct), strict=True))
    for one, other in pairs:
        found = canonical(one, half=half)
        wanted = canonical(other, half=half)
        assert found.keys() == wanted.keys()
        for name, lines in found.items():
            assert lines == wanted[name]


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, NEWER) for name in NETS] + [("bert", "iOS17"), ("detector", "iOS17")],
)
def test_networks(net_of: Any, tmp_path: Path, name: str, target: str) -> None:
    source, direct = (net_of(name, t) for t in ("iOS15", target))
    output = raise_target(source, tmp_path / "out", target)
    assert_equal_programs(output, direct, half=True)
    assert_same_opsets(output, direct)


@pytest.mark.parametrize(
    ("kind", "precision", "target"),
    [
        # The builder of redefined takes other weights for iOS18.
        (kind, "float16", "iOS17" if kind == "redefined" else NEWER)
        for kind in models.kinds("iOS15")
    ]
    + [
        ("control_flow", "float16", "iOS16"),
        ("control_flow", "float32", "iOS26"),
        ("recurrent", "float32", "iOS26"),
        ("redefined", "float16", "iOS26"),
    ],
)
def test_kinds(package_of, tmp_path: Path, kind: str, precision: str, target: str) -> None:
    source, direct = (package_of(kind, t, precision) for t in ("iOS15", target))
    output = raise_target(source, tmp_path / "out", target)
    half = precision == "float16" and target != "iOS16"
    assert_equal_programs(output, direct, half=half)
    assert_same_opsets(output, direct)


def assert_same_opsets(raised: Path, direct: Path) -> None:
    one, other = (open_package(path) for path in (raised, direct))
    assert one.spec.specificationVersion == other.spec.specificationVersion
    for first, second in zip(one.programs, other.programs, strict=True):
        opsets = [[f.opset for f in program.functions] for program in (first, second)]
        assert opsets[0] == opsets[1]


@pytest.mark.parametrize("kind", ["stateful", "multifunction"])
def test_kinds_of_ios18(package_of, tmp_path: Path, kind: str) -> None:
    source = package_of(kind, "iOS18")
    output = raise_target(source, tmp_path / "out", "iOS26")
    assert_equal_programs(output, source, half=False)
