"""The rows of a report, from the decisions and what came of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlopt.coreml.decisions import Decision
from mlopt.coreml.joint import JointWeight
from mlopt.coreml.weights import Weight, shown_consumers
from mlopt.palette.value.bits import packed_nbytes
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep, float_table_note
from mlopt.requests.report import WeightRow, human_bytes


def kept_row(decision: Decision, keep: Keep) -> WeightRow:
    """The row of a weight that stays as it is."""
    return WeightRow(
        outcome="kept",
        reason=keep.reason,
        category=keep.category,
        note="; ".join(filter(None, (decision.note, _other_names(decision.weight)))) or None,
        **_of_weight(decision, decision.weight.nbytes),
    )


def palettized_row(
    decision: Decision,
    nbits: int,
    nbytes: int,
    *,
    lut_dtype: str | None,
    snr_db: float | None = None,
    note: str | None = None,
) -> WeightRow:
    """The row of a palettized weight.

    ``nbytes``: those of indices, tables and scale; ``lut_dtype``: that of the tables as they are
    stored, None for the weight's own.
    """
    weight, spec, config = decision.weight, decision.outcome, decision.config
    assert isinstance(spec, PaletteSpec) and config is not None
    notes = [decision.note, _other_names(weight), note]
    if spec.lut_dtype is not None and lut_dtype is None:
        notes.append(float_table_note(spec.lut_dtype, weight.dtype))
    if lut_dtype is not None and isinstance(weight, Weight):
        here, plain = (_table_nbytes(weight, spec, nbits, each) for each in (lut_dtype, None))
        if here > plain:
            notes.append(f"a table in {weight.dtype} would be smaller: {plain} bytes, not {here}")
    if nbytes > weight.nbytes:
        notes.append(
            "the palette is larger than the weight"
            if isinstance(weight, Weight)
            else "larger than what was there"
        )
    return WeightRow(
        outcome="palettized",
        reason=decision.rule,
        note="; ".join(filter(None, notes)) or None,
        mode=spec.mode,
        nbits=nbits,
        granularity=str(config.granularity) if spec.group_size is not None else "per_tensor",
        group_size=spec.group_size,
        cluster_dim=spec.cluster_dim,
        per_channel_scale=spec.scale_axis is not None,
        lut_dtype=lut_dtype,
        snr_db=snr_db,
        **_of_weight(decision, nbytes),
    )


def exact_nbytes(weight: Weight, spec: PaletteSpec, nbits: int) -> int:
    """Bytes that a palette of ``nbits`` will take: packed indices, tables, scale."""
    size = packed_nbytes(weight.size // spec.cluster_dim, nbits=nbits)
    size += _table_nbytes(weight, spec, nbits, spec.lut_dtype)
    if spec.scale_axis is not None:
        size += weight.shape[spec.scale_axis] * np.dtype(weight.dtype).itemsize
    return size


def _table_nbytes(weight: Weight, spec: PaletteSpec, nbits: int, lut_dtype: str | None) -> int:
    """Bytes of the tables, with their own scale and offset where they are in 8 bits."""
    groups = 1
    if spec.group_size is not None and spec.channel_axis is not None:
        groups = weight.shape[spec.channel_axis] // spec.group_size
    numbers = groups * (1 << nbits) * spec.cluster_dim
    itemsize = np.dtype(weight.dtype).itemsize
    if lut_dtype is None:
        return numbers * itemsize
    return numbers + itemsize + (lut_dtype == "uint8")


_MOST_NAMES = 8


def joint_note(nbytes: int, plain_nbytes: int) -> str | None:
    """A warning where a compressed weight would be smaller if only palettized."""
    if nbytes <= plain_nbytes:
        return None
    return (
        f"takes {human_bytes(nbytes)} so, {human_bytes(plain_nbytes)} if the plain weight is "
        "palettized: decompress it first"
    )


def _other_names(weight: Weight | JointWeight) -> str | None:
    """A note where other constants share what is stored, for whoever looks for one of those."""
    others = [repr(name) for name in weight.names[1:]]
    if not others:
        return None
    more = f" and {len(others) - _MOST_NAMES} more" if len(others) > _MOST_NAMES else ""
    return f"also named {', '.join(others[:_MOST_NAMES])}{more}"


def _of_weight(decision: Decision, nbytes: int) -> dict[str, Any]:
    """What any row says of its weight, of which ``nbytes`` are stored afterwards."""
    weight = decision.weight
    return {
        "name": weight.name,
        "model": weight.program.label,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "functions": weight.functions,
        "consumers": shown_consumers(weight.consumers),
        # a damaged model may declare a compressed weight without elements
        "bits_per_weight": 8 * nbytes / weight.size if weight.size else 0.0,
        "bytes_before": weight.nbytes,
        "bytes_after": nbytes,
        "is_elementwise": decision.is_elementwise,
    }
