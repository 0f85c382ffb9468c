"""Tables in 8 bits: integer codes with a scale, and the numbers that such a table can hold."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import LUT_DTYPES
from mlopt.errors import ConfigError
from mlopt.palette.value.product import product

_SMALLEST_NORMAL = {
    "float16": 2.0**-14,
    "bfloat16": 2.0**-126,
    "float32": 2.0**-126,
    "float64": 2.0**-1022,
}


@attrs.frozen(eq=False)
class QuantizedTable:
    """The table of a palette as 8-bit codes.

    With K the rank of the weight, these hold::

        codes.shape  == (g[0], ..., g[K-1], 2**nbits, d)     int8 or uint8
        scale.shape  == (1,) * (K + 2)                       float, finite; or one for each table:
                     or (g[0], ..., g[K-1], 1, 1)
        offset.shape == scale.shape                          codes.dtype; or offset is None, for 0

        decode()     == (codes - offset) * scale             rounded once, to the scale's dtype

    Raises
    ------
    ConfigError
        One of the equations does not hold.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    offset: npt.NDArray[Any] | None = None

    def __attrs_post_init__(self) -> None:
        codes, scale, offset = self.codes, self.scale, self.offset
        if codes.dtype.name not in LUT_DTYPES:
            raise ConfigError(
                f"codes of a table must be one of {LUT_DTYPES}, got {codes.dtype}; convert them"
            )
        one, each = (1,) * codes.ndim, (*codes.shape[:-2], 1, 1)
        if scale.dtype.name not in _SMALLEST_NORMAL or scale.shape not in (one, each):
            raise ConfigError(
                f"the scale of a table must be floats of the shape {one} or {each}, got "
                f"{scale.dtype} {scale.shape}; reshape it"
            )
        if not np.isfinite(scale.astype(np.float64)).all():
            raise ConfigError("the scale of a table must be finite; keep the table in floats")
        if offset is not None and (offset.dtype != codes.dtype or offset.shape != scale.shape):
            raise ConfigError(
                f"the offset of a table must be {codes.dtype} {scale.shape} like its codes and "
                f"scale, got {offset.dtype} {offset.shape}; convert it"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scale and offset."""
        offset = 0 if self.offset is None else self.offset.nbytes
        return self.codes.nbytes + self.scale.nbytes + offset

    def decode(self) -> npt.NDArray[Any]:
        """Return the table in the scale's dtype."""
        return decoded(self.codes, self.scale, self.offset)


def decoded(
    codes: npt.NDArray[Any], scale: npt.NDArray[Any], offset: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """Return ``(codes - offset) * scale`` in the scale's dtype, as ``QuantizedTable`` has them."""
    steps = codes.astype(np.int16)
    if offset is not None:
        steps = steps - offset.astype(np.int16)
    # differences of bytes are exact in each of the formats
    with np.errstate(over="ignore"):
        return product(steps.astype(scale.dtype), np.broadcast_to(scale, steps.shape))


def smallest_normal(dtype: np.dtype[Any]) -> float:
    """Return the smallest positive normal number of a float format."""
    return _SMALLEST_NORMAL[dtype.name]


@attrs.frozen(eq=False)
class Lattice:
    """The numbers that the entries of a table can be, ascending and all different.

    codes: int8 or uint8 [m], m <= 256; points: float64[m], what the codes stand for; scale:
    ``[]`` of the weight's dtype, or None where the weight itself is integers and codes are numbers;
    offset: ``[]`` of the codes' dtype, or None.
    """

    codes: npt.NDArray[Any]
    points: npt.NDArray[np.float64]
    scale: npt.NDArray[Any] | None = None
    offset: npt.NDArray[Any] | None = None

    @classmethod
    def of_integers(cls, dtype: npt.DTypeLike) -> Lattice:
        """Return the lattice of all integers of int8 or uint8."""
        codes = _all_codes(np.dtype(dtype))
        return cls(codes, codes.astype(np.float64))

    @classmethod
    def spanning(cls, low: float, high: float, lut_dtype: str, dtype: np.dtype[Any]) -> Lattice:
        """Return the lattice for a table between two numbers.

        int8 is symmetric about 0: no offset, codes from -127, 127 steps to the larger of the two
        magnitudes. uint8 has an offset: 255 steps from the lower to the higher, 0 included.

        Parameters
        ----------
        low, high
            Finite, ``low <= high``.
        lut_dtype
            ``"int8"`` or ``"uint8"``.
        dtype
            That of the weight, one of ``TABLE_DTYPES``. A scale that would be subnormal in it is
            replaced by the smallest normal number: see :func:`is_wide_enough`.
        """
        codes = _all_codes(np.dtype(lut_dtype))
        step = _step(low, high, lut_dtype)
        scale = np.asarray(max(step, smallest_normal(dtype)) if step else 1.0).astype(dtype)
        offset = None
        if lut_dtype == "int8":
            codes = codes[1:]
        else:
            below = round(-min(low, 0.0) / float(scale))
            offset = np.asarray(min(max(below, 0), 255), np.uint8)
        points = decoded(codes, scale, offset).astype(np.float64)
        if not np.isfinite(points).all():
            # the scale was rounded up, beyond the largest number of the format
            scale = np.nextafter(scale, np.zeros_like(scale))
            points = decoded(codes, scale, offset).astype(np.float64)
        # the offset's rounding may do the same; and bfloat16 rounds neighbours alike
        kept = np.isfinite(points)
        kept[1:] &= points[1:] != points[:-1]
        return cls(codes[kept], points[kept], scale, offset)

    def nearest(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return positions of the points nearest to finite values; ties go to the lower point."""
        middles = 0.5 * self.points[:-1] + 0.5 * self.points[1:]
        return np.searchsorted(middles, values, side="left")

    def quantized(self, positions: npt.NDArray[np.int64]) -> QuantizedTable:
        """Return the table [..., 2**nbits, d] of the codes at these positions."""
        assert self.scale is not None
        one = (1,) * positions.ndim
        offset = None if self.offset is None else self.offset.reshape(one)
        return QuantizedTable(self.codes[positions], self.scale.reshape(one), offset)


def quantized_table(table: npt.NDArray[Any], lut_dtype: str) -> QuantizedTable | None:
    """Round a table [..., entries, d] to 8-bit codes with one scale; None where no scale is normal.

    lut_dtype: ``"int8"`` or ``"uint8"``, see :meth:`Lattice.spanning`.
    """
    wide = table.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not is_wide_enough(low, high, lut_dtype, table.dtype):
        return None
    lattice = Lattice.spanning(low, high, lut_dtype, table.dtype)
    return lattice.quantized(lattice.nearest(wide))


def is_wide_enough(low: float, high: float, lut_dtype: str, dtype: np.dtype[Any]) -> bool:
    """Whether a table between two numbers has a lattice whose scale is normal (or is all zero)."""
    step = _step(low, high, lut_dtype)
    return step == 0.0 or step >= smallest_normal(dtype)


def _step(low: float, high: float, lut_dtype: str) -> float:
    if lut_dtype == "int8":
        return max(abs(low), abs(high)) / 127
    return max(high, 0.0) / 255 - min(low, 0.0) / 255


def _all_codes(dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    bounds = np.iinfo(dtype)
    return np.arange(bounds.min, bounds.max + 1).astype(dtype)
