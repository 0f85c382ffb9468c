"""``Palettized``: a palettized weight, the value that all parts of the library exchange."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.choices import NBITS
from mlopt.errors import ConfigError
from mlopt.palette.value.bits import packed_nbytes
from mlopt.palette.value.gather import gather, scale_in_place
from mlopt.palette.value.product import product
from mlopt.palette.value.quantized import QuantizedTable, smallest_normal

TABLE_DTYPES = ("float16", "float32", "float64", "bfloat16")
"""Names of dtypes, since bfloat16 comes from a package that this one does not import."""

INTEGER_TABLE_DTYPES = ("int8", "uint8")
"""Dtypes of tables for weights that are integers themselves: the data of a quantized weight."""


def _normalised_axis(palettized: Palettized) -> None:
    """Normalize a vector axis, which may be negative as in the file format, to 0 .. K-1."""
    axis, rank = palettized.vector_axis, palettized.indices.ndim
    if axis is not None and -rank <= axis < 0:
        object.__setattr__(palettized, "vector_axis", axis + rank)


@attrs.frozen(eq=False)
class Palettized:
    """A weight of shape n, stored as indices into the tables of its groups, one table per group.

    With K the rank of the weight and v the vector axis, these hold::

        table.shape   == (g[0], ..., g[K-1], 2**nbits, d)      nbits in 1, 2, 3, 4, 6, 8;  d >= 1
        indices.shape == (n[0], ..., n[v] // d, ..., n[K-1])   v is None  iff  d == 1
        indices.shape[i] % g[i] == 0                           for all i
        indices       <  2**nbits
        scale.shape   == (1, ..., n[a], ..., 1)                for some axis a; or scale is None
        scale.dtype   == table.dtype                           the weight's dtype
        quantized.decode() == table                            bit for bit; or quantized is None

        group(p)[i]   == p[i] // (indices.shape[i] // g[i])    for a position p of indices
        weight[.., p[v] * d + c, ..] == table[group(p), indices[p], c] * scale[.., a's, ..]

    The product is rounded once, to the weight's dtype.

    Parameters
    ----------
    table
        float16, float32, float64 or bfloat16, of rank K + 2. Also int8 or uint8, where the weight
        is the integer data of a quantized one; then without ``scale`` and ``quantized``.
    indices
        uint8, C-contiguous, of rank K >= 1.
    vector_axis
        Axis along which the ``d`` values of an entry lie; negative counts from the end. None where
        ``d`` is 1.
    scale
        Factors of the channels of one axis, or None.
    quantized
        The table as it is stored, if that is in 8 bits; None where it is stored as it is.

    Raises
    ------
    ConfigError
        One of the equations does not hold.
    """

    table: npt.NDArray[Any]
    indices: npt.NDArray[np.uint8]
    vector_axis: int | None = None
    scale: npt.NDArray[Any] | None = None
    quantized: QuantizedTable | None = None

    def __attrs_post_init__(self) -> None:
        _normalised_axis(self)
        _check_table(self.table, self.indices)
        _check_vectors(self.table.shape[-1], self.vector_axis, self.indices.ndim)
        if self.scale is not None:
            _check_scale(self.scale, shape=self.shape, dtype=self.dtype)
        if self.quantized is not None:
            _check_quantized(self.quantized, self.table)
        # Eight bits cannot be out of range; a maximum over bytes is cheaper than any use of them.
        if self.nbits < 8 and self.indices.size and self.indices.max() >= 1 << self.nbits:
            raise ConfigError(
                f"indices into a table of {1 << self.nbits} entries must be below that, "
                f"got {self.indices.max()}; pad the table or correct the indices"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape n of the weight."""
        axis, d = self.vector_axis, self.cluster_dim
        return tuple(n * d if i == axis else n for i, n in enumerate(self.indices.shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.indices.size * self.cluster_dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The weight's dtype."""
        return self.table.dtype

    @property
    def nbits(self) -> int:
        """Bits per index."""
        return int(self.table.shape[-2]).bit_length() - 1

    @property
    def cluster_dim(self) -> int:
        """Number d of elements that one table entry stands for."""
        return int(self.table.shape[-1])

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Number of groups g along each axis."""
        return tuple(self.table.shape[:-2])

    @property
    def indices_nbytes(self) -> int:
        """Bytes of the indices when packed."""
        return packed_nbytes(self.indices.size, nbits=self.nbits)

    @property
    def table_nbytes(self) -> int:
        """Bytes of the tables; with their own scale and offset where they are quantized."""
        return self.table.nbytes if self.quantized is None else self.quantized.nbytes

    @property
    def scale_nbytes(self) -> int:
        """Bytes of the scale; 0 where there is none."""
        return 0 if self.scale is None else self.scale.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return self.indices_nbytes + self.table_nbytes + self.scale_nbytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, tables and scale included; 0 for a weight without elements."""
        return 8 * self.nbytes / self.size if self.size else 0.0

    def dequantize(self) -> npt.NDArray[Any]:
        """Return the weight that is stored: a new array of ``shape`` and ``dtype``.

        A gather: besides the result it needs memory for the tables, with a scale for at most a
        quarter of the weight, and for one number per row of the last axis where tables or vectors
        lie across rows.
        """
        weight = np.empty(self.shape, self.dtype)
        if not weight.size:
            return weight
        table, scale = self.table, self.scale
        if scale is not None:
            # Scaling entries gives the same products as scaling elements; there are fewer of them.
            grown = table.size // self._scale_axis_groups * max(scale.shape)
            if grown <= weight.size // 4:
                table, scale = self._scaled_table(scale), None
        gather(table, self.indices, weight, vector_axis=self.vector_axis)
        if scale is not None:
            scale_in_place(weight, scale)
        return weight

    def astype(self, dtype: npt.DTypeLike) -> Palettized:
        """Return the palette in another float format, such as that of a model converted to float16.

        Entries and scale are rounded to the format, each on its own; codes of a table in 8 bits
        stay, unless their scale would be subnormal: then the table is stored in floats. The indices
        are shared.

        Raises
        ------
        ConfigError
            An entry or the scale is beyond the format's largest number.
        """
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        quantized, scale = self.quantized, self.scale
        if quantized is not None:
            rounded = _rounded(quantized.scale, dtype)
            # every byte but 0 stands for at least that much
            is_normal = np.abs(rounded.astype(np.float64)).min() >= smallest_normal(dtype)
            quantized = attrs.evolve(quantized, scale=rounded) if is_normal else None
        table = _rounded(self.table, dtype) if quantized is None else quantized.decode()
        if not np.isfinite(table.astype(np.float64)).all():
            raise _too_large(dtype)
        return Palettized(
            table=table,
            indices=self.indices,
            vector_axis=self.vector_axis,
            scale=None if scale is None else _rounded(scale, dtype),
            quantized=quantized,
        )

    @property
    def _scale_axis(self) -> int:
        """Axis of the scale's channels."""
        assert self.scale is not None
        channels = self.scale.size
        return self.shape.index(1) if channels == 1 else self.scale.shape.index(channels)

    @property
    def _scale_axis_groups(self) -> int:
        """Number of groups of the table along the scale's axis."""
        return self.table_shape[self._scale_axis]

    def _scaled_table(self, scale: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return tables multiplied by the scale: one for each position along the scale's axis."""
        axis, n = self._scale_axis, self.indices.shape[self._scale_axis]
        table = np.repeat(self.table, n // self._scale_axis_groups, axis=axis)
        # The channels of one vector meet its d values, other channels meet whole entries.
        d = self.cluster_dim if axis == self.vector_axis else 1
        shape = [n if i == axis else 1 for i in range(len(self.shape))]
        return product(table, scale.reshape(*shape, 1, d))


def _rounded(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return finite values in another float format; ConfigError where they are too large for it."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise _too_large(dtype)
    return rounded


def _too_large(dtype: np.dtype[Any]) -> ConfigError:
    return ConfigError(
        f"a palette must fit the format it is stored in, got numbers beyond those of {dtype}; "
        "keep the wider format (compute_precision=FLOAT32 when converting), or scale the weight"
    )


def _check_table(table: npt.NDArray[Any], indices: npt.NDArray[np.uint8]) -> None:
    """Check dtypes, rank and divisibility of a table and its indices."""
    allowed = TABLE_DTYPES + INTEGER_TABLE_DTYPES
    if table.dtype.name not in allowed:
        raise ConfigError(f"a table must be one of {allowed}, got {table.dtype}; convert it")
    if indices.dtype != np.uint8 or not indices.flags.c_contiguous:
        raise ConfigError(
            f"indices must be C-contiguous uint8, got {indices.dtype} with strides "
            f"{indices.strides}; use numpy.ascontiguousarray(indices, numpy.uint8)"
        )
    if indices.ndim < 1 or table.ndim != indices.ndim + 2:
        raise ConfigError(
            f"indices need a rank K of at least 1 and a table the rank K + 2, got indices "
            f"{indices.shape} and a table {table.shape}; add axes of length 1"
        )
    entries = table.shape[-2]
    if entries not in [1 << nbits for nbits in NBITS]:
        raise ConfigError(
            f"a table must have 2**nbits entries for nbits in {NBITS}, got {entries} "
            f"(shape {table.shape}); repeat the last entry up to one of these"
        )
    for axis, (n, groups) in enumerate(zip(indices.shape, table.shape, strict=False)):
        if groups < 1 or n % groups:
            raise ConfigError(
                f"the groups of a table must divide the indices on each axis, got {groups} "
                f"for {n} on axis {axis} (table {table.shape}, indices {indices.shape}); "
                "choose a divisor"
            )


def _check_vectors(d: int, vector_axis: int | None, rank: int) -> None:
    """Check that there is a vector axis if, and only if, entries are vectors."""
    if d < 1 or (d == 1) != (vector_axis is None):
        raise ConfigError(
            f"vector_axis belongs to tables of vectors and only to them, got {vector_axis} for "
            f"entries of {d} values; give the axis, or None for scalars"
        )
    if vector_axis is not None and not 0 <= vector_axis < rank:
        raise ConfigError(
            f"vector_axis must be in [{-rank}, {rank}), got {vector_axis}; choose an axis of "
            "the weight"
        )


def _check_scale(scale: npt.NDArray[Any], *, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check a scale's dtype and shape for a weight of ``shape`` and ``dtype``."""
    if dtype.name in INTEGER_TABLE_DTYPES:
        raise ConfigError(
            f"a weight of integers has no scale, got one with a table of {dtype}; scale what is "
            "made of the integers"
        )
    if scale.dtype != dtype:
        raise ConfigError(
            f"a scale must have the dtype of its table, {dtype}, got {scale.dtype}; convert it"
        )
    long_axes = [i for i, n in enumerate(scale.shape) if n != 1]
    if (
        scale.ndim != len(shape)
        or len(long_axes) > 1
        or any(scale.shape[i] != shape[i] for i in long_axes)
        or (not long_axes and 1 not in shape)
    ):
        raise ConfigError(
            f"a scale must have the weight's length on one axis and 1 on the others, got "
            f"{scale.shape} for a weight {shape}; reduce with keepdims=True"
        )


def _check_quantized(quantized: QuantizedTable, table: npt.NDArray[Any]) -> None:
    """Check that codes stand for the numbers of a table."""
    codes, dtype = quantized.codes, quantized.scale.dtype
    if codes.shape != table.shape or dtype != table.dtype:
        raise ConfigError(
            f"a quantized table must have the table's shape and dtype, {table.shape} and "
            f"{table.dtype}, got {codes.shape} and {dtype}; take its decode() as the table"
        )
    if quantized.decode().tobytes() != table.tobytes():
        raise ConfigError(
            "a quantized table must decode to the table bit for bit; take its decode() as the table"
        )
