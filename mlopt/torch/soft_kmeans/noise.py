"""Gumbel noise that is drawn again instead of being kept."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_seeds(count: int, generator: torch.Generator | None) -> tuple[int, ...]:
    """Draw seeds for the noise of ``count`` iterations; None: torch's default CPU generator."""
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(1 << 31, (count,), generator=generator, device=device)
    return tuple(seeds.tolist())


def add_gumbel_noise(exponents: Tensor, generator: torch.Generator) -> None:
    """Add standard Gumbel noise in place.

    With it the largest exponent is at k with probability ``softmax(exponents)[k]`` (Jang, Gu,
    Poole, "Categorical reparameterization with Gumbel-softmax", 2016, arXiv 1611.01144).
    """
    noise = torch.empty_like(exponents).uniform_(generator=generator)
    # zero is drawn once in 2**24 times, and has no logarithm
    noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_().neg_().log_()
    exponents -= noise
