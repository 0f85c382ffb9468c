"""Differentiable k-means: points drawn softly towards centroids, with gradients for the points."""

from mlopt.torch.soft_kmeans.function import soft_kmeans
from mlopt.torch.soft_kmeans.passes import Mode

__all__ = ["Mode", "soft_kmeans"]
