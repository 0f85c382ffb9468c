"""The rows of the table: which job, on which model, with which settings, and the goal.

A row is one question; every variant of it is one line of the result. The variant of coremltools
comes first and is what the others are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REFERENCE = "coremltools"
PROJECT = "mlopt"


@dataclass(frozen=True)
class Variant:
    """One way to do the job of a row.

    ``extra`` goes into the configuration on top of the row's settings; ``streaming`` means from
    package to package by path (``mlopt.coreml.palettize``) and not from a loaded MLModel.
    """

    tool: str
    label: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    streaming: bool = False

    @property
    def name(self) -> str:
        return f"{self.tool} {self.label}".strip()


@dataclass(frozen=True)
class Row:
    """A job. ``action``: palettize, unchanged, decompress, metadata or metadata-statistics.

    ``goal`` is how many times faster than coremltools this project wants to be (None: no goal
    stated), ``quoted`` what coremltools took when the goals were set, on another machine.
    ``reference_repeats`` bounds the repeats of coremltools. ``reference_warmup`` is False where
    its second call in a process fails.
    """

    name: str
    title: str
    model: str
    action: str
    settings: dict[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    goal: float | None = None
    quoted: str = ""
    reference_repeats: int = 1
    reference_warmup: bool = True

    @property
    def warmup_model(self) -> str:
        return "warmup-8bit" if self.action == "decompress" else "warmup"


_REFERENCE = Variant(REFERENCE)
_DROP_IN = Variant(PROJECT)
_FILES = Variant(PROJECT, "files", streaming=True)
_SKIP = Variant(PROJECT, "skip", {"on_indivisible": "skip"})
_DIVISOR = Variant(PROJECT, "divisor", {"on_indivisible": "divisor"})
_DIVISOR_FILES = Variant(PROJECT, "divisor, files", {"on_indivisible": "divisor"}, streaming=True)

PER_TENSOR = (_REFERENCE, _DROP_IN, _FILES)
GROUPED = (_REFERENCE, _SKIP, _DIVISOR, _DIVISOR_FILES)
IN_MEMORY = (_REFERENCE, _DROP_IN)


def _kmeans(nbits: int, **settings: Any) -> dict[str, Any]:
    return {"mode": "kmeans", "nbits": nbits, **settings}


def _groups(size: int) -> dict[str, Any]:
    return {"granularity": "per_grouped_channel", "group_size": size}


ROWS = (
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
        "minilm-decompress8",
        "MiniLM 8-bit, decompress_weights",
        "minilm-8bit",
        "decompress",
        {},
        IN_MEMORY,
        goal=20,
        quoted="5.1 s, 6.4 GB",
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
BY_NAME = {row.name: row for row in ROWS}
