"""A weight as palettization will leave it, while it is still being trained."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlopt.palette.palettize import palettize
from mlopt.palette.palettized import Palettized
from mlopt.palette.quantized import Lattice, is_wide_enough
from mlopt.palette.spec import NBITS, PaletteSpec
from mlopt.torch.palettization.form import Grouping, channel_scale
from mlopt.torch.palettization.initial import initial_centroids
from mlopt.torch.palettization.nearest import (
    move_duplicates,
    nearest_centroids,
    nearest_labels,
)
from mlopt.torch.palettization.shares import WHOLE, share_of_this_rank
from mlopt.torch.soft_kmeans import Mode, soft_kmeans
from mlopt.torch.soft_kmeans.eager import outside_graphs
from mlopt.torch.tensors import as_array, numpy_dtype

TEMPERATURE_SHARE = 0.5
"""Temperature in units of the mean squared error of optimal clusters.

At this share the soft weight is nearer to the weight than hard clusters are, by about 11 % for
normal weights at 1 to 6 bits, and its fixed point is within 1 % of the optimal clusters; from
about twice that on, clusters of heavy-tailed weights begin to collapse.
"""


_STALE = 1.44
"""From so many times the squared error of the best table on, a learned one is given up."""


@attrs.frozen(kw_only=True)
class FakePalettizeOptions:
    """How ``FakePalettize`` clusters; see ``ModuleDKMPalettizerConfig`` for what each does.

    entries: in a table; scale_axis, scale_scheme: of the per-channel scale, None for none;
    lut_dtype: ``"f32"``, ``"f16"``, ``"bf16"``, ``"i8"`` or ``"u8"``; soft_groups: how many of the
    groups, the first ones, have soft assignment; temperature: a factor, 1 by default; in_shares:
    whether the ranks of ``torch.distributed`` divide the soft assignment among them.
    """

    grouping: Grouping
    entries: int
    scale_axis: int | None = None
    scale_scheme: str = "min_max"
    lut_dtype: str = "f32"
    mode: Mode = "dkm"
    iterations: int = 3
    epsilon: float = 1e-4
    temperature: float = 1.0
    outlier_weight: float = 0.0
    enforce_zero: bool = False
    prune_threshold: float = 0.0
    duplicates_tolerance: float = 0.0
    soft_groups: int | None = None
    coded: bool = False
    memory_share: float = 1.0
    in_shares: bool = False


class FakePalettize(nn.Module):
    """Gives a weight as its palette will store it; the gradient passes through (DKM).

    It is a parametrization: ``torch.nn.utils.parametrize`` calls it with the weight that is trained
    wherever the module's weight is used. In training, each weight is the mean of the table's
    entries, weighted by how near they are, and the table follows the weights by soft k-means
    (ALGORITHMS, "Differentiable k-means"; arXiv 2108.12659). In evaluation each weight is the
    nearest entry. Disabled, it gives the weight as it is.

    Its state, in buffers: the centroids [G, K, d] of G groups, in units of the scale where there is
    one; a temperature for each group, and the mean square of its points that it belongs to; which
    centroids are pinned to zero; which groups have fewer distinct points than entries, and are
    passed on as they are until that changes; whether it is enabled and has started; and how often
    the palettizer has stepped.
    """

    centroids: Tensor
    temperature: Tensor
    pinned: Tensor
    spread: Tensor
    plain: Tensor
    enabled: Tensor
    started: Tensor
    steps: Tensor

    def __init__(self, options: FakePalettizeOptions) -> None:
        super().__init__()
        self.options = options
        grouping = options.grouping
        shape = (grouping.groups, options.entries, grouping.d)
        self.register_buffer("centroids", torch.zeros(shape))
        self.register_buffer("temperature", torch.ones(grouping.groups))
        self.register_buffer("pinned", torch.zeros(shape[:2], dtype=torch.bool))
        self.register_buffer("spread", torch.ones(grouping.groups))
        self.register_buffer("plain", torch.zeros(grouping.groups, dtype=torch.bool))
        self.register_buffer("enabled", torch.tensor(False))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0))

    def enable(self, enabled: bool = True) -> None:
        """Let it palettize from now on, or not."""
        self.enabled.fill_(enabled)

    @outside_graphs
    def forward(self, weight: Tensor) -> Tensor:
        """The weight as stored: of the shape and dtype of ``weight``."""
        if not self.enabled:
            return weight
        grouping = self.options.grouping
        with torch.autocast(weight.device.type, enabled=False):
            points, scale = self._points(weight)
            is_zero = self._is_zero(weight)
            if not self.started or self.plain.any():
                self._start(points.detach(), is_zero, scale)
            if self.training and torch.is_grad_enabled():
                stored = self._soft(points, is_zero, scale)
            else:
                kept = _zeroed(points.detach(), is_zero)
                stored = self._hard(kept, is_zero, self._table())
            found = grouping.weight(stored)
            return found if scale is None else (found * scale).to(weight.dtype)

    @torch.no_grad()
    def palettized(self, weight: Tensor) -> Palettized:
        """The palette of a weight: its nearest entries, after the table has followed it once more.

        In the weight's dtype; tables of 8 bits as ``palettize`` makes them of these entries.
        """
        options, grouping = self.options, self.options.grouping
        points, scale = self._points(weight.detach())
        is_zero = self._is_zero(weight)
        if not self.started or self.plain.any():
            self._start(points, is_zero, scale)
        kept = _zeroed(points, is_zero)
        importance = self._importance(kept, is_zero, scale)
        _, centroids = soft_kmeans(
            kept,
            self.centroids,
            self._temperature(kept),
            iterations=options.iterations,
            mode="hard" if options.mode == "hard" else "dkm",
            importance=importance,
            pinned=self.pinned,
        )
        self.centroids.copy_(self._unless_stale(centroids, kept, importance))
        return self._palette(weight, grouping.weight(kept), scale)

    def _points(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points [G, N, d], in units of the scale where there is one, and that."""
        options = self.options
        if options.scale_axis is None:
            return options.grouping.points(weight), None
        scale = channel_scale(weight.detach(), options.scale_axis, scheme=options.scale_scheme)
        wide = weight.float() if weight.dtype.itemsize < 4 else weight
        return options.grouping.points(wide / scale), scale

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
            squares = (scale / scale.max()).square().float().expand(options.grouping.shape)
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
    def _start(self, points: Tensor, is_zero: Tensor, scale: Tensor | None) -> None:
        """Cluster for the first time, and choose the temperature by the error that is left.

        Later: only the groups that had fewer distinct points than entries.
        """
        options = self.options
        every = torch.ones_like(self.plain)
        chosen = (self.plain if self.started else every).nonzero()[:, 0]
        kept = _zeroed(points, is_zero)
        importance = self._importance(kept, is_zero, scale)
        kept = kept[chosen]
        importance = None if importance is None else importance[chosen]
        centroids = initial_centroids(kept, options.entries, importance)
        plain = [len(torch.unique(table, dim=0)) < options.entries for table in centroids]
        if options.enforce_zero:
            nearest = centroids.square().sum(-1).argmin(-1, keepdim=True)
            pinned = torch.zeros_like(self.pinned[chosen]).scatter_(1, nearest, True)
            centroids.masked_fill_(pinned[..., None], 0.0)
            self.pinned[chosen] = pinned
        error = (kept - nearest_centroids(kept, centroids)).float().square().sum(-1)
        weights = torch.ones_like(error) if importance is None else importance
        mean = (error * weights).sum(1) / weights.sum(1).clamp_min(1e-30)
        # few distinct points leave no error: so cold that each takes its own entry
        spread = _mean_square(kept)
        least = (1e-10 * spread).clamp_min(1e-30)
        share = TEMPERATURE_SHARE * options.temperature
        self.temperature[chosen] = torch.maximum(share * mean, least)
        self.spread[chosen] = spread
        self.centroids[chosen] = centroids.to(self.centroids.dtype)
        self.plain[chosen] = torch.tensor(plain, device=self.plain.device)
        self.started.fill_(True)

    def _unless_stale(self, centroids: Tensor, kept: Tensor, importance: Tensor | None) -> Tensor:
        """The tables as they were learned, or the best ones where these do not fit any more.

        That can be where weights were changed by other than small steps.
        """
        best = initial_centroids(kept, self.options.entries, importance).to(centroids.dtype)
        best = torch.where(self.pinned[..., None], centroids, best)
        weights = 1.0 if importance is None else importance[..., None]
        learned, least = (
            _mean_square((kept - nearest_centroids(kept, table)) * weights**0.5)
            for table in (centroids, best)
        )
        is_stale = learned > _STALE * least
        return torch.where(is_stale[:, None, None], best, centroids)

    def _temperature(self, kept: Tensor) -> Tensor:
        """The temperature of each group, [G]: it grows and shrinks with the points, squared."""
        growth = _mean_square(kept) / self.spread.clamp_min(1e-30)
        return torch.where(growth > 0, self.temperature * growth, self.temperature)

    def _soft(self, points: Tensor, is_zero: Tensor, scale: Tensor | None) -> Tensor:
        """Soft assignment; the centroids move along for the next call."""
        options, grouping = self.options, self.options.grouping
        share = share_of_this_rank() if options.in_shares else WHOLE
        kept = _zeroed(points.detach(), is_zero)
        importance = self._importance(kept, is_zero, scale)
        # the same on all ranks, so that they end after the same iteration
        spread = float(share.total(kept.float().square().mean().sqrt())) / share.ranks
        soft_groups = options.soft_groups or grouping.groups
        parts = slice(0, soft_groups)
        # masked here and not before: what is kept for the gradient is of the share alone
        own_is_zero = share.cut(is_zero[parts])
        as_given = own = share.own(points[parts])
        if options.enforce_zero or not self._is_threshold_negligible():
            own = _zeroed(own, own_is_zero)
        elif _may_be_freed():
            own = own.clone()
        soft, centroids = soft_kmeans(
            own,
            self.centroids[parts],
            self._temperature(kept)[parts],
            iterations=options.iterations,
            mode=options.mode,
            epsilon=options.epsilon * spread,
            importance=None if importance is None else share.cut(importance[parts]),
            pinned=self.pinned[parts],
            coded=options.coded,
            chunk=None if options.memory_share == 1 else self._chunk(),
            reduce=share.total,
            generator=share.generator() if options.mode == "gsm" else None,
        )
        with torch.no_grad():
            self.centroids[parts] = centroids
            move_duplicates(
                self.centroids[parts],
                kept[parts],
                self.pinned[parts],
                tolerance=options.duplicates_tolerance,
            )
            table = self._table()
            if options.lut_dtype != "f32":
                # what rounding the table changes, passed by the gradient
                rounding = table[parts] - self.centroids[parts]
                labels = nearest_labels(own.detach(), self.centroids[parts])
                rounded = rounding.gather(1, labels[..., None].expand(-1, -1, points.shape[-1]))
            else:
                rounded = None
        if rounded is not None:
            soft = soft + rounded.to(soft.dtype)
        if options.enforce_zero:
            soft = soft.masked_fill(own_is_zero, 0.0)
        # each point is an entry already, and a mean of entries would hold equal ones together
        plain = self.plain[parts, None, None]
        alike = own if options.enforce_zero else as_given
        soft = torch.where(plain, alike, soft) if plain.any() else soft
        soft = share.join(soft, points.shape[1])
        if soft_groups == grouping.groups:
            return soft
        others = slice(soft_groups, None)
        with torch.no_grad():
            _, self.centroids[others] = soft_kmeans(
                kept[others],
                self.centroids[others],
                self.temperature[others],
                iterations=1,
                mode="hard",
                importance=None if importance is None else importance[others],
                pinned=self.pinned[others],
            )
            table = self._table()
        hard = self._hard(kept[others], is_zero[others], table[others])
        # their gradient goes straight to the weights
        rest = _zeroed(points[others], is_zero[others])
        return torch.cat([soft, hard + (rest - rest.detach())])

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
        lut_dtype, table = self.options.lut_dtype, self.centroids
        if lut_dtype == "f16":
            return table.half().to(table.dtype)
        if lut_dtype == "bf16":
            return table.bfloat16().to(table.dtype)
        if lut_dtype in _INTEGERS:
            return torch.from_numpy(_on_lattice(as_array(table), _INTEGERS[lut_dtype])).to(table)
        return table

    def _palette(self, weight: Tensor, kept: Tensor, scale: Tensor | None) -> Palettized:
        """The palette whose tables are the centroids, for a weight in units of the scale."""
        options, grouping = self.options, self.options.grouping
        dtype = numpy_dtype(weight.dtype)
        tables = iter(as_array(self._table()).astype(np.float64))
        nbits = min(n for n in NBITS if 1 << n >= options.entries)

        def nearest(group: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
            table = np.unique(next(tables).astype(dtype), axis=0)
            # groups come with their channels first
            wide, entries = (torch.from_numpy(a.astype(np.float64)) for a in (group, table))
            points = Grouping(group.shape, d=grouping.d).points(wide)
            return table, as_array(nearest_labels(points, entries[None]))

        is_cut = grouping.groups > 1 or grouping.d > 1
        spec = PaletteSpec(
            mode="custom",
            lut_function=nearest,
            channel_axis=grouping.axis if is_cut else None,
            group_size=grouping.shape[grouping.axis] // grouping.groups if is_cut else None,
            cluster_dim=grouping.d,
            allowed_nbits=tuple(n for n in NBITS if n >= nbits),
            lut_dtype=_INTEGERS.get(options.lut_dtype),
        )
        unscaled = as_array(kept.to(weight.dtype))
        palettized, _ = palettize(unscaled, spec)
        if scale is not None:
            palettized = attrs.evolve(palettized, scale=as_array(scale.to(weight.dtype)))
        return palettized


def _mean_square(points: Tensor) -> Tensor:
    """The mean over the points [G, N, d] of a group of their squared lengths, [G]."""
    return points.float().square().sum(-1).mean(1)


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


_INTEGERS = {"i8": "int8", "u8": "uint8"}


def _on_lattice(table: npt.NDArray[Any], lut_dtype: str) -> npt.NDArray[Any]:
    """Numbers rounded to those that a table in 8 bits with one scale can hold."""
    wide = table.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not is_wide_enough(low, high, lut_dtype, table.dtype):
        return table
    lattice = Lattice.spanning(low, high, lut_dtype, table.dtype)
    return lattice.points[lattice.nearest(wide)].astype(table.dtype)


_USUAL = 1 << 20
"""Distances that are computed at a time, usually."""
