"""MiniLM's linear layers compressed by coremltools with the samples of a calibration, as packages.

Sensitive k-means needs a loss: a random product of the embedding, the direction drawn anew for each
passage. Its mean squared gradient is the diagonal of the Gauss-Newton matrix of the squared error
of embeddings, by which the packages are judged, and needs no labels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.row import PROJECT
from benchmarks.models.bert import SentenceEncoder
from benchmarks.models.convert import convert
from benchmarks.models.minilm import TOKENS, load_encoder
from benchmarks.models.minilm_weights import model_folder
from benchmarks.tasks.answer_references import Compressed
from benchmarks.tasks.answer_trials import Sample

TARGET = "iOS18"
LAYERS = r"encoder\.layers\.\d+"


def gptq(samples: Sequence[Sample], output: Path, *, bits: int, **options: Any) -> Compressed:
    """GPTQ by coremltools' ``LayerwiseCompressor``; ``options`` of its ``ModuleGPTQConfig``.

    The package holds the layers in float16 with the values that were found. Their bytes are
    computed: Core ML has quantized weights of 4 and 8 bits only, in which others are stored.
    """
    ids = [torch.from_numpy(sample["input_ids"]) for sample in samples]
    encoder = load_encoder(model_folder())
    quantize(encoder, ids, bits, options)
    _convert(encoder, output)
    shapes = [(len(weight), weight.shape[1]) for weight in linear_weights(encoder)]
    has_offsets = options.get("quantization_scheme") == "affine"
    size = quantized_bytes(shapes, bits, block=options.get("block_size"), has_offsets=has_offsets)
    return Compressed(sum(rows * columns for rows, columns in shapes), size)


def quantize(
    encoder: SentenceEncoder, ids: Sequence[torch.Tensor], bits: int, options: dict[str, Any]
) -> None:
    """Replace the weights of the linear layers by what GPTQ makes of them.

    ids: passages [1, tokens] without masked tokens.
    """
    import_coremltools()
    from coremltools.optimize.torch.layerwise_compression import (
        LayerwiseCompressor,
        LayerwiseCompressorConfig,
        ModuleGPTQConfig,
    )

    logging.getLogger("coremltools.optimize.torch").setLevel(logging.ERROR)
    chosen = ModuleGPTQConfig(weight_dtype="uint4", **options)
    # It has names for 3, 4 and 8 bits only; nothing but the number of levels depends on the name.
    chosen.weight_n_bits = bits
    config = LayerwiseCompressorConfig(
        layers=[LAYERS],
        global_config=chosen,
        input_cacher="gpt",
        calibration_nsamples=len(ids),
    )
    found = LayerwiseCompressor(_OneInput(encoder), config).compress(ids, device="cpu")
    with torch.no_grad():
        pairs = zip(linear_weights(encoder), linear_weights(found), strict=True)
        for weight, quantized in pairs:
            weight.copy_(quantized)


def sensitive(
    samples: Sequence[Sample], output: Path, *, tool: str, bits: int, **options: Any
) -> Compressed:
    """Sensitive k-means by the ``SKMPalettizer`` of coremltools, or ours of the same name."""
    from benchmarks.lib.torch_perform import palettizers

    api = palettizers(tool)
    config = api.SKMPalettizerConfig.from_dict(
        {
            "module_type_configs": {nn.Linear: {"n_bits": bits, **options}},
            "calibration_nsamples": len(samples),
        }
    )
    generator = torch.Generator().manual_seed(0)
    encoder = load_encoder(model_folder())
    width = encoder.norm.weight.numel()
    drawn = [
        (*map(torch.from_numpy, sample.values()), torch.randn(width, generator=generator))
        for sample in samples
    ]
    palettizer = api.SKMPalettizer(encoder, config)
    found = palettizer.compress(dataloader=drawn, loss_fn=_random_product)
    _convert(found, output, with_ours=tool == PROJECT)
    return Compressed(sum(weight.numel() for weight in linear_weights(encoder)))


def linear_weights(module: nn.Module) -> list[torch.Tensor]:
    """The weights of the linear layers."""
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]


def quantized_bytes(
    shapes: Iterable[tuple[int, int]], bits: int, *, block: int | None, has_offsets: bool
) -> float:
    """Bytes of quantized matrices [rows, columns], with a scale in float16 for every ``block``.

    ``block``: columns that share a scale; None: those of a row. Offsets have ``bits`` as well.
    """
    size = 0.0
    for rows, columns in shapes:
        scales = rows * (columns // block if block else 1)
        size += rows * columns * bits / 8 + scales * (2 + (bits / 8 if has_offsets else 0))
    return size


class _OneInput(nn.Module):
    """A copy of the encoder for passages that fill its whole length, as GPTQ can call it.

    GPTQ gives a layer the output of the one before it, and nothing else; what is added to the
    scores of attention is 0 where no token is masked.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        for layer in self.encoder.layers:
            layer.register_forward_pre_hook(_with_bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(ids, torch.ones_like(ids))


def _with_bias(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return given if len(given) == 2 else (*given, torch.zeros(1, 1, 1, 1))


def _random_product(
    module: nn.Module, sample: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    ids, mask, direction = sample
    return (module(ids, mask) * direction).sum()


def _convert(module: nn.Module, output: Path, *, with_ours: bool = False) -> None:
    ids = torch.ones(1, TOKENS, dtype=torch.int32)
    examples = {"input_ids": ids, "attention_mask": ids.clone()}
    if with_ours:
        import mlopt.torch

        mlopt.torch.convert(module, examples, minimum_deployment_target=TARGET).save(str(output))
    else:
        convert(module, examples, output, TARGET)
