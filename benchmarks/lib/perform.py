"""Do the job of a row once, with either tool: the same calls, from another import line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.rows import REFERENCE, Row, Variant


def import_tool(variant: Variant) -> Any:
    """The module ``optimize.coreml`` of the variant's tool, with what its kind of call needs.

    A call on a loaded model needs coremltools whoever does the job; one from file to file only
    what mlopt imports itself.
    """
    if variant.tool == REFERENCE:
        return import_coremltools().optimize.coreml
    if not variant.streaming:
        import_coremltools()
    import mlopt.coreml

    return mlopt.coreml


def open_source(variant: Variant, source: Path) -> Any:
    """What the job starts from: a freshly loaded MLModel, or the path where it streams."""
    if variant.streaming:
        return source
    return import_coremltools().models.MLModel(str(source), skip_model_load=True)


def perform(row: Row, variant: Variant, api: Any, source: Any, output: Path) -> dict[str, Any]:
    """Do the job and save its result at ``output`` (metadata saves nothing).

    Returns what the tool itself reports, for the JSON: ``report`` of a streaming call, ``weights``
    counted by metadata.
    """
    if row.action.startswith("metadata"):
        found = api.get_weights_metadata(source, weight_threshold=2048)
        if row.action == "metadata-statistics":
            for weight in found.values():
                _ = weight.val, weight.sparsity, weight.unique_values
        return {"weights": len(found)}
    if row.action == "decompress":
        api.decompress_weights(source).save(str(output))
        return {}
    config = _config(row, variant, api)
    if variant.streaming:
        return {"report": _report(api.palettize(source, config, output=output))}
    api.palettize_weights(source, config).save(str(output))
    return {}


def _config(row: Row, variant: Variant, api: Any) -> Any:
    if row.action == "unchanged":
        return api.OptimizationConfig()
    return api.OptimizationConfig(
        global_config=api.OpPalettizerConfig(**row.settings, **variant.extra)
    )


def _report(result: Any) -> list[dict[str, Any]]:
    """The rows of a report that a benchmark compares with its own measurement."""
    fields = ("name", "outcome", "bytes_before", "bytes_after", "snr_db")
    return [{key: _plain(getattr(row, key, None)) for key in fields} for row in result.report.rows]


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers and strings stay, anything else by its text."""
    return value if value is None or isinstance(value, (int, float, str)) else str(value)
