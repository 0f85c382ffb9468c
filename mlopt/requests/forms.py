"""The forms of a palette: what each needs, what it is called, how many bytes it takes."""

from __future__ import annotations

import math

import attrs

from mlopt.mil.constexpr_forms import OLD_INDEX_BITS
from mlopt.mil.targets import Target
from mlopt.palette.layout import Layout
from mlopt.palette.value.bits import packed_nbytes
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.spec import PaletteSpec

OLD_BITS = f"{', '.join(map(str, OLD_INDEX_BITS[:-1]))} or {OLD_INDEX_BITS[-1]} bits"
BEFORE_IOS18 = f"one scalar table of floats for a weight at {OLD_BITS}, without scale"
"""What iOS16 and iOS17 can express, for a message."""


@attrs.frozen(kw_only=True)
class PaletteForm:
    """The form of a palette, existing or requested.

    Parameters
    ----------
    nbits
        Bits of an index; None: chosen by the values.
    group_size
        Channels that share a table; None: one table for the weight.
    cluster_dim
        Elements that an entry stands for; above 1, entries are vectors.
    has_scale
        Whether each channel has a scale of its own.
    lut_dtype
        Dtype of 8-bit tables; None: tables in the dtype of the weight.
    is_joint
        Whether the weight is sparse or quantized as well.
    """

    nbits: int | None
    group_size: int | None = None
    cluster_dim: int = 1
    has_scale: bool = False
    lut_dtype: str | None = None
    is_joint: bool = False

    @classmethod
    def of_spec(cls, spec: PaletteSpec, *, is_joint: bool = False) -> PaletteForm:
        """The form that a spec asks for."""
        return cls(
            nbits=spec.nbits,
            group_size=spec.group_size,
            cluster_dim=spec.cluster_dim,
            has_scale=spec.scale_axis is not None,
            lut_dtype=spec.lut_dtype,
            is_joint=is_joint,
        )

    @classmethod
    def of_palettized(cls, palettized: Palettized) -> PaletteForm:
        """The form of an existing palette."""
        lengths = zip(palettized.shape, palettized.table_shape, strict=True)
        sizes = [length // tables for length, tables in lengths if tables > 1]
        quantized = palettized.quantized
        return cls(
            nbits=palettized.nbits,
            group_size=math.prod(sizes) if sizes else None,
            cluster_dim=palettized.cluster_dim,
            has_scale=palettized.scale is not None,
            lut_dtype=None if quantized is None else quantized.codes.dtype.name,
        )

    @property
    def new_parts(self) -> tuple[str, ...]:
        """The parameters whose values need iOS18."""
        is_new = {
            "group_size": self.group_size is not None,
            "cluster_dim": self.cluster_dim > 1,
            "has_scale": self.has_scale,
            "nbits": self.nbits not in (None, *OLD_INDEX_BITS),
            "lut_dtype": self.lut_dtype is not None,
            "is_joint": self.is_joint,
        }
        return tuple(name for name, needs_ios18 in is_new.items() if needs_ios18)

    @property
    def needed_target(self) -> Target:
        """The oldest target that can express it."""
        return Target.iOS18 if self.new_parts else Target.iOS16

    def words(self, mode: str = "") -> str:
        """The form for a reader: ``"4-bit kmeans, groups of 32, vectors of 2"``.

        ``mode``: how the tables are made. Values that are None, 1 or False are left out.
        """
        bits = "" if self.nbits is None else f"{self.nbits}-bit"
        parts = [
            f"{bits} {mode}".strip(),
            "per tensor" if self.group_size is None else f"groups of {self.group_size}",
        ]
        if self.cluster_dim > 1:
            parts.append(f"vectors of {self.cluster_dim}")
        if self.has_scale:
            parts.append("per-channel scale")
        if self.lut_dtype is not None:
            parts.append(f"{self.lut_dtype} table")
        return ", ".join(filter(None, parts))


def palette_nbytes(spec: PaletteSpec, shape: tuple[int, ...], *, nbits: int, itemsize: int) -> int:
    """Bytes of a palette of ``nbits``: packed indices, tables, scale.

    ``shape``, ``itemsize``: of the weight; the scale, and tables other than 8-bit ones, have its
    dtype.
    """
    indices = packed_nbytes(math.prod(shape) // spec.cluster_dim, nbits=nbits)
    scales = 0 if spec.scale_axis is None else shape[spec.scale_axis]
    tables = tables_nbytes(spec, shape, nbits=nbits, itemsize=itemsize, lut_dtype=spec.lut_dtype)
    return indices + tables + scales * itemsize


def tables_nbytes(
    spec: PaletteSpec, shape: tuple[int, ...], *, nbits: int, itemsize: int, lut_dtype: str | None
) -> int:
    """Bytes of the tables, including their own scale and offset if they are 8-bit."""
    numbers = Layout.of(spec, shape).groups * (1 << nbits) * spec.cluster_dim
    if lut_dtype is None:
        return numbers * itemsize
    return numbers + itemsize + (lut_dtype == "uint8")
