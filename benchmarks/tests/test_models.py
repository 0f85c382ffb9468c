"""The architectures have as many weights as their papers' and libraries' counts say."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks.models import (
    centernet,
    decoder,
    minilm,
    minilm_weights,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_classifiers_have_the_known_parameter_counts() -> None:
    assert count(mobilenet_v2.mobilenet_v2()) == 3_504_872
    assert count(mobilenet_v3.mobilenet_v3_small()) == 2_542_856
    assert count(resnet.resnet50()) == 25_557_032
    assert count(resnet.resnet34_trunk()) == 21_284_672


def test_centernet_is_the_trunk_three_upsamplings_and_three_heads() -> None:
    upsampling = (512 + 256 + 256) * 256 * 16 + 3 * 2 * 256
    heads = 3 * (256 * 9 + 1) * 64 + 65 * (80 + 2 + 2)
    assert count(centernet.CenterNet()) == 21_284_672 + upsampling + heads


def test_decoders_have_the_sizes_of_the_table() -> None:
    assert round(decoder.GPT2.weights / 1e6) == 163
    assert 2 * decoder.LARGE.weights > 0.7e9


def test_minilm_tells_meanings_apart() -> None:
    try:
        folder = minilm_weights.model_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    alike, unrelated = minilm.similarities(minilm.load_encoder(folder), folder)
    assert alike > 0.7
    assert unrelated < 0.1
