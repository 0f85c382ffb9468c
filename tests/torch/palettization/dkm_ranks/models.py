"""What the ranks palettize, and what one process does for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlopt.torch.carried import carried_palettes
from mlopt.torch.palettization import DKMPalettizer, DKMPalettizerConfig

SHARED = {"palett_shard": True, "palett_dist": True}
STEPS = 4
EACH = 4
"""Samples of a rank in a step."""

OPTIONS: dict[str, dict[str, Any]] = {
    "scalars": {"n_bits": 2},
    "vectors": {"n_bits": 2, "cluster_dim": 2},
    "groups": {"n_bits": 1, "granularity": "per_grouped_channel", "group_size": 8},
    "partly-soft": {
        "n_bits": 1,
        "granularity": "per_grouped_channel",
        "group_size": 8,
        "percentage_palett_enable": 0.5,
        "enforce_zero": True,
        "prune_threshold": 0.005,
    },
    "scales": {"n_bits": 2, "enable_per_channel_scale": True, "enforce_zero": True},
    "whole-groups": {
        "n_bits": 1,
        "granularity": "per_grouped_channel",
        "group_size": 8,  # 3 groups: one rank has more
        "palett_batch_mode": True,
        "kmeans_batch_threshold": 2,
        "lut_dtype": "f16",
    },
    "fewer-groups-than-ranks": {"n_bits": 2, "palett_batch_mode": True},
    "whole-groups-of-vectors": {
        "n_bits": 1,
        "granularity": "per_grouped_channel",
        "group_size": 4,
        "cluster_dim": 2,
        "palett_batch_mode": True,
        "enforce_zero": True,
    },
    "hard": {"n_bits": 2, "palett_mode": "hard"},
    "rounded": {"n_bits": 2, "lut_dtype": "i8"},
    "outliers": {"n_bits": 2, "palett_lambda": 1.0},
    "coded": {"n_bits": 2, "palett_unique": True},
    "many-iterations": {"n_bits": 3, "kmeans_max_iter": 50, "palett_epsilon": 1e-3},
}


def config(**options: Any) -> DKMPalettizerConfig:
    return DKMPalettizerConfig.from_dict({"global_config": {"weight_threshold": 0} | options})


def linear(inputs: int, outputs: int) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(0.02 * torch.randn(outputs, inputs, generator=generator))
    return model


def network() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Linear(8, 3))


def of_option(name: str) -> nn.Module:
    # so many points that a share of them is taken by value
    return linear(512, 512) if name == "coded" else linear(15, 24)


def prepared(model: nn.Module, **options: Any) -> tuple[DKMPalettizer, nn.Module]:
    palettizer = DKMPalettizer(model, config(**options))
    return palettizer, palettizer.prepare(inplace=True)


def seed_of(shape: torch.Size, number: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def forward_and_gradient(model: Any, seeds: list[int]) -> dict[str, Tensor]:
    """The weight of a prepared ``linear``, and the gradient of the mean of losses."""
    weight = model[0].weight
    loss = sum((weight * seed_of(weight.shape, seed)).sum() for seed in seeds) / len(seeds)
    loss.backward()
    parts = model[0].parametrizations.weight
    return {
        "weight": weight.detach(),
        "gradient": parts.original.grad.clone(),
        "centroids": parts[0].centroids.clone(),
    }


def tables(model: nn.Module) -> dict[str, Tensor]:
    return {
        palette.name: torch.from_numpy(palette.palettized().table)
        for palette in carried_palettes(model.state_dict())
    }


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return (
        torch.randn(EACH, 12, generator=generator),
        torch.randn(EACH, 3, generator=generator),
    )


def joint_batch(step: int, ranks: list[int]) -> tuple[Tensor, Tensor]:
    inputs, wanted = zip(*(batch(step, rank) for rank in ranks), strict=True)
    return torch.cat(inputs), torch.cat(wanted)


def train(model: nn.Module, palettizer: DKMPalettizer, ranks: list[int]) -> None:
    """Train on the samples of some ranks together."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs, wanted = joint_batch(step, ranks)
        (model(inputs) - wanted).square().mean().backward()
        optimizer.step()
        palettizer.step()


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers, by names that do not say how the model is wrapped."""
    # ``latest`` is compared bit by bit in use, and rounds otherwise in otherwise ordered sums
    return {
        name.removeprefix("module."): value
        for name, value in model.state_dict().items()
        if not name.endswith(".latest")
    }
