"""The rows of ``compressed_packages``: what is done with packages that coremltools compressed."""

from __future__ import annotations

from benchmarks.lib.row import PROJECT, REFERENCE, Row, Variant

_REFERENCE = Variant(REFERENCE)
_DROP_IN = Variant(PROJECT)
_FILES = Variant(PROJECT, "files", streaming=True)
_ROUND_TRIP = Variant(REFERENCE, "round trip")  # a label, so that nothing is compared with it


def _decompression(form: str, title: str, goal: float | None = None, quoted: str = "") -> Row:
    return Row(
        f"minilm-decompress-{form}",
        f"MiniLM, {title}, decompress_weights",
        f"minilm-{form}",
        "decompress",
        variants=(_REFERENCE, _DROP_IN, _FILES),
        goal=goal,
        quoted=quoted,
        reference_repeats=3,
        warmup_model=f"warmup-{form}",
    )


def _metadata(model: str, title: str, action: str = "metadata") -> Row:
    suffix, what = action.removeprefix("metadata"), "get_weights_metadata"
    return Row(
        f"{model}-metadata{suffix}",
        f"{title}, {what}{', every statistic read' if suffix else ''}",
        model,
        action,
        variants=(_REFERENCE, _DROP_IN),
        reference_repeats=3,
        warmup_model=f"warmup-{model.partition('-')[2]}",
    )


def _lint(model: str, title: str) -> Row:
    return Row(
        f"{model}-lint",
        f"{title}, lint",
        model,
        "lint",
        variants=(_FILES,),
        warmup_model=f"warmup-{model.partition('-')[2]}",
    )


COMPRESSED_ROWS = (
    _decompression("lut8", "8 bits per tensor", goal=20, quoted="5.1 s, 6.4 GB"),
    _decompression("int8", "int8 per channel"),
    _decompression("int4-block32", "int4, blocks of 32"),
    _decompression("sparse", "half of it pruned"),
    _decompression("sparse-lut4", "half of it pruned, the rest palettized with 4 bits"),
    _metadata("minilm-int8", "MiniLM, int8 per channel"),
    _metadata("minilm-int8", "MiniLM, int8 per channel", "metadata-statistics"),
    _metadata("gpt2-lut4", "GPT-2-shaped, 4 bits per tensor"),
    _metadata("gpt2-lut4", "GPT-2-shaped, 4 bits per tensor", "metadata-statistics"),
    Row(
        "minilm-ios16-lut8-raise",
        "MiniLM for iOS16, 8 bits per tensor, raised to iOS18",
        "minilm-ios16-lut8",
        "raise",
        {"target": "iOS18"},
        variants=(_ROUND_TRIP, _DROP_IN, _FILES),
        reference_repeats=3,
        warmup_model="warmup-ios16-lut8",
    ),
    _lint("minilm-sparse-lut4", "MiniLM, half of it pruned, 4 bits"),
    _lint("gpt2-lut4", "GPT-2-shaped, 4 bits per tensor"),
)
