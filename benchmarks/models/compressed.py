"""Packages already compressed, the inputs of the rows that undo, describe or raise it.

Written by coremltools, tables in its quick uniform mode: how a table was found does not matter to
whoever expands it, and both tools get the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib.quiet import import_coremltools

SPARSE_BELOW = 0.035
"""Weights of at most this magnitude are pruned: half of those of MiniLM. A threshold and not a
share, for which coremltools sorts float16, and numpy 2.3 does not do that right on every machine
(it then prunes nothing, and stores the weight as sparse all the same)."""


def _palettized(api: Any, model: Any, nbits: int, joint: bool = False) -> Any:
    config = api.OpPalettizerConfig(mode="uniform", nbits=nbits)
    return api.palettize_weights(model, api.OptimizationConfig(config), joint)


def _quantized(api: Any, model: Any, **settings: Any) -> Any:
    config = api.OpLinearQuantizerConfig(mode="linear_symmetric", **settings)
    return api.linear_quantize_weights(model, api.OptimizationConfig(config))


def _pruned(api: Any, model: Any) -> Any:
    config = api.OpThresholdPrunerConfig(threshold=SPARSE_BELOW, minimum_sparsity_percentile=0.0)
    return api.prune_weights(model, api.OptimizationConfig(config))


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "lut8": lambda api, model: _palettized(api, model, nbits=8),
    "lut4": lambda api, model: _palettized(api, model, nbits=4),
    "joint-lut4": lambda api, model: _palettized(api, model, nbits=4, joint=True),
    "int8": lambda api, model: _quantized(api, model, granularity="per_channel"),
    "int4-block32": lambda api, model: _quantized(
        api, model, dtype="int4", granularity="per_block", block_size=32
    ),
    "sparse": _pruned,
}
"""Name to what makes it of a model; ``joint`` forms take the nonzero values of a sparse model."""


def compress(source: str, form: str, path: Path) -> None:
    """Write the package ``source`` in a form of ``FORMS`` at ``path``."""
    ct = import_coremltools()
    model = ct.models.MLModel(source, skip_model_load=True)
    FORMS[form](ct.optimize.coreml, model).save(str(path))
