"""Clusters before a call: their centroids, and how softly points attend to them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Clusters(NamedTuple):
    """Clusters of ``G`` groups, constants for the gradient.

    Attributes
    ----------
    centroids
        [G, K, d], any floating dtype, on the points' device: where they start.
    temperature
        [G], or one number for all groups, positive, in units of squared distance. It is raised to
        at least ``2**-36`` (float64: ``2**-80``) of the largest square in the group's centroids,
        which is one-hot attention.
    pinned
        bool[G, K]: centroids that stay where they are. None for none.
    """

    centroids: Tensor
    temperature: Tensor | float
    pinned: Tensor | None = None
