"""The rows of ``torch_jobs``."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.row import PROJECT, REFERENCE, Row, Variant

_BOTH = (Variant(REFERENCE), Variant(PROJECT))
_GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
_HOW = "benchmarks.lib.torch_perform"


def _post_training(form: str, title: str, goal: float, quoted: str, **settings: Any) -> Row:
    return Row(
        f"minilm-post-training{form}",
        f"MiniLM, PostTrainingPalettizer, {title}",
        "minilm-float32",
        "post-training",
        settings,
        _BOTH,
        goal=goal,
        quoted=quoted,
        reference_repeats=3,
        warmup_model="warmup-encoder",
        how=_HOW,
    )


def _sensitive(model: str, title: str, **further: Any) -> Row:
    return Row(
        f"sensitive4-{model}",
        f"SKMPalettizer, {title}, 4-bit",
        model,
        "sensitive",
        {"n_bits": 4},
        _BOTH,
        warmup_model="warmup-perceptron",
        how=_HOW,
        **further,
    )


TORCH_ROWS = (
    _post_training("4", "4-bit per tensor", goal=10, quoted="4.3 s", n_bits=4),
    _post_training("8", "8-bit per tensor", goal=20, quoted="15.5 s", n_bits=8),
    _post_training("4-g16", "4-bit, groups of 16", goal=20, quoted="17.5 s", n_bits=4, **_GROUPS),
    _sensitive(
        "linears-1024", "two layers of 1024 x 1024", goal=20, quoted="13.2 s", reference_repeats=3
    ),
    _sensitive("unused-layer", "a layer that is not used", reference_error="AttributeError"),
    _sensitive(
        "linear-4096x11008",
        "one layer of 4096 x 11008",
        reference_on_request=True,
        peak_limit_bytes=1.5e9,
    ),
    Row(
        "decode",
        "convert four palettized layers of 1024 x 1024, 8-bit, iOS18",
        "perceptron-1024",
        "convert",
        {"n_bits": 8},
        _BOTH,
        reference_repeats=3,
        warmup_model="warmup-perceptron",
        how=_HOW,
    ),
)
