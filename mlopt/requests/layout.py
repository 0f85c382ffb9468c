"""Choice of the groups and vectors of a weight: those requested, if its shape allows them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mlopt.choices import OnIndivisible
from mlopt.requests.keep import Keep

_VECTORS_DO_NOT_FIT = "cluster_dim does not divide the channels"


@attrs.frozen
class ChosenLayout:
    """The groups and vectors that a weight gets.

    Parameters
    ----------
    channel_axis
        The axis of groups and vectors, 0 or more; None without either.
    group_size
        Channels that share a table; None: one table for the weight.
    notes
        Differences from the request, one sentence each.
    """

    channel_axis: int | None = None
    group_size: int | None = None
    notes: tuple[str, ...] = ()


def choose_layout(
    shape: Sequence[int],
    axis: int,
    *,
    group_size: int | None,
    cluster_dim: int,
    channels_together: int,
    on_indivisible: OnIndivisible = "skip",
) -> ChosenLayout | Keep:
    """The layout of one weight, or why its shape does not allow the requested one.

    Parameters
    ----------
    shape
        Of the weight, at least one channel on every axis.
    axis
        The axis whose channels form groups and vectors, 0 or more.
    group_size
        Requested channels per table; None: all.
    cluster_dim
        Requested consecutive channels per table entry.
    channels_together
        Consecutive channels on `axis` that a vector may reach across: fewer than all where a
        grouped convolution or a recurrent layer keeps channels apart.
    on_indivisible
        What to do if `group_size` does not divide the channels: keep the weight, use the largest
        divisor below it, or use one table.
    """
    channels = shape[axis]
    notes: tuple[str, ...] = ()
    if group_size is not None and channels % group_size:
        what = f"{channels} channels on axis {axis} do not divide into groups of {group_size}"
        if on_indivisible == "skip":
            return _indivisible(what)
        divisor = None
        if on_indivisible == "divisor":
            divisor = _largest_divisor(channels, at_most=group_size, multiple_of=cluster_dim)
            if divisor is None:
                return _indivisible(what)
        instead = "one table for the tensor" if divisor is None else f"groups of {divisor}"
        notes = (f"{what}: {instead} instead",)
        group_size = divisor
    if group_size is not None and group_size % cluster_dim:
        return Keep(
            f"cluster_dim {cluster_dim} does not divide groups of {group_size} channels; a vector "
            "cannot belong to two groups",
            _VECTORS_DO_NOT_FIT,
        )
    if channels_together % cluster_dim:
        part = "" if channels_together == channels else " of a group"
        return Keep(
            f"cluster_dim {cluster_dim} does not divide the {channels_together} channels on axis "
            f"{axis}{part}",
            _VECTORS_DO_NOT_FIT,
        )
    if group_size == channels:
        group_size = None  # one group is one table, which older targets can express
    has_axis = group_size is not None or cluster_dim > 1
    return ChosenLayout(axis if has_axis else None, group_size, notes)


def _indivisible(what: str) -> Keep:
    return Keep(what, "channels do not divide into groups")


def _largest_divisor(channels: int, *, at_most: int, multiple_of: int) -> int | None:
    """The largest divisor of `channels` that is a multiple of a number; None if there is none."""
    for size in range(min(at_most, channels), 0, -1):
        if channels % size == 0 and size % multiple_of == 0:
            return size
    return None
