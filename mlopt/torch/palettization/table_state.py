"""State of a weight's tables between passes: how they start, and when they are abandoned."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mlopt.errors import ConfigError
from mlopt.torch.palettization.fake_options import FakePalettizeOptions
from mlopt.torch.palettization.initial import initial_centroids
from mlopt.torch.palettization.moments import Moments, mean_square
from mlopt.torch.palettization.nearest import nearest_centroids
from mlopt.torch.palettization.shares import Share
from mlopt.torch.palettization.table_format import rounded_table
from mlopt.torch.palettization.weight_points import WeightPoints

_PLAIN = 0.25
"""Below this share of the usual error of a table, points are passed on unchanged.

The usual error is that of points spread evenly between the two nearest entries, a twelfth of their
squared distance.
"""

TEMPERATURE_SHARE = 0.5
"""Temperature in units of the mean squared error of optimal clusters.

At this share the soft weight is nearer to the weight than hard clusters are, by about 11 % for
normal weights at 1 to 6 bits, and its fixed point is within 1 % of the optimal clusters; from
about twice that on, clusters of heavy-tailed weights begin to collapse.
"""

_STALE = 1.44
"""A learned table is abandoned from this multiple of the best table's squared error on."""


class TableState(nn.Module):
    """The tables of a weight and their state, in buffers.

    Booleans are 1 or 0 in int8, which can be averaged. Floats stay in float32 when the model is
    cast.

    Attributes
    ----------
    centroids
        [G, K, d] of G groups, in units of the scale where there is one.
    temperature, spread
        [G]: a temperature for each group, and the variance of its points that it belongs to.
    pinned
        [G, K]: which centroids are pinned to zero.
    plain
        [G]: which groups are plain, their points being entries already or nearly so. They are
        passed on as they are until that changes.
    enabled, started
        Whether weights are palettized, and whether there are tables yet.
    steps
        Number of the palettizer's steps so far.
    latest
        [G, 2]: mean squares and means, which identify the latest weights.
    before, after
        [G, K, d]: the tables before and after they had moved with these weights.
    """

    centroids: Tensor
    temperature: Tensor
    pinned: Tensor
    spread: Tensor
    plain: Tensor
    enabled: Tensor
    started: Tensor
    steps: Tensor
    latest: Tensor
    before: Tensor
    after: Tensor

    def __init__(self, options: FakePalettizeOptions) -> None:
        super().__init__()
        self.options = options
        groups = options.layout.groups
        shape = (groups, options.entries, options.layout.cluster_dim)
        self.register_buffer("centroids", torch.zeros(shape))
        self.register_buffer("temperature", torch.ones(groups))
        self.register_buffer("pinned", torch.zeros(shape[:2], dtype=torch.int8))
        self.register_buffer("spread", torch.ones(groups))
        self.register_buffer("plain", torch.zeros(groups, dtype=torch.int8))
        self.register_buffer("enabled", torch.tensor(0, dtype=torch.int8))
        self.register_buffer("started", torch.tensor(0, dtype=torch.int8))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("latest", torch.full((groups, 2), -1.0))
        self.register_buffer("before", torch.zeros(shape))
        self.register_buffer("after", torch.zeros(shape))

    @property
    def must_start(self) -> bool:
        """Whether groups must be clustered anew: all at first, only the plain ones later."""
        return not self.started or bool(self.plain.any())

    @torch.no_grad()
    def start(self, points: WeightPoints, share: Share) -> None:
        """Cluster for the first time, and choose the temperature by the remaining error.

        Later calls: only the plain groups.
        """
        options = self.options
        every = torch.ones_like(self.plain)
        chosen = (self.plain if self.started else every).nonzero()[:, 0]
        kept = points.kept[chosen]
        importance = None if points.importance is None else points.importance[chosen]
        centroids = _shared_initial_centroids(kept, importance, options, share)
        usual = _least_squared_distance(centroids) / 12
        if options.enforce_zero:
            nearest = centroids.square().sum(-1).argmin(-1, keepdim=True)
            pinned = torch.zeros_like(self.pinned[chosen]).scatter_(1, nearest, 1)
            centroids.masked_fill_(pinned[..., None].bool(), 0.0)
            self.pinned[chosen] = pinned
        error = (kept - nearest_centroids(kept, centroids)).float().square().sum(-1)
        weights = torch.ones_like(error) if importance is None else importance
        mean = (error * weights).sum(1) / weights.sum(1).clamp_min(1e-30)
        # of the points that are not entries; many may be, such as zeros
        apart = weights * (error > 1e-3 * usual[:, None])
        mean_apart = (error * apart).sum(1) / apart.sum(1).clamp_min(1e-30)
        plain = (usual == 0) | (mean_apart < _PLAIN * usual)
        # where all points are entries there is no error: so cold that each takes its own
        spread = points.moments.variance[chosen]
        least = (1e-10 * spread).clamp_min(1e-30)
        share_of_error = TEMPERATURE_SHARE * options.temperature_factor
        self.temperature[chosen] = torch.maximum(share_of_error * mean, least)
        self.spread[chosen] = spread
        self.centroids[chosen] = centroids.to(self.centroids.dtype)
        self.plain[chosen] = plain.to(torch.int8)
        self.started.fill_(1)

    def is_new(self, moments: Moments) -> Tensor:
        """Whether the weights, or the tables, differ from those of the latest pass.

        Remembers the weights, which are identified by the mean and the mean square of each group:
        changes too small for that are too small to matter for the tables.
        """
        numbers = torch.stack([moments.square, moments.mean], 1)
        is_new = (numbers != self.latest).any() | (self.centroids != self.after).any()
        self.latest.copy_(numbers)
        return is_new

    def unless_stale(self, centroids: Tensor, points: WeightPoints) -> Tensor:
        """Return the tables as they were learned, or the best ones where those no longer fit.

        That can happen where weights were changed by other than small steps.
        """
        kept, importance = points.kept, points.importance
        best = initial_centroids(kept, self.options.entries, importance).to(centroids.dtype)
        best = torch.where(self.pinned[..., None].bool(), centroids, best)
        weights = 1.0 if importance is None else importance[..., None]
        learned, least = (
            mean_square((kept - nearest_centroids(kept, table)) * weights**0.5)
            for table in (centroids, best)
        )
        is_stale = learned > _STALE * least
        return torch.where(is_stale[:, None, None], best, centroids)

    def temperature_for(self, moments: Moments) -> Tensor:
        """Return the temperature of each group, [G]; it scales with the variance of its points."""
        growth = moments.variance / self.spread.clamp_min(1e-30)
        return torch.where(growth > 0, self.temperature * growth, self.temperature)

    def is_threshold_negligible(self) -> bool:
        """Whether weights within the threshold may be replaced by zero without effect.

        They may where it is at most a thousandth of the distance of weights to their entries.
        """
        missed = float(self.temperature.min()) / TEMPERATURE_SHARE / self.options.temperature_factor
        return self.options.prune_threshold <= 1e-3 * math.sqrt(missed)

    def table(self) -> Tensor:
        """Return the centroids as the table's format can hold them, [G, K, d]."""
        return rounded_table(self.centroids, self.options.lut_dtype)

    def check_finite(self, magnitude: float) -> None:
        """Raise ``ConfigError`` where a magnitude of the weights is not finite."""
        if not math.isfinite(magnitude):
            raise ConfigError(
                f"{self.options.name}: the weight has an infinity, a NaN, or numbers too large to "
                "be squared; go back to a state before that, and train in smaller steps"
            )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Leave every buffer as it is."""
        state = {name: buffer.clone() for name, buffer in self.named_buffers()}
        try:
            yield
        finally:
            for name, buffer in self.named_buffers():
                buffer.copy_(state[name])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As for every module, but casts do not change float buffers."""
        wide = {n: b for n, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in wide.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def _shared_initial_centroids(
    kept: Tensor, importance: Tensor | None, options: FakePalettizeOptions, share: Share
) -> Tensor:
    """Return the best tables of groups [g, N, d]; each rank clusters some of many groups."""
    entries, groups = options.entries, len(kept)
    if share.ranks == 1 or groups < max(share.ranks, options.initial_in_shares_from):
        return initial_centroids(kept, entries, importance)
    by_groups = share.of_groups()
    some = None if importance is None else by_groups.cut(importance)
    return by_groups.gathered(initial_centroids(by_groups.cut(kept), entries, some), groups)


def _least_squared_distance(tables: Tensor) -> Tensor:
    """Return the least squared distance of two entries of each table [G, K, d]: [G]; 0 for one."""
    if tables.shape[1] == 1:
        return torch.zeros_like(tables[:, 0, 0])
    if tables.shape[2] == 1:
        ascending = tables[..., 0].sort(1).values
        return ascending.diff(dim=1).square().amin(1)
    least = []
    for table in tables:
        squared = (table[:, None] - table).square().sum(-1)
        squared.fill_diagonal_(torch.inf)
        least.append(squared.min())
    return torch.stack(least)
