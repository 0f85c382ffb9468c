"""Clustering vectors of several channels."""
