"""Bytes and bits of what is compared, what the references make of a small encoder, the picture."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import answers
from benchmarks.lib import answers_picture
from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.row import PROJECT, REFERENCE
from benchmarks.lib.sizes import bits_per_weight, weight_bytes
from benchmarks.models.bert import SentenceEncoder
from benchmarks.models.convert import convert
from benchmarks.models.random_weights import fill
from benchmarks.tasks import answer_trials, minilm_references
from benchmarks.tasks.answer_references import REFERENCES, Compressed
from benchmarks.tasks.texts import paragraphs

STORED = Path(answers.__file__).with_name("answers.json")


def test_bits_are_those_of_what_was_compressed() -> None:
    # 1000 elements in float16, and 500 bytes of other weights.
    assert bits_per_weight(2500, 2500, 1000) == 16
    assert bits_per_weight(500 + 375 + 25, 2500, 1000) == pytest.approx(3.2)


def test_sizes_count_computed_bytes_where_the_package_has_plain_weights() -> None:
    assert answers.sizes(Compressed(1000), 900, 2500) == {"bytes": 900, "bits": pytest.approx(3.2)}
    computed = answers.sizes(Compressed(1000, bytes=400.0), 2500, 2500)
    assert computed == {"bytes": 900, "bits": pytest.approx(3.2)}


def test_quantized_bytes_by_hand() -> None:
    def size(*, block: int | None = None, has_offsets: bool = False) -> float:
        shapes = [(64, 128), (32, 64)]
        return minilm_references.quantized_bytes(shapes, 3, block=block, has_offsets=has_offsets)

    indices = (64 * 128 + 32 * 64) * 3 / 8
    assert size() == indices + 2 * (64 + 32)
    assert size(has_offsets=True) == indices + (2 + 3 / 8) * (64 + 32)
    assert size(block=32) == indices + 2 * (64 * 4 + 32 * 2)


def test_quantized_bytes_are_those_of_a_package_of_coremltools(tmp_path: Path) -> None:
    import_coremltools()
    from coremltools.optimize.torch.quantization import (
        PostTrainingQuantizer,
        PostTrainingQuantizerConfig,
    )

    module = fill(nn.Sequential(nn.Linear(256, 64)), seed=0)
    settings = {"weight_dtype": "int4", "granularity": "per_block", "block_size": 32}
    config = PostTrainingQuantizerConfig.from_dict({"global_config": settings})
    path = tmp_path / "quantized.mlpackage"
    quantized = PostTrainingQuantizer(module, config).compress()
    convert(quantized, {"x": torch.zeros(1, 256)}, path, target="iOS18")
    expected = minilm_references.quantized_bytes([(64, 256)], 4, block=32, has_offsets=False)
    biases = 2 * 64
    # A header of 64 bytes, as many of metadata for each of three values, and padding.
    assert expected + biases <= weight_bytes(path) <= expected + biases + 512


@pytest.fixture
def encoder() -> SentenceEncoder:
    made = SentenceEncoder(vocabulary=64, positions=16, width=32, hidden=64, heads=2, layers=2)
    fill(made, seed=3)
    return made.eval()


@pytest.fixture
def passages() -> list[torch.Tensor]:
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(0, 64, (1, 16), np.int32)) for _ in range(8)]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_leaves_so_many_levels_in_every_row(
    encoder: SentenceEncoder, passages: list[torch.Tensor], bits: int
) -> None:
    before = [weight.detach().clone() for weight in minilm_references.linear_weights(encoder)]
    embedding = encoder.words.weight.detach().clone()
    options = {"quantization_scheme": "affine", "use_activation_order_heuristic": True}
    minilm_references.quantize(encoder, passages, bits, options)
    after = minilm_references.linear_weights(encoder)
    assert len(after) == 12
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)
        assert all(len(row.unique()) <= 2**bits for row in new)
        assert len(new.unique()) > 2**bits
    assert torch.equal(encoder.words.weight, embedding)


def test_gptq_in_many_bits_changes_next_to_nothing(
    encoder: SentenceEncoder, passages: list[torch.Tensor]
) -> None:
    masks = torch.ones_like(passages[0])
    with torch.no_grad():
        wanted = [encoder(ids, masks) for ids in passages]
        minilm_references.quantize(encoder, passages, 8, {})
        given = [encoder(ids, masks) for ids in passages]
    torch.testing.assert_close(given, wanted, atol=0.02, rtol=0)


@pytest.mark.filterwarnings("ignore")  # coremltools converting, as in a run
@pytest.mark.parametrize("tool", [PROJECT, REFERENCE])
def test_sensitive_k_means_compresses_the_linear_layers_in_a_package(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str
) -> None:
    monkeypatch.setattr(minilm_references, "model_folder", lambda: tmp_path)
    monkeypatch.setattr(minilm_references, "load_encoder", lambda _: copy.deepcopy(encoder))
    monkeypatch.setattr(minilm_references, "TOKENS", 16)
    random = np.random.default_rng(1)
    samples = [
        {
            "input_ids": random.integers(0, 64, (1, 16), np.int32),
            "attention_mask": np.ones((1, 16), np.int32),
        }
        for _ in range(4)
    ]
    plain, path = tmp_path / "plain.mlpackage", tmp_path / "sensitive.mlpackage"
    compressed = minilm_references.sensitive(samples, path, tool=tool, bits=2)
    assert compressed == Compressed(2 * (4 * 32 * 32 + 2 * 32 * 64))
    minilm_references._convert(encoder, plain)
    saved = weight_bytes(plain) - weight_bytes(path)
    tables = 12 * (64 + 64)  # a table each, with metadata and padding
    assert saved == pytest.approx(compressed.elements * 14 / 8, abs=tables)
    given = answer_trials.answers(str(path), samples)
    assert given.shape == (4, 32)
    assert not np.array_equal(given, answer_trials.answers(str(plain), samples))


def test_blocks_of_ggml_have_their_scales_counted() -> None:
    pytest.importorskip("gguf")
    from benchmarks.tasks.ggml_references import bits_of

    assert bits_of("Q4_0") == 4 + 16 / 32
    assert bits_of("Q4_1") == 4 + 2 * 16 / 32
    assert bits_of("MXFP4") == 4 + 8 / 32


def test_references_have_names_of_their_own_and_are_made_by_functions_that_exist() -> None:
    for references in REFERENCES.values():
        names = [(reference.form, reference.method) for reference in references]
        assert len(set(names)) == len(names)
        for reference in references:
            module, _, function = reference.make.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_texts_share_no_paragraph() -> None:
    calibration, held_out, other = map(
        frozenset, map(paragraphs, ("calibration", "held-out", "other"))
    )
    assert calibration
    assert held_out
    assert other
    assert not calibration & held_out
    assert not (calibration | held_out) & other


def _row(method: str, bits: float, value: float, form: str = "layers, 2 bits") -> dict[str, Any]:
    named = {"model": "minilm", "form": form, "method": method}
    return named | {"bits": bits, "held-out": value, "other": value - 1}


def test_lines_are_of_linear_layers_by_bits() -> None:
    rows = [
        _row("plain", 3.0, 5.0, "layers, 3 bits"),
        _row("plain", 2.0, 1.0),
        _row("hessian", 2.0, 3.0),
        _row("hessian", 3.0, 9.0, "3 bits"),
        {"model": "minilm", "form": "layers, 2 bits", "method": "guided", "error": "none"},
        _row("nobody's", 2.0, 3.0),
    ]
    assert answers_picture.lines(rows, "other") == {
        "plain": ([2.0, 3.0], [0.0, 4.0]),
        "hessian": ([2.0], [2.0]),
    }


def test_picture_of_stored_results_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    assert answers.main(["--read", str(STORED), "--picture", str(first)]) == 0
    answers_picture.draw(json.loads(STORED.read_text())["rows"], second)
    assert first.read_bytes() == second.read_bytes()
    root = ElementTree.parse(first).getroot()
    written = {"".join(element.itertext()).strip() for element in root.iter()}
    assert {"mlopt: plain", "mlopt: hessian", "mlopt: guided", "GPTQ, affine, ordered"} <= written


def test_stored_results_are_joined_and_later_ones_replace_earlier_ones() -> None:
    old = [_row("plain", 2.0, 1.0), _row("hessian", 2.0, 3.0), _row("GPTQ", 4.5, 1.0, "unknown")]
    new = [_row("hessian", 2.0, 4.0), _row("", 16, 0.0, "float"), old[0] | {"model": "digits"}]
    assert answers.arranged([old, new]) == [new[1], old[0], new[0], old[2], new[2]]


def test_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        answers_picture.draw([_row("plain", 2.0, 1.0, "3 bits")], tmp_path / "none.svg")
