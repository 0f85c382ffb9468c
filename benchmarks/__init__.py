"""Benchmarks of mlopt against coremltools: one script a question (see README.md)."""
