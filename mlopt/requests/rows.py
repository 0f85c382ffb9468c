"""Rows of a report, made of decisions and their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import attrs

from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.quantized import QuantizedTable
from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.decisions import Decision
from mlopt.requests.keep import Keep, float_table_note
from mlopt.requests.report import WeightRow

_MOST_NAMES = 8


@attrs.frozen(kw_only=True)
class WeightFacts:
    """Facts about a weight for its row, palettized or kept; as in :class:`WeightRow`.

    names: all of its names, the one for the row first; also_named: how a note about the others
    begins; nbytes: as it came; was_compressed: whether that was a compressed form.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    dtype: str
    size: int
    nbytes: int
    consumers: tuple[str, ...]
    model: str = ""
    functions: tuple[str, ...] = ()
    was_compressed: bool = False
    also_named: str = "also named"


class Stored(Protocol):
    """A palette as it is stored: ``Palettized``, or one with packed indices."""

    @property
    def nbits(self) -> int:
        """Bits of an index."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""

    @property
    def quantized(self) -> QuantizedTable | None:
        """The tables in 8 bits; None for tables in floats."""


@attrs.frozen
class StoredPalette:
    """Facts about a palette for a row.

    nbytes: of indices, tables and scale; lut_dtype: of tables in 8 bits, None for tables in the
    dtype of the weight; notes: what a reader should know besides, a sentence each; method,
    output_snr_db, has_corrected_bias: as in :class:`WeightRow`.
    """

    nbits: int
    nbytes: int
    lut_dtype: str | None
    snr_db: float | None = None
    notes: tuple[str, ...] = ()
    method: str = "plain"
    output_snr_db: float | None = None
    has_corrected_bias: bool = False

    @classmethod
    def of(cls, palette: Stored, distortion: Distortion, notes: tuple[str, ...]) -> StoredPalette:
        """The facts about a palette that was made."""
        codes = None if palette.quantized is None else palette.quantized.codes
        return cls(
            nbits=palette.nbits,
            nbytes=palette.nbytes,
            lut_dtype=None if codes is None else codes.dtype.name,
            snr_db=distortion.snr_db,
            notes=notes,
        )


def row_of(
    decision: Decision[Any, Any], weight: WeightFacts, result: StoredPalette | Keep
) -> WeightRow:
    """The row of a weight that has a palette, or is kept whatever was decided before."""
    if isinstance(result, Keep):
        return WeightRow(
            outcome="kept",
            reason=result.reason,
            category=result.category,
            note=_joined(*decision.notes, *_other_names(weight)),
            **_common(decision, weight, weight.nbytes),
        )
    spec = decision.result
    assert isinstance(spec, PaletteSpec)
    return WeightRow(
        outcome="palettized",
        reason=decision.rule,
        note=_joined(*decision.notes, *_other_names(weight), *_notes(spec, weight, result)),
        mode=spec.mode,
        nbits=result.nbits,
        granularity="per_tensor" if spec.group_size is None else "per_grouped_channel",
        group_size=spec.group_size,
        cluster_dim=spec.cluster_dim,
        per_channel_scale=spec.scale_axis is not None,
        lut_dtype=result.lut_dtype,
        snr_db=result.snr_db,
        method=result.method,
        output_snr_db=result.output_snr_db,
        has_corrected_bias=result.has_corrected_bias,
        **_common(decision, weight, result.nbytes),
    )


def _notes(spec: PaletteSpec, weight: WeightFacts, palette: StoredPalette) -> Iterator[str]:
    """Yield notes on a palette, other than those of the decision."""
    yield from palette.notes
    if spec.lut_dtype is not None and palette.lut_dtype is None:
        yield float_table_note(spec.lut_dtype, weight.dtype)
    if palette.nbytes > weight.nbytes:
        yield (
            "larger than what was there"
            if weight.was_compressed
            else "the palette is larger than the weight"
        )


def _common(decision: Decision[Any, Any], weight: WeightFacts, nbytes: int) -> dict[str, Any]:
    """The fields that every row has; ``nbytes``: stored afterwards."""
    return {
        "name": weight.names[0],
        "model": weight.model,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "functions": weight.functions,
        "consumers": weight.consumers,
        # a damaged model may declare a compressed weight without elements
        "bits_per_weight": 8 * nbytes / weight.size if weight.size else 0.0,
        "bytes_before": weight.nbytes,
        "bytes_after": nbytes,
        "is_elementwise": decision.is_elementwise,
    }


def _other_names(weight: WeightFacts) -> tuple[str, ...]:
    """A note about the other names, for a reader who looks for one of those; empty without any."""
    others = [repr(name) for name in weight.names[1:]]
    if not others:
        return ()
    more = f" and {len(others) - _MOST_NAMES} more" if len(others) > _MOST_NAMES else ""
    return (f"{weight.also_named} {', '.join(others[:_MOST_NAMES])}{more}",)


def _joined(*notes: str) -> str | None:
    return "; ".join(notes) or None
