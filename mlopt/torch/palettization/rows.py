"""The row of the report that a parameter gets."""

from __future__ import annotations

from typing import Any

import attrs

from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep, float_table_note
from mlopt.requests.report import WeightRow
from mlopt.torch.conversion_notes import conversion_notes
from mlopt.torch.palettization.decisions import Decision
from mlopt.torch.tensors import dtype_name


@attrs.frozen(eq=False)
class Computed:
    """What clustering a parameter gave, with notes for its row."""

    palettized: Palettized
    distortion: Distortion
    notes: tuple[str, ...]


def row_of(decision: Decision, computed: Computed | None) -> WeightRow:
    """The account of one parameter."""
    parameter, outcome = decision.parameter, decision.outcome
    tensor = parameter.tensor
    nbytes = tensor.numel() * tensor.element_size()
    notes = list(decision.notes)
    if len(parameter.names) > 1:
        notes.append(f"tied, also named {', '.join(map(repr, parameter.names[1:]))}")
    common: dict[str, Any] = {
        "name": parameter.name,
        "shape": tuple(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "consumers": tuple(f"{owner.kind}({owner.module_name})" for owner in parameter.owners),
        "bytes_before": nbytes,
    }
    if computed is None:
        assert isinstance(outcome, Keep)
        return WeightRow(
            outcome="kept",
            reason=outcome.reason,
            category=outcome.category,
            note="; ".join(notes) or None,
            bits_per_weight=8.0 * tensor.element_size(),
            bytes_after=nbytes,
            **common,
        )
    assert isinstance(outcome, PaletteSpec)
    palettized = computed.palettized
    codes = None if palettized.quantized is None else palettized.quantized.codes
    notes += computed.notes
    notes += conversion_notes(parameter, palettized)
    if outcome.lut_dtype is not None and codes is None:
        notes.append(float_table_note(outcome.lut_dtype, dtype_name(tensor.dtype)))
    if palettized.nbytes > nbytes:
        notes.append("the palette is larger than the weight")
    return WeightRow(
        outcome="palettized",
        reason=decision.rule,
        note="; ".join(notes) or None,
        mode="kmeans",
        nbits=palettized.nbits,
        granularity="per_tensor" if outcome.group_size is None else "per_grouped_channel",
        group_size=outcome.group_size,
        cluster_dim=palettized.cluster_dim,
        per_channel_scale=palettized.scale is not None,
        lut_dtype=None if codes is None else codes.dtype.name,
        snr_db=computed.distortion.snr_db,
        bits_per_weight=palettized.bits_per_weight,
        bytes_after=palettized.nbytes,
        **common,
    )
