"""Factors: how much the outputs of the model depend on each position of an operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mlopt.calibration.feeds import Feed, Feeds
from mlopt.calibration.gradients import readings_of
from mlopt.calibration.losses import Loss
from mlopt.calibration.sequential.sites import Site
from mlopt.runtime.program import Program

Factors: TypeAlias = "dict[tuple[int, int], list[Tensor]]"
"""bfloat16 [blocks, positions] for each part of an input, by the site's step and the sample.

A factor is a mean of squares, of which three digits are plenty."""


def factors_of(
    program: Program,
    sites: Sequence[Site],
    samples: Sequence[Mapping[str, Any]],
    loss: Loss,
    told: Callable[[int, int], None],
) -> Factors:
    """Return the factors of all positions, from a gradient for each sample; see ``gradients``.

    told: called with the number of gradients that are done, and of all. Where no gradient arrives,
    as before an operation without one, there are no factors.

    Raises
    ------
    ConfigError
        No gradient reaches any weight, or one is NaN or infinite.
    """
    steps = program.plan.body.steps
    feeds = Feeds(
        moments=(),
        by_operation={
            id(steps[site.first].node): [Feed(site.reader, site.first, 1)]
            for site in sites
            if site.reader is not None
        },
        weights=(),
        without={},
        remarks=(),
    )
    factors: Factors = {}
    if not feeds.by_operation:
        return factors
    for number, sample in enumerate(samples):
        for reading in readings_of(program, sample, number, feeds, loss):
            if reading.factors is not None:
                parts = [part.to(torch.bfloat16) for part in reading.factors]
                factors[reading.feed.moments, number] = parts
        told(number + 1, len(samples))
    return factors
