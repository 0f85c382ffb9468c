"""Scalar clustering: distinct values, exact k-means, uniform and unique tables."""
