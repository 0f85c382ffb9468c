"""Initial centroids of differentiable k-means: those of least squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlopt.choices import NBITS
from mlopt.palette.palettize import palettize
from mlopt.palette.scalar.distinct import distinct_values
from mlopt.palette.scalar.kmeans1d import kmeans1d
from mlopt.palette.value.spec import PaletteSpec
from mlopt.palette.vector.clustering import cluster_vectors
from mlopt.torch.soft_kmeans.point_cloud import computation_dtype
from mlopt.torch.tensors import as_array


def initial_centroids(points: Tensor, entries: int, importance: Tensor | None = None) -> Tensor:
    """Cluster each group by itself: exactly for scalars, from a fixed start for vectors.

    Parameters
    ----------
    points
        [G, N, d], finite; float16, bfloat16, float32 or float64, on any device.
    entries
        Centroids K of a group, 1 or more. Where there are fewer distinct points, the last
        centroid is repeated.
    importance
        [G, N], not negative, or None.

    Returns
    -------
    float32 [G, K, d] on the device of the points (float64 for float64); scalars ascend.
    """
    arrays = as_array(points)
    weights = None if importance is None else as_array(importance.double())
    if entries in _SIZES:
        tables = _tables(arrays, _SIZES[entries], weights)
    else:
        per_group = weights if weights is not None else [None] * len(arrays)
        tables = np.stack(
            [
                _padded(_clustered(group, entries, masses), entries)
                for group, masses in zip(arrays, per_group, strict=True)
            ]
        )
    return torch.from_numpy(tables).to(points.device, computation_dtype(points.dtype))


_SIZES = {1 << nbits: nbits for nbits in NBITS}


def _tables(
    arrays: npt.NDArray[Any], nbits: int, weights: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Return centres [G, K, d] of points [G, N, d] as tables of a palette for all groups."""
    groups, count, d = arrays.shape
    rows = np.moveaxis(arrays, 2, 1).reshape(groups * d, count)
    importance = None if weights is None else np.repeat(weights, d, axis=0)
    spec = PaletteSpec(nbits=nbits, channel_axis=0, group_size=d, cluster_dim=d)
    palettized, _ = palettize(rows, spec, importance)
    return palettized.table[:, 0].astype(np.float64)


def _clustered(
    group: npt.NDArray[Any], entries: int, importance: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Return centres [k, d], k <= entries, of points [N, d]."""
    if group.shape[1] > 1:
        return cluster_vectors(group, entries, importance)[0]
    values, counts = distinct_values(group[:, 0], importance)
    bounds = kmeans1d(values, counts, entries)
    sums = np.add.reduceat(values * counts, bounds[:-1])
    return np.asarray(sums / np.add.reduceat(counts, bounds[:-1]))[:, None]


def _padded(centres: npt.NDArray[np.float64], entries: int) -> npt.NDArray[np.float64]:
    return np.concatenate([centres, np.repeat(centres[-1:], entries - len(centres), axis=0)])
