"""Rows of the report, one per parameter."""

from __future__ import annotations

import attrs
import torch

from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.palettized import Palettized
from mlopt.requests import rows
from mlopt.requests.keep import Keep
from mlopt.requests.report import WeightRow
from mlopt.requests.rows import StoredPalette, WeightFacts
from mlopt.torch.conversion_notes import conversion_notes
from mlopt.torch.modules import ModelParameter
from mlopt.torch.palettization.decisions import ParameterDecision
from mlopt.torch.tensors import dtype_name


@attrs.frozen(eq=False)
class Computed:
    """The result of clustering a parameter, with notes for its row.

    method, output_snr_db: as in :class:`WeightRow`; bias: the bias that absorbs its mean error, and
    the new values; None for no change.
    """

    palettized: Palettized
    distortion: Distortion
    notes: tuple[str, ...]
    method: str = "plain"
    output_snr_db: float | None = None
    bias: tuple[ModelParameter, torch.Tensor] | None = None


def row_of(decision: ParameterDecision, computed: Computed | None) -> WeightRow:
    """Return the row of one parameter; ``computed``: None where it is kept."""
    parameter = decision.weight
    if computed is None:
        assert isinstance(decision.result, Keep)
        return rows.row_of(decision, _stored(parameter), decision.result)
    palettized = computed.palettized
    notes = (*computed.notes, *conversion_notes(parameter, palettized))
    palette = attrs.evolve(
        StoredPalette.of(palettized, computed.distortion, notes),
        method=computed.method,
        output_snr_db=computed.output_snr_db,
        has_corrected_bias=computed.bias is not None,
    )
    return rows.row_of(decision, _stored(parameter), palette)


def _stored(parameter: ModelParameter) -> WeightFacts:
    tensor = parameter.tensor
    return WeightFacts(
        names=parameter.names,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        size=tensor.numel(),
        nbytes=tensor.numel() * tensor.element_size(),
        consumers=tuple(f"{owner.kind}({owner.module_name})" for owner in parameter.owners),
        also_named="tied, also named",
    )
