"""Clustering single values: distinct values, exact k-means, uniform and unique tables."""
