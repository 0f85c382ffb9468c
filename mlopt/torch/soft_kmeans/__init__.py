"""Soft, differentiable k-means: points drawn towards centroids, with gradients for the points."""

from mlopt.torch.soft_kmeans.clusters import Clusters
from mlopt.torch.soft_kmeans.function import soft_kmeans
from mlopt.torch.soft_kmeans.options import Mode, SoftOptions

__all__ = ["Clusters", "Mode", "SoftOptions", "soft_kmeans"]
