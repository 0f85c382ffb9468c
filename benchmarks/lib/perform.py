"""Do the job of a row once, with either tool: the same calls, from another import line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.lib.quiet import import_coremltools
from benchmarks.lib.row import PROJECT, REFERENCE, Row, Variant
from benchmarks.lib.sizes import package_bytes


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


def open_source(row: Row, variant: Variant, source: str) -> Any:
    """What the job starts from: a freshly loaded MLModel, or the path where it streams.

    Of the package ``source``, whatever the row.
    """
    if variant.streaming:
        return Path(source)
    return import_coremltools().models.MLModel(source, skip_model_load=True)


def perform(row: Row, variant: Variant, api: Any, source: Any, output: Path) -> dict[str, Any]:
    """Do the job and save its result at ``output`` (metadata and lint save nothing).

    Returns what the tool itself reports, for the JSON: ``report`` of a streaming call, ``weights``
    counted by metadata, ``findings`` of each severity counted by lint.
    """
    match row.action:
        case "metadata" | "metadata-statistics":
            return _metadata(api, source, statistics=row.action == "metadata-statistics")
        case "lint":
            return {"findings": Counter(finding.severity for finding in api.lint(source).findings)}
        case "decompress" if variant.streaming:
            api.decompress(source, output)
        case "decompress":
            api.decompress_weights(source).save(str(output))
        case "raise" if variant.streaming:
            api.raise_target(source, output, row.settings["target"])
        case "raise" if variant.tool == PROJECT:
            api.set_deployment_target(source, row.settings["target"]).save(str(output))
        case _ if variant.streaming:
            config = _config(row, variant, api)
            return {"report": _report(api.palettize(source, config, output=output))}
        case _:
            api.palettize_weights(source, _config(row, variant, api)).save(str(output))
    return {}


def keep(row: Row, done: dict[str, Any], output: Path) -> dict[str, Any]:
    """What ``perform`` returned, and what it wrote: the path and its bytes, where there are any."""
    if output.exists():
        return {**done, "output": str(output), "output_bytes": package_bytes(output)}
    return done


def _metadata(api: Any, source: Any, statistics: bool) -> dict[str, Any]:
    found = api.get_weights_metadata(source, weight_threshold=2048)
    for weight in found.values() if statistics else ():
        _ = weight.val, weight.sparsity, weight.unique_values
    return {"weights": len(found)}


def _config(row: Row, variant: Variant, api: Any) -> Any:
    if row.action in ("unchanged", "raise"):
        return api.OptimizationConfig()
    config = api.OpPalettizerConfig(**row.settings, **variant.extra)
    if row.op_types:
        return api.OptimizationConfig(op_type_configs=dict.fromkeys(row.op_types, config))
    return api.OptimizationConfig(global_config=config)


def _report(result: Any) -> list[dict[str, Any]]:
    """The rows of a report that a benchmark compares with its own measurement."""
    fields = ("name", "outcome", "bytes_before", "bytes_after", "snr_db")
    return [{key: _plain(getattr(row, key, None)) for key in fields} for row in result.report.rows]


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers and strings stay, anything else by its text."""
    return value if value is None or isinstance(value, (int, float, str)) else str(value)
