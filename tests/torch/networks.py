"""Small networks with the kinds of modules that have an adapter, recurrent ones aside."""

from __future__ import annotations

import torch
from torch import nn


class EveryKind(nn.Module):
    """One module of each kind, or of each use of it, on ids [1, 10].

    Embedding and output head are tied; attention is used with itself, across (so that its fused
    projection is split), and with keys and values of other widths (so that it has separate ones).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(48, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.separate = nn.MultiheadAttention(16, 4, batch_first=True, kdim=8, vdim=12)
        self.key = nn.Linear(16, 8)
        self.value = nn.Linear(16, 12)
        self.norm = nn.LayerNorm([10, 16])
        self.conv1 = nn.Conv1d(16, 16, 3, padding=1)
        self.up1 = nn.ConvTranspose1d(16, 8, 4, stride=2)
        self.conv2 = nn.Conv2d(1, 16, 3, padding=1)
        self.batch_norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up2 = nn.ConvTranspose2d(16, 8, 3, stride=2)
        self.grouped_up = nn.ConvTranspose2d(8, 8, 3, groups=2)
        self.conv3 = nn.Conv3d(1, 4, 3, padding=1)
        self.up3 = nn.ConvTranspose3d(4, 8, 3, stride=2)
        self.head = nn.Linear(16, 48)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            self.norm.weight.normal_(1, 0.2)
            self.norm.bias.normal_(0, 0.2)
            self.batch_norm.running_mean.normal_(0, 0.2)
            self.batch_norm.running_var.uniform_(0.5, 2)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedded = self.embedding(ids)
        x = self.attention(embedded, embedded, embedded, need_weights=False)[0]
        x = self.attention(x, embedded, embedded, need_weights=False)[0]
        keys, values = self.key(embedded), self.value(embedded)
        x = self.norm(self.separate(x, keys, values, need_weights=False)[0])
        line = self.up1(self.conv1(x.transpose(1, 2)))
        plane = self.batch_norm(self.conv2(x[:, None])).relu()
        plane = self.grouped_up(self.up2(self.depthwise(self.grouped(plane))))
        space = self.up3(self.conv3(x[:, None, None]))
        return self.head(x), line, plane, space


IDS = torch.arange(10)[None]
"""An input of ``EveryKind``."""

WEIGHTS = (
    "embedding.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "separate.q_proj_weight",
    "separate.k_proj_weight",
    "separate.v_proj_weight",
    "separate.out_proj.weight",
    "key.weight",
    "value.weight",
    "norm.weight",
    "conv1.weight",
    "up1.weight",
    "conv2.weight",
    "grouped.weight",
    "depthwise.weight",
    "up2.weight",
    "grouped_up.weight",
    "conv3.weight",
    "up3.weight",
)
"""Names of the parameters of ``EveryKind`` that can be palettized, a tied one by its first."""


def every_kind(dtype: torch.dtype = torch.float32) -> EveryKind:
    """An ``EveryKind`` in eval mode, with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EveryKind().eval().to(dtype)
