"""Fine-tuning of the trained digit network, as it is or while it is palettized.

The choices below were made once, for both tools: of 1e-3, 3e-4 and 1e-4 the learning rate with the
least loss on training digits at 1 and 2 bits. They have seen no digit that is held out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fixtures.digits import data

EPOCHS = 10
BATCH = 64
LEARNING_RATE = 1e-3
"""At the start; it falls to 0 in the shape of a cosine."""
WEIGHT_THRESHOLD = 100
"""So that each of the four weight matrices is palettized: the smallest has 288 weights."""


def settings(n_bits: int) -> dict[str, Any]:
    """One table for each weight of the network, of so many bits."""
    return {"n_bits": n_bits, "weight_threshold": WEIGHT_THRESHOLD}


def tune(net: nn.Module, seed: int, after_step: Callable[[], Any] = lambda: None) -> None:
    """Train ``net`` in place for some epochs; the seed drives the batches, and the dropout."""
    images, _, labels, _ = data()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            after_step()
            schedule.step()


def tune_palettized(net: nn.Module, n_bits: int, seed: int, api: Any) -> nn.Module:
    """``net``, changed in place: palettized by the ``DKMPalettizer`` of ``api`` while tuned."""
    config = api.DKMPalettizerConfig.from_dict({"global_config": settings(n_bits)})
    palettizer = api.DKMPalettizer(net, config)
    prepared = palettizer.prepare(inplace=True)
    tune(prepared, seed, palettizer.step)
    finalized: nn.Module = palettizer.finalize(inplace=True)
    return finalized
