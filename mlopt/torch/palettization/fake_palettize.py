"""A weight as palettization will leave it, while it is still being trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlopt.errors import ConfigError
from mlopt.palette.value.palettized import Palettized
from mlopt.torch.palettization.fake_options import FakePalettizeOptions
from mlopt.torch.palettization.initial import initial_centroids
from mlopt.torch.palettization.nearest import (
    move_duplicates,
    nearest_centroids,
    nearest_labels,
)
from mlopt.torch.palettization.scale import scale_of_channels
from mlopt.torch.palettization.shares import WHOLE, Share, share_of_this_rank
from mlopt.torch.palettization.table_format import rounded_table, stored_palette
from mlopt.torch.soft_kmeans import soft_kmeans
from mlopt.torch.soft_kmeans.eager import outside_graphs

_PLAIN = 0.25
"""Below this share of the usual error of a table, points are passed on as they are.

The usual one is that of points spread evenly between the two nearest entries, a twelfth of their
squared distance.
"""

TEMPERATURE_SHARE = 0.5
"""Temperature in units of the mean squared error of optimal clusters.

At this share the soft weight is nearer to the weight than hard clusters are, by about 11 % for
normal weights at 1 to 6 bits, and its fixed point is within 1 % of the optimal clusters; from
about twice that on, clusters of heavy-tailed weights begin to collapse.
"""

_STALE = 1.44
"""From so many times the squared error of the best table on, a learned one is given up."""

_USUAL = 1 << 20
"""Distances that are computed at a time, usually."""


class FakePalettize(nn.Module):
    """Gives a weight as its palette will store it; the gradient passes through (DKM).

    It is a parametrization: ``torch.nn.utils.parametrize`` calls it with the weight that is trained
    wherever the module's weight is used. In training, each weight is the mean of the table's
    entries, weighted by how near they are, and the table follows the weights by soft k-means
    (ALGORITHMS, "Differentiable k-means"; arXiv 2108.12659). In evaluation each weight is the
    nearest entry. Disabled, it gives the weight as it is.

    Tables move once for each change of the weights: passes over the same weights give the same, be
    they several batches before an update, two uses of a tied weight, or a pass that activation
    checkpointing repeats.

    Its state, in buffers: the centroids [G, K, d] of G groups, in units of the scale where there is
    one; a temperature for each group, and the variance of its points that it belongs to; which
    centroids are pinned to zero; which groups are plain, their points being entries already or
    nearly so, and are passed on as they are until that changes; whether it is enabled and has
    started; how often the palettizer has stepped; what the latest weights were, and where the
    tables were before and after they had moved with these. Floats stay in float32 when the model is
    cast. What is true or false is 1 or 0 in int8, of which averages can be taken.
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
        groups = options.grouping.groups
        shape = (groups, options.entries, options.grouping.cluster_dim)
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

    def enable(self, enabled: bool = True) -> None:
        """Let it palettize from now on, or not."""
        self.enabled.fill_(enabled)

    @outside_graphs
    def forward(self, weight: Tensor) -> Tensor:
        """The weight as stored: of the shape and dtype of ``weight``."""
        if torch._C._is_tracing() or _is_exporting():
            raise ConfigError(
                "the model is prepared for training, and was to be traced; trace the model that "
                "finalize returns"
            )
        if not self.enabled:
            return weight
        # of one rank alone nothing may be kept, or its tables would be other than those of the rest
        share = share_of_this_rank() if self.options.in_shares else WHOLE
        is_alone = share.ranks > 1 and not (self.training and torch.is_grad_enabled())
        is_fixed = is_alone or (not self.training and bool(self.started))
        with (
            torch.autocast(weight.device.type, enabled=False),
            self._unchanged() if is_fixed else contextlib.nullcontext(),
        ):
            points, scale = self._points(weight)
            is_zero = self._is_zero(weight)
            if self.training:
                stored = self._soft(points, is_zero, scale, WHOLE if is_alone else share)
            else:
                kept = _zeroed(points.detach(), is_zero)
                self._check_finite(float(kept.abs().max()) if kept.numel() else 0.0)
                if not self.started or self.plain.any():
                    self._start(kept, self._importance(kept, is_zero, scale), WHOLE)
                stored = self._hard(kept, is_zero, self._table())
            found = self.options.grouping.weight(stored)
            if scale is not None:
                # a channel of zeros is passed on, so that training can move it away from zero
                found = torch.where(scale > 0, found * scale, weight).to(weight.dtype)
        dense: Tensor = _DenseGradient.apply(found)  # type: ignore[no-untyped-call]
        return dense

    @torch.no_grad()
    def palettized(self, weight: Tensor) -> Palettized:
        """The palette of a weight: its nearest entries, after the table has followed it once more.

        In the weight's dtype; tables of 8 bits as ``palettize`` makes them of these entries.
        """
        options, grouping = self.options, self.options.grouping
        points, scale = self._points(weight.detach())
        is_zero = self._is_zero(weight)
        kept = _zeroed(points, is_zero)
        importance = self._importance(kept, is_zero, scale)
        if not self.started or self.plain.any():
            self._start(kept, importance, WHOLE)
        _, centroids = soft_kmeans(
            kept,
            self.centroids,
            self._temperature(_variance(kept)),
            iterations=options.iterations,
            mode="hard" if options.mode == "hard" else "dkm",
            importance=importance,
            pinned=self.pinned.bool(),
            lost_size=options.lost_size,
        )
        self.centroids.copy_(self._unless_stale(centroids, kept, importance))
        unscaled = grouping.weight(kept).to(weight.dtype)
        return stored_palette(unscaled, self._table(), scale, options)

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Leave every buffer as it is."""
        state = {name: buffer.clone() for name, buffer in self.named_buffers()}
        try:
            yield
        finally:
            for name, buffer in self.named_buffers():
                buffer.copy_(state[name])

    def _points(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points [G, N, d], in units of the scale where there is one, and that."""
        options = self.options
        if options.scale_axis is None:
            return options.grouping.points(weight), None
        scale = scale_of_channels(weight.detach(), options.scale_axis, scheme=options.scale_scheme)
        wide = weight.float() if weight.dtype.itemsize < 4 else weight
        return options.grouping.points(wide / scale.masked_fill(scale == 0, 1.0)), scale

    def _is_zero(self, weight: Tensor) -> Tensor:
        """Which points count as zero, [G, N, 1]: all their weights are within the threshold."""
        points = self.options.grouping.points(weight.detach())
        return (points.abs() <= self.options.prune_threshold).all(-1, keepdim=True)

    def _importance(self, points: Tensor, is_zero: Tensor, scale: Tensor | None) -> Tensor | None:
        """By what a point counts in the centroids, [G, N]; None for all alike."""
        options = self.options
        found: Tensor | None = None
        if scale is not None:
            # errors of scaled weights stand for errors of the weights
            largest = scale.max().clamp_min(torch.finfo(scale.dtype).tiny)
            squares = (scale / largest).square().float().expand(options.grouping.shape)
            found = options.grouping.points(squares).mean(-1)
        if options.outlier_weight > 0:
            squares = points.detach().float().square()
            mean = squares.mean((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            less = 1 / (1 + options.outlier_weight * (squares / mean).mean(-1))
            found = less if found is None else found * less
        if options.enforce_zero:
            counted = (~is_zero[..., 0]).float()
            found = counted if found is None else found * counted
        return found

    @torch.no_grad()
    def _start(self, kept: Tensor, importance: Tensor | None, share: Share) -> None:
        """Cluster for the first time, and choose the temperature by the error that is left.

        Later: only the plain groups.
        """
        options = self.options
        every = torch.ones_like(self.plain)
        chosen = (self.plain if self.started else every).nonzero()[:, 0]
        kept = kept[chosen]
        importance = None if importance is None else importance[chosen]
        centroids = self._initial_centroids(kept, importance, share)
        usual = _least_squared_distance(centroids) / 12
        if options.enforce_zero:
            nearest = centroids.square().sum(-1).argmin(-1, keepdim=True)
            pinned = torch.zeros_like(self.pinned[chosen]).scatter_(1, nearest, 1)
            centroids.masked_fill_(pinned[..., None].bool(), 0.0)
            self.pinned[chosen] = pinned
        error = (kept - nearest_centroids(kept, centroids)).float().square().sum(-1)
        weights = torch.ones_like(error) if importance is None else importance
        mean = (error * weights).sum(1) / weights.sum(1).clamp_min(1e-30)
        # of those points that are not entries; there may be many that are, such as zeros
        apart = weights * (error > 1e-3 * usual[:, None])
        mean_apart = (error * apart).sum(1) / apart.sum(1).clamp_min(1e-30)
        plain = (usual == 0) | (mean_apart < _PLAIN * usual)
        # where points are entries there is no error: so cold that each takes its own
        spread = _variance(kept)
        least = (1e-10 * spread).clamp_min(1e-30)
        share_of_error = TEMPERATURE_SHARE * options.temperature
        self.temperature[chosen] = torch.maximum(share_of_error * mean, least)
        self.spread[chosen] = spread
        self.centroids[chosen] = centroids.to(self.centroids.dtype)
        self.plain[chosen] = plain.to(torch.int8)
        self.started.fill_(1)

    def _initial_centroids(self, kept: Tensor, importance: Tensor | None, share: Share) -> Tensor:
        """The best tables of groups [g, N, d]; of many groups each rank clusters some."""
        entries, groups = self.options.entries, len(kept)
        if share.ranks == 1 or groups < max(share.ranks, self.options.initial_in_shares_from):
            return initial_centroids(kept, entries, importance)
        by_groups = share.of_groups()
        some = None if importance is None else by_groups.cut(importance)
        return by_groups.gathered(initial_centroids(by_groups.cut(kept), entries, some), groups)

    def _unless_stale(self, centroids: Tensor, kept: Tensor, importance: Tensor | None) -> Tensor:
        """The tables as they were learned, or the best ones where these do not fit any more.

        That can be where weights were changed by other than small steps.
        """
        best = initial_centroids(kept, self.options.entries, importance).to(centroids.dtype)
        best = torch.where(self.pinned[..., None].bool(), centroids, best)
        weights = 1.0 if importance is None else importance[..., None]
        learned, least = (
            _mean_square((kept - nearest_centroids(kept, table)) * weights**0.5)
            for table in (centroids, best)
        )
        is_stale = learned > _STALE * least
        return torch.where(is_stale[:, None, None], best, centroids)

    def _temperature(self, variance: Tensor) -> Tensor:
        """The temperature of each group, [G]: it grows and shrinks with its variance."""
        growth = variance / self.spread.clamp_min(1e-30)
        return torch.where(growth > 0, self.temperature * growth, self.temperature)

    def _soft(self, points: Tensor, is_zero: Tensor, scale: Tensor | None, share: Share) -> Tensor:
        """Soft assignment; the centroids move along, for when the weights have changed."""
        groups = self.options.grouping.groups
        kept = _zeroed(points.detach(), is_zero)
        importance = self._importance(kept, is_zero, scale)
        is_new = self._is_new(kept)
        # the same on all ranks, so that they start alike and end after the same iteration
        spread = (self.latest[:, 0].mean() / kept.shape[-1]).sqrt()
        total = share.total(torch.stack([is_new.to(spread.dtype), spread])).tolist()
        self._check_finite(total[1])
        if not self.started or (total[0] > 0 and self.plain.any()):
            self._start(kept, importance, share)
        if total[0] > 0:
            self.before.copy_(self.centroids)
        epsilon = self.options.epsilon * total[1] / share.ranks
        temperature = self._temperature(_variance(kept))
        soft_groups = self.options.soft_groups or groups
        parts, others = slice(0, soft_groups), slice(soft_groups, None)
        soft = self._soft_groups(
            parts, points, kept, is_zero, importance, temperature, epsilon, share
        )
        if soft_groups < groups:
            hard = self._hard_groups(others, points, kept, is_zero, importance)
            soft = torch.cat([soft, hard])
        self.after.copy_(self.centroids)
        return soft

    def _is_new(self, kept: Tensor) -> Tensor:
        """Whether these are other weights than those of the latest pass, or the tables others.

        Remembers the weights, which are told apart by the mean and the mean square of each group:
        changes too small for that are too small for the tables as well.
        """
        numbers = torch.stack([_mean_square(kept), kept.float().mean((1, 2))], 1)
        is_new = (numbers != self.latest).any() | (self.centroids != self.after).any()
        self.latest.copy_(numbers)
        return is_new

    def _check_finite(self, magnitude: float) -> None:
        if not math.isfinite(magnitude):
            raise ConfigError(
                f"{self.options.name}: the weight has an infinity, a NaN, or numbers too large to "
                "be squared; go back to a state before that, and train in smaller steps"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As of every module, but casts leave float buffers as they are."""
        wide = {n: b for n, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in wide.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _soft_groups(
        self,
        parts: slice,
        points: Tensor,
        kept: Tensor,
        is_zero: Tensor,
        importance: Tensor | None,
        temperature: Tensor,
        epsilon: float,
        share: Share,
    ) -> Tensor:
        options = self.options
        groups, count = points[parts].shape[:2]
        if options.by_groups and groups >= share.ranks:
            share = share.of_groups()
        tables, pinned = self.before[parts], self.pinned[parts].bool()
        # masked here and not before: what is kept for the gradient is of the share alone
        own_is_zero = share.cut(is_zero[parts])
        as_given = own = share.own(points[parts])
        if options.enforce_zero or not self._is_threshold_negligible():
            own = _zeroed(own, own_is_zero)
        elif _may_be_freed():
            own = own.clone()
        soft, centroids = soft_kmeans(
            own,
            share.cut_tables(tables),
            share.cut_tables(temperature[parts]),
            iterations=options.iterations,
            mode=options.mode,
            epsilon=epsilon,
            importance=None if importance is None else share.cut(importance[parts]),
            pinned=share.cut_tables(pinned),
            implicit=options.implicit,
            lost_size=options.lost_size,
            coded=options.coded,
            chunk=None if options.memory_share == 1 else self._chunk(),
            reduce=share.total_of_groups,
            generator=share.generator() if options.mode == "gsm" else None,
        )
        with torch.no_grad():
            self.centroids[parts] = share.gathered_tables(centroids, groups).to(tables.dtype)
            move_duplicates(
                self.centroids[parts], kept[parts], pinned, tolerance=options.duplicates_tolerance
            )
        if options.lut_dtype != "f32":
            soft = soft + self._rounding(parts, own.detach(), share).to(soft.dtype)
        if options.enforce_zero:
            soft = soft.masked_fill(own_is_zero, 0.0)
        # each point is an entry already, and a mean of entries would hold equal ones together
        plain = share.cut_tables(self.plain[parts]).bool()[:, None, None]
        alike = own if options.enforce_zero else as_given
        soft = torch.where(plain, alike, soft) if plain.any() else soft
        return share.join(soft, groups if share.is_of_groups else count)

    @torch.no_grad()
    def _rounding(self, parts: slice, own: Tensor, share: Share) -> Tensor:
        """What rounding the table changes in points [g, n, d]; the gradient passes it by."""
        centroids = self.centroids[parts]
        rounding = share.cut_tables(self._table()[parts] - centroids)
        labels = nearest_labels(own, share.cut_tables(centroids))
        return rounding.gather(1, labels[..., None].expand(-1, -1, own.shape[-1]))

    def _hard_groups(
        self,
        others: slice,
        points: Tensor,
        kept: Tensor,
        is_zero: Tensor,
        importance: Tensor | None,
    ) -> Tensor:
        """The groups that are not assigned softly; their gradient goes straight to the weights."""
        with torch.no_grad():
            _, self.centroids[others] = soft_kmeans(
                kept[others],
                self.before[others],
                1.0,  # of no effect where points attend to the nearest alone
                iterations=1,
                mode="hard",
                importance=None if importance is None else importance[others],
                pinned=self.pinned[others].bool(),
                lost_size=self.options.lost_size,
            )
        hard = self._hard(kept[others], is_zero[others], self._table()[others])
        rest = _zeroed(points[others], is_zero[others])
        return hard + (rest - rest.detach())

    def _hard(self, kept: Tensor, is_zero: Tensor, table: Tensor) -> Tensor:
        """The nearest entries of tables [g, K, d], in the dtype of the points [g, N, d]."""
        found = nearest_centroids(kept, table).to(kept.dtype)
        return found.masked_fill(is_zero, 0.0) if self.options.enforce_zero else found

    def _is_threshold_negligible(self) -> bool:
        """Whether zero stands for weights within the threshold as well as they do themselves.

        That is so where it is a thousandth of what weights miss their entries by.
        """
        missed = float(self.temperature.min()) / TEMPERATURE_SHARE / self.options.temperature
        return self.options.prune_threshold <= 1e-3 * math.sqrt(missed)

    def _chunk(self) -> int:
        """Points that are gone through at a time where less than the usual memory may be used."""
        return max(1, int(_USUAL * self.options.memory_share) // self.options.entries)

    def _table(self) -> Tensor:
        """The centroids as the table's format can hold them, [G, K, d]."""
        return rounded_table(self.centroids, self.options.lut_dtype)


class _DenseGradient(torch.autograd.Function):
    """The identity. Modules that look rows up may send sparse gradients: here they end."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Tensor:
        return pull.to_dense() if pull.is_sparse else pull


def _is_exporting() -> bool:
    # PyTorch before 2.7 cannot say
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return is_exporting is not None and bool(is_exporting())


def _mean_square(points: Tensor) -> Tensor:
    """The mean over the points [G, N, d] of a group of their squared lengths, [G]."""
    return points.float().square().sum(-1).mean(1)


def _variance(points: Tensor) -> Tensor:
    """The mean over the points [G, N, d] of a group of squared distances to their mean, [G]."""
    wide = points.float()
    return _mean_square(wide - wide.mean(1, keepdim=True))


def _least_squared_distance(tables: Tensor) -> Tensor:
    """Between two entries of each table [G, K, d], [G]; 0 for a single one."""
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


def _zeroed(points: Tensor, is_zero: Tensor) -> Tensor:
    """Points with exact zeros where they count as zero.

    The points themselves where none does: a copy would be one more thing to keep for the backward
    pass.
    """
    return points.masked_fill(is_zero, 0.0) if _may_be_freed() or is_zero.any() else points


def _may_be_freed() -> bool:
    """Whether weights may be views of memory that FSDP frees and takes again.

    It cannot once an array has been made of them, and kernels make arrays of what they get.
    """
    return dist.is_available() and dist.is_initialized()
