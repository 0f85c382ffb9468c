"""Forward passes of a weight: its points as their tables hold them, softly or hard."""

from __future__ import annotations

import torch
from torch import Tensor

from mlopt.torch.palettization.nearest import (
    cluster_labels,
    move_duplicates,
    nearest_centroids,
)
from mlopt.torch.palettization.shares import WHOLE, Share
from mlopt.torch.palettization.table_state import TableState
from mlopt.torch.palettization.weight_points import WeightPoints, may_be_freed, zeroed
from mlopt.torch.soft_kmeans import Clusters, soft_kmeans


def soft_pass(state: TableState, points: WeightPoints, share: Share) -> Tensor:
    """Return points [G, N, d] by soft assignment; the tables follow where weights have changed."""
    options, groups = state.options, state.options.layout.groups
    is_new = state.is_new(points.moments)
    # the same on all ranks, so that they start alike and end after the same iteration
    spread = (state.latest[:, 0].mean() / points.points.shape[-1]).sqrt()
    total = share.total(torch.stack([is_new.to(spread.dtype), spread])).tolist()
    state.check_finite(total[1])
    if not state.started or (total[0] > 0 and state.plain.any()):
        state.start(points, share)
    if total[0] > 0:
        state.before.copy_(state.centroids)
    epsilon = options.relative_epsilon * total[1] / share.ranks
    stored = _soft_groups(state, points, slice(0, options.soft_groups), share, epsilon)
    if options.soft_groups < groups:
        hard = _hard_groups(state, points, slice(options.soft_groups, None))
        stored = torch.cat([stored, hard])
    state.after.copy_(state.centroids)
    return stored


def hard_pass(state: TableState, points: WeightPoints, *, starts: bool) -> Tensor:
    """Return the nearest entries of points [G, N, d]; the tables stay, unless they must start."""
    kept = points.kept
    state.check_finite(float(kept.abs().max()) if kept.numel() else 0.0)
    if starts:
        state.start(points, WHOLE)
    return _nearest_entries(state, points, state.table())


def _soft_groups(
    state: TableState, points: WeightPoints, groups: slice, share: Share, epsilon: float
) -> Tensor:
    """Assign the soft groups; this rank's share of them is computed here."""
    options = state.options
    temperature = state.temperature_for(points.moments)[groups]
    points = points.of_groups(groups)
    count_groups, count = points.points.shape[:2]
    if options.by_groups and count_groups >= share.ranks:
        share = share.of_groups()
    as_given = share.own(points.points)
    own = _masked(state, as_given, points, share)
    tables, pinned = state.before[groups], state.pinned[groups].bool()
    clusters = Clusters(
        share.cut_tables(tables), share.cut_tables(temperature), share.cut_tables(pinned)
    )
    soft, centroids = soft_kmeans(
        own,
        clusters,
        options,
        epsilon=epsilon,
        importance=None if points.importance is None else share.cut(points.importance),
        reduce=None if share.ranks == 1 else share.total_of_groups,
        generator=share.generator() if options.mode == "gsm" else None,
    )
    with torch.no_grad():
        state.centroids[groups] = share.gathered_tables(centroids, count_groups).to(tables.dtype)
        tolerance = options.duplicates_tolerance
        move_duplicates(state.centroids[groups], points, pinned, tolerance=tolerance)
    if options.lut_dtype != "f32":
        soft = soft + _rounding(state, groups, own.detach(), share).to(soft.dtype)
    if options.enforce_zero:
        soft = soft.masked_fill(share.cut(points.is_zero), 0.0)
    # each point is an entry already, and a mean of entries would keep equal ones together
    plain = share.cut_tables(state.plain[groups]).bool()[:, None, None]
    alike = own if options.enforce_zero else as_given
    soft = torch.where(plain, alike, soft) if plain.any() else soft
    return share.join(soft, count_groups if share.is_of_groups else count)


def _masked(state: TableState, own: Tensor, points: WeightPoints, share: Share) -> Tensor:
    """Return a share of points, with exact zeros where needed, in memory that stays valid.

    Masked here and not before, so that only the share is kept for the gradient.
    """
    if state.options.enforce_zero or not state.is_threshold_negligible():
        return zeroed(own, share.cut(points.is_zero))
    return own.clone() if may_be_freed() else own


@torch.no_grad()
def _rounding(state: TableState, groups: slice, own: Tensor, share: Share) -> Tensor:
    """Return the change of points [g, n, d] by rounding the table; it has no gradient."""
    centroids = state.centroids[groups]
    rounding = share.cut_tables(state.table()[groups] - centroids)
    labels = cluster_labels(own, share.cut_tables(centroids))
    return rounding.gather(1, labels[..., None].expand(-1, -1, own.shape[-1]))


def _hard_groups(state: TableState, points: WeightPoints, groups: slice) -> Tensor:
    """Assign the groups that are not soft; their gradient goes straight to the weights."""
    points = points.of_groups(groups)
    with torch.no_grad():
        _, state.centroids[groups] = soft_kmeans(
            points.kept,
            # a temperature has no effect where points attend to the nearest alone
            Clusters(state.before[groups], 1.0, state.pinned[groups].bool()),
            state.options.for_tables_alone(mode="hard", iterations=1),
            importance=points.importance,
        )
    hard = _nearest_entries(state, points, state.table()[groups])
    rest = zeroed(points.points, points.is_zero)
    return hard + (rest - rest.detach())


def _nearest_entries(state: TableState, points: WeightPoints, table: Tensor) -> Tensor:
    """Return the nearest entries of tables [g, K, d], in the dtype of the points [g, N, d]."""
    entries = nearest_centroids(points.kept, table).to(points.kept.dtype)
    return entries.masked_fill(points.is_zero, 0.0) if state.options.enforce_zero else entries
