"""The rows of ``coreml_jobs``."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.row import LIMIT, PROJECT, REFERENCE, Row, Variant

_REFERENCE = Variant(REFERENCE)
_DROP_IN = Variant(PROJECT)
_FILES = Variant(PROJECT, "files", streaming=True)
_SKIP = Variant(PROJECT, "skip", {"on_indivisible": "skip"})
_DIVISOR = Variant(PROJECT, "divisor", {"on_indivisible": "divisor"})
_DIVISOR_FILES = Variant(PROJECT, "divisor, files", {"on_indivisible": "divisor"}, streaming=True)

_LIMIT = Variant(LIMIT)
_LIMIT_SKIP = Variant(LIMIT, "skip", _SKIP.extra)
_LIMIT_DIVISOR = Variant(LIMIT, "divisor", _DIVISOR.extra)

PER_TENSOR = (_REFERENCE, _DROP_IN, _FILES, _LIMIT)
GROUPED = (_REFERENCE, _SKIP, _DIVISOR, _DIVISOR_FILES, _LIMIT_SKIP, _LIMIT_DIVISOR)
VECTORS = (_REFERENCE, _DROP_IN, _FILES)
IN_MEMORY = (_REFERENCE, _DROP_IN, _LIMIT)


def _kmeans(nbits: int, **settings: Any) -> dict[str, Any]:
    return {"mode": "kmeans", "nbits": nbits, **settings}


def _groups(size: int) -> dict[str, Any]:
    return {"granularity": "per_grouped_channel", "group_size": size}


JOB_ROWS = (
    Row(
        "minilm-kmeans4",
        "MiniLM, k-means 4-bit per tensor",
        "minilm",
        "palettize",
        _kmeans(4),
        PER_TENSOR,
        goal=30,
        quoted="10 s",
        reference_repeats=3,
    ),
    Row(
        "minilm-kmeans8",
        "MiniLM, k-means 8-bit per tensor",
        "minilm",
        "palettize",
        _kmeans(8),
        PER_TENSOR,
        goal=60,
        quoted="59-71 s",
    ),
    Row(
        "minilm-kmeans4-g16",
        "MiniLM, k-means 4-bit, groups of 16",
        "minilm",
        "palettize",
        _kmeans(4, **_groups(16)),
        GROUPED,
        goal=25,
        quoted="17-20 s",
    ),
    Row(
        "minilm-kmeans4-g4",
        "MiniLM, k-means 4-bit, groups of 4, 2 workers",
        "minilm",
        "palettize",
        _kmeans(4, **_groups(4), num_kmeans_workers=2),
        GROUPED,
        goal=60,
        quoted="127 s",
        reference_warmup=False,
    ),
    Row(
        "minilm-kmeans4-scale",
        "MiniLM, k-means 4-bit, per-channel scale",
        "minilm",
        "palettize",
        _kmeans(4, enable_per_channel_scale=True),
        PER_TENSOR,
    ),
    *(
        Row(
            f"minilm-vectors{size}",
            f"MiniLM's linear layers, k-means 8-bit, vectors of {size}",
            "minilm",
            "palettize",
            _kmeans(8, cluster_dim=size),
            VECTORS,
            goal=10,
            op_types=("linear",),
        )
        for size in (2, 4)
    ),
    Row(
        "minilm-uniform8",
        "MiniLM, uniform 8-bit",
        "minilm",
        "palettize",
        {"mode": "uniform", "nbits": 8},
        PER_TENSOR,
        goal=8,
        quoted="2.9 s",
        reference_repeats=5,
    ),
    Row(
        "resnet50-kmeans8",
        "ResNet50-shaped, k-means 8-bit per tensor",
        "resnet50",
        "palettize",
        _kmeans(8),
        PER_TENSOR,
        goal=60,
        quoted="94 s",
    ),
    Row(
        "resnet50-kmeans4-g8",
        "ResNet50-shaped, k-means 4-bit, groups of 8",
        "resnet50",
        "palettize",
        _kmeans(4, **_groups(8)),
        GROUPED,
        goal=60,
        quoted="58 s",
    ),
    Row(
        "gpt2-kmeans4",
        "GPT-2-shaped, k-means 4-bit per tensor",
        "gpt2",
        "palettize",
        _kmeans(4),
        PER_TENSOR,
        goal=60,
        quoted="54 s, peak 1.93 GB",
    ),
    Row(
        "gpt2-metadata",
        "GPT-2-shaped, get_weights_metadata",
        "gpt2",
        "metadata",
        {},
        IN_MEMORY,
        goal=10,
        quoted="4.2 s, 1.1 GB",
        reference_repeats=3,
    ),
    Row(
        "gpt2-metadata-statistics",
        "GPT-2-shaped, get_weights_metadata, every statistic read",
        "gpt2",
        "metadata-statistics",
        {},
        IN_MEMORY,
        reference_repeats=3,
    ),
    Row(
        "minilm-unchanged",
        "MiniLM, round trip with no change",
        "minilm",
        "unchanged",
        {},
        PER_TENSOR,
        quoted="1.1 s",
        reference_repeats=5,
    ),
    Row(
        "gpt2-unchanged",
        "GPT-2-shaped, round trip with no change",
        "gpt2",
        "unchanged",
        {},
        PER_TENSOR,
        quoted="3.8 s",
        reference_repeats=3,
    ),
)
