"""Weights of a program: as they are stored, decompressed, widened, and single rows of them."""
