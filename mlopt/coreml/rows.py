"""The rows of a report, from the decisions and what came of them."""

from __future__ import annotations

from typing import Any

from mlopt.coreml.decisions import Decision, Keep
from mlopt.coreml.report import WeightRow
from mlopt.coreml.weights import Weight, shown_consumers
from mlopt.palette.bits import packed_nbytes
from mlopt.palette.spec import PaletteSpec


def kept_row(decision: Decision, keep: Keep) -> WeightRow:
    """The row of a weight that stays as it is."""
    return WeightRow(
        outcome="kept",
        reason=keep.reason,
        category=keep.category,
        note=decision.note,
        **_of_weight(decision.weight, decision.weight.nbytes),
    )


def palettized_row(
    decision: Decision,
    nbits: int,
    nbytes: int,
    *,
    snr_db: float | None = None,
    note: str | None = None,
) -> WeightRow:
    """The row of a palettized weight, ``nbytes`` being those of indices, tables and scale."""
    weight, spec, config = decision.weight, decision.outcome, decision.config
    assert isinstance(spec, PaletteSpec) and config is not None
    larger = "the palette is larger than the weight" if nbytes > weight.nbytes else None
    return WeightRow(
        outcome="palettized",
        reason=decision.rule,
        note="; ".join(filter(None, (decision.note, note, larger))) or None,
        mode=spec.mode,
        nbits=nbits,
        granularity=str(config.granularity) if spec.group_size is not None else "per_tensor",
        group_size=spec.group_size,
        cluster_dim=spec.cluster_dim,
        per_channel_scale=spec.scale_axis is not None,
        snr_db=snr_db,
        **_of_weight(weight, nbytes),
    )


def exact_nbytes(weight: Weight, spec: PaletteSpec, nbits: int) -> int:
    """Bytes that a palette of ``nbits`` will take: packed indices, tables, scale."""
    groups = 1
    if spec.group_size is not None and spec.channel_axis is not None:
        groups = weight.shape[spec.channel_axis] // spec.group_size
    itemsize = weight.nbytes // weight.size
    size = packed_nbytes(weight.size // spec.cluster_dim, nbits=nbits)
    size += groups * (1 << nbits) * spec.cluster_dim * itemsize
    if spec.scale_axis is not None:
        size += weight.shape[spec.scale_axis] * itemsize
    return size


def _of_weight(weight: Weight, nbytes: int) -> dict[str, Any]:
    """What any row says of its weight, of which ``nbytes`` are stored afterwards."""
    return {
        "name": weight.name,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "functions": weight.functions,
        "consumers": shown_consumers(weight.consumers),
        "bits_per_weight": 8 * nbytes / weight.size,
        "bytes_before": weight.nbytes,
        "bytes_after": nbytes,
    }
