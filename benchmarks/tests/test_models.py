"""The architectures have as many weights as their papers' and libraries' counts say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.models import (
    centernet,
    decoder,
    lstm,
    minilm,
    minilm_weights,
    mobilenet_v2,
    mobilenet_v3,
    random_weights,
    resnet,
    speech_encoder,
    stateful_decoder,
    unet,
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


def test_the_speech_encoder_is_that_of_whisper_tiny() -> None:
    found = speech_encoder.SpeechEncoder()
    width, frames = speech_encoder.WIDTH, speech_encoder.FRAMES // 2
    # openai/whisper-tiny has as many in its encoder, the fixed positions among them
    assert count(found) + frames * width == 8_208_384
    waves = speech_encoder.sinusoids(frames, width)
    assert waves.shape == (1500, 384)
    np.testing.assert_allclose(waves[7, [0, 191, 192]], np.sin([7, 7e-4, 7 + np.pi / 2]), atol=1e-5)


def test_the_unet_restores_the_size_and_sees_the_time() -> None:
    network, inputs = unet.unet(), unet.inputs()
    with torch.inference_mode():
        noise = network(**inputs)
        later = network(inputs["latent"], inputs["time"] + 1)
    assert noise.shape == inputs["latent"].shape
    assert not torch.equal(noise, later)


def test_the_lstm_reads_in_both_directions() -> None:
    network = lstm.tagger()
    x = lstm.inputs()["x"]
    changed = x.clone()
    changed[:, lstm.STEPS // 2] += 1
    with torch.inference_mode():
        moved = (network(x) - network(changed)).abs().amax(-1)
    assert moved.shape == (1, lstm.STEPS)
    assert moved[0, lstm.STEPS // 2 - 1] > 0
    assert moved[0, lstm.STEPS // 2 + 1] > 0


def test_decoding_with_states_sees_what_came_before_and_nothing_else() -> None:
    network, steps = stateful_decoder.decoder(), stateful_decoder.steps()
    with torch.inference_mode():
        first, second = (network(**step) for step in steps[:2])
        network.restart()
        # what is at later places is masked
        network.keys[:, :, 2:] = 7.0
        again = [network(**step) for step in steps[:2]]
        network.restart()
        alone = network(**steps[1])
    assert len(steps) == stateful_decoder.STEPS <= stateful_decoder.POSITIONS
    assert second.shape == (1, 1, stateful_decoder.VOCABULARY)
    torch.testing.assert_close(again, [first, second])
    assert not torch.allclose(alone, second, atol=0.1)


def test_random_weights_are_the_same_in_each_process_or_refused() -> None:
    layers = (
        nn.Conv1d(2, 3, 3),
        nn.Embedding(5, 4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.LSTM(3, 4, bidirectional=True),
    )
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.uniform_(parameter)
        found.append(
            [p.clone() for p in random_weights.fill(nn.ModuleList(layers), 3).parameters()]
        )
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(TypeError, match="no random weights for PReLU"):
        random_weights.fill(nn.PReLU(), 3)
