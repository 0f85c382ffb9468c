"""What other tools make of the models of ``answers``, to be judged as our packages are."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.lib.row import PROJECT, REFERENCE


@attrs.frozen
class Compressed:
    """How many elements were compressed, and their bytes; None: as in the package."""

    elements: int
    bytes: float | None = None


@attrs.frozen
class Reference:
    """A method beside ours.

    ``make``: "package.module:function", called with the samples of the calibration, the path for
    a package, and ``options``; it returns what it compressed.
    """

    form: str
    method: str
    make: str
    options: dict[str, Any]

    def compress(self, samples: Sequence[Any], output: Path) -> Compressed:
        """Write the package."""
        module, _, function = self.make.partition(":")
        made = getattr(importlib.import_module(module), function)
        compressed: Compressed = made(samples, output, **self.options)
        return compressed


def _gptq(bits: int, method: str, **options: Any) -> Reference:
    make = "benchmarks.tasks.minilm_references:gptq"
    return Reference(f"layers, {bits} bits", f"GPTQ{method}", make, {"bits": bits, **options})


def _sensitive(bits: int, tool: str) -> Reference:
    make = "benchmarks.tasks.minilm_references:sensitive"
    return Reference(f"layers, {bits} bits", f"SKM of {tool}", make, {"bits": bits, "tool": tool})


def _minilm(bits: int) -> tuple[Reference, ...]:
    best = {"quantization_scheme": "affine", "use_activation_order_heuristic": True}
    return (
        _gptq(bits, ""),
        _gptq(bits, ", affine, ordered", **best),
        _gptq(bits, ", the same, blocks of 32", **best, granularity="per_block", block_size=32),
        _sensitive(bits, REFERENCE),
        _sensitive(bits, PROJECT),
    )


def _ggml(name: str, embedding: str) -> Reference:
    method = name if name == embedding else f"{name}, embedding {embedding}"
    options = {"layers": name, "embedding": embedding}
    return Reference("GGML", method, "benchmarks.tasks.ggml_references:rounded", options)


REFERENCES = {
    "minilm": tuple(reference for bits in (2, 3, 4) for reference in _minilm(bits)),
    "smollm2": (
        _ggml("Q4_0", "Q4_0"),
        _ggml("Q4_0", "Q8_0"),
        _ggml("MXFP4", "MXFP4"),
    ),
}
"""By model, in the order of the table."""
