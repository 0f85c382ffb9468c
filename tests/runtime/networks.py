"""PyTorch networks of the kinds that people convert, small and with random weights."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))
        self.down = nn.Conv2d(16, 32, 1, stride=2)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(image))), 3, 2, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(x + norm(conv(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu6(self.down(x)), 1).flatten(1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 5, stride=2, padding=2, groups=24)
        self.squeeze = nn.Linear(24, 6)
        self.excite = nn.Linear(6, 24)
        self.project = nn.Conv2d(24, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.hardswish(self.expand(image))))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.project(x * scale[:, :, None, None])


class UNet(nn.Module):
    """As in diffusion: group norms, an embedding of the time, attention, skips, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(16, 32)
        self.enter = nn.Conv2d(4, 32, 3, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.up = nn.Conv2d(32, 32, 3, padding=1)
        self.leave = nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        shift = self.time(torch.cat([time.sin(), time.cos()], -1))
        x = self.enter(sample) + shift[:, :, None, None]
        skip = F.silu(self.norm(x))
        x = self.down(skip)
        rows = x.flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            *(each(rows)[:, None] for each in (self.query, self.key, self.value))
        )[:, 0]
        x = x + attended.transpose(1, 2).reshape(x.shape)
        x = self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.leave(torch.cat([x, skip], 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.lstm = nn.LSTM(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(32, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(tokens))
        x, _ = self.gru(x)
        return F.log_softmax(self.head(x), -1)


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(20, 32, 3, padding=1)
        self.conv2 = nn.Conv1d(32, 32, 3, stride=2, padding=1)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, activation="gelu", batch_first=True, norm_first=True, dropout=0.0
        )
        self.norm = nn.LayerNorm(32)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(frames)))).transpose(1, 2)
        places = torch.arange(x.shape[1], dtype=torch.float32)[:, None] / 10
        return self.norm(self.layer(x + torch.cat([places.sin(), places.cos()], 1).repeat(1, 16)))


class Encoder(nn.Module):
    """As BERT: embeddings of words, places and kinds, a mask, pooled to one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, 32), nn.Embedding(16, 32)
        self.norm = nn.LayerNorm(32, eps=1e-12)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(32, 96),
                    "out": nn.Linear(32, 32),
                    "norm1": nn.LayerNorm(32),
                    "up": nn.Linear(32, 64),
                    "down": nn.Linear(64, 32),
                    "norm2": nn.LayerNorm(32),
                }
            )
            for _ in range(2)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]])
        bias = (1.0 - mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            q, k, v = (
                part.reshape(*part.shape[:2], 4, 8).transpose(1, 2)
                for part in layer["qkv"](x).chunk(3, -1)
            )
            weights = (q @ k.transpose(-1, -2) / 8**0.5 + bias).softmax(-1)
            attended = (weights @ v).transpose(1, 2).reshape(x.shape)
            x = layer["norm1"](x + layer["out"](attended))
            x = layer["norm2"](x + layer["down"](F.gelu(layer["up"](x))))
        shares = mask[..., None].float()
        pooled = (x * shares).sum(1) / shares.sum(1).clamp(min=1e-9)
        return F.normalize(pooled, dim=-1)


class Detector(nn.Module):
    """Boxes and scores of a grid, without the choice among them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = F.leaky_relu(self.backbone(image), 0.1)
        boxes = self.boxes(x).flatten(2).transpose(1, 2)
        ys, xs = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        centres = torch.stack([xs.flatten(), ys.flatten()], -1) + boxes[..., :2].sigmoid()
        sizes = boxes[..., 2:].exp()
        return torch.cat([centres, sizes], -1), self.scores(x).flatten(2).transpose(1, 2).sigmoid()


def _floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens(count: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(count, shape, generator=generator, dtype=torch.int32)


_MASK = torch.tensor([[1] * 9 + [0] * 3], dtype=torch.int32)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "residual": (Residual, {"image": _floats(1, 3, 32, 32)}),
    "depthwise": (Depthwise, {"image": _floats(1, 3, 16, 16)}),
    "unet": (UNet, {"sample": _floats(1, 4, 16, 16), "time": _floats(1, 8)}),
    "recurrent": (Recurrent, {"tokens": _tokens(50, 1, 9)}),
    "speech": (Speech, {"frames": _floats(1, 20, 30)}),
    "encoder": (Encoder, {"tokens": _tokens(100, 1, 12), "mask": _MASK}),
    "detector": (Detector, {"image": _floats(1, 3, 32, 32)}),
}


@functools.cache
def network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network in evaluation mode with settled statistics, and inputs for it."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        module.train()
        module(*inputs.values())  # moves the statistics of batch norms
    return module.eval(), inputs


@functools.cache
def converted(name: str, target: str, precision: str = "float32") -> Any:
    """A network as coremltools converts it."""
    module, inputs = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the fast path of attention is one operation, which coremltools does not know
        torch.backends.mha.set_fastpath_enabled(False)
        traced = torch.jit.trace(module, tuple(inputs.values()), check_trace=False)
        torch.backends.mha.set_fastpath_enabled(True)
        return ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(
                    name, tuple(x.shape), np.int32 if x.dtype == torch.int32 else np.float32
                )
                for name, x in inputs.items()
            ],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=getattr(ct.precision, precision.upper()),
            skip_model_load=True,
        )


def expected(name: str) -> list[np.ndarray]:
    """What PyTorch itself answers."""
    module, inputs = network(name)
    with torch.no_grad():
        found = module(*inputs.values())
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]
