"""SmolLM2 in the block formats of GGML, rounded as the Python package ``gguf`` does it.

Not a run of llama.cpp, which has more formats and can weight errors by the inputs of a layer.
``gguf`` quantizes to those without a search only; and a format with superblocks of 256 elements
(Q2_K to Q6_K, most of IQ) does not fit rows of 576.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.convert import convert
from benchmarks.models.smollm2 import TOKENS, load_decoder
from benchmarks.tasks.answer_references import Compressed


def rounded(_: Sequence[Any], output: Path, *, layers: str, embedding: str) -> Compressed:
    """Every matrix rounded to a format of GGML, in a package that holds it in float16.

    The blocks are those of the file that the weights came from: that they had been in Q4_1 favours
    formats with the same blocks.
    """
    decoder = load_decoder()
    elements, size = 0, 0.0
    for name, weight in decoder.named_parameters():
        if weight.ndim == 2:
            kind = embedding if name.startswith("words") else layers
            weight.data = torch.from_numpy(_round_trip(weight.detach().numpy(), kind))
            elements += weight.numel()
            size += weight.numel() * bits_of(kind) / 8
    ids = torch.ones(1, TOKENS, dtype=torch.int32)
    convert(decoder, {"input_ids": ids}, output, target="iOS18")
    return Compressed(elements, size)


def bits_of(name: str) -> float:
    """Bits for each weight of a format, scales included."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return 8 * size / elements


def _round_trip(weight: Any, name: str) -> Any:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[name]
    return dequantize(quantize(weight, kind), kind)
