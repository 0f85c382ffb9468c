"""Packages already palettized, the inputs of the decompression rows.

Written by coremltools in its quick uniform mode: how a table was found does not matter to
whoever expands it, and both tools get the same file.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.lib.packages import build_here
from benchmarks.lib.quiet import import_coremltools


def _palettize_8bit(source: str, path: Path) -> None:
    ct = import_coremltools()
    api = ct.optimize.coreml
    config = api.OptimizationConfig(api.OpPalettizerConfig(mode="uniform", nbits=8))
    model = ct.models.MLModel(source, skip_model_load=True)
    api.palettize_weights(model, config).save(str(path))


def build_minilm(path: Path) -> None:
    """MiniLM with 8-bit tables per tensor."""
    _palettize_8bit(build_here("minilm"), path)


def build_warmup(path: Path) -> None:
    """The warm-up model with 8-bit tables per tensor."""
    _palettize_8bit(build_here("warmup"), path)
