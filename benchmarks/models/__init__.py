"""The models of the benchmarks: each file writes one architecture out."""
