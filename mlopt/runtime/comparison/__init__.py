"""Comparison of two models: how far their outputs are apart, and which weights cause it."""
