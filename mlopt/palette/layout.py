"""Layout of a weight: how it is cut into groups of points, and put together again."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.palette.value.spec import PaletteSpec

Array = TypeVar("Array")
"""A numpy array or a torch tensor: only its ``reshape`` and ``swapaxes`` are used."""


@attrs.frozen
class Layout:
    """Groups of channels, each with its own table, and the points in them, each with its own index.

    With C channels on ``axis`` and R elements in each, there are G groups of C / G consecutive
    channels. A point is d elements of consecutive channels, so a group has N = C / G / d * R
    points; they are in C order of (channels / d, other axes). With n the shape, these hold::

        points(weight)  [G, N, d]        weight(points(w)) == w
        table_shape     == (1, ..., G, ..., 1)
        indices_shape   == (n[0], ..., C / d, ..., n[K-1])

    and for labels [G, N] into tables [G, entries, d] a :class:`mlopt.palette.Palettized` of
    ``table(tables)`` and ``indices(labels)`` stands for
    ``weight(points)`` with ``points[g, i] == tables[g, labels[g, i]]``.

    Parameters
    ----------
    shape
        n, the shape of the weight, of rank K >= 1.
    axis
        The axis of the channels, 0 .. K-1.
    groups
        G.
    cluster_dim
        d.

    Raises
    ------
    ConfigError
        The weight has no such axis, or G * d does not divide C.
    """

    shape: tuple[int, ...]
    axis: int = 0
    groups: int = 1
    cluster_dim: int = 1

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.axis < len(self.shape):
            raise ConfigError(
                f"the axis of a layout must be in [0, {len(self.shape)}), got {self.axis}; choose "
                f"an axis of the weight of shape {self.shape}"
            )
        least = min(self.groups, self.cluster_dim)
        if least < 1 or self.shape[self.axis] % (self.groups * self.cluster_dim):
            raise ConfigError(
                f"groups * cluster_dim must divide the channels, got {self.groups} * "
                f"{self.cluster_dim} for the {self.shape[self.axis]} channels on axis {self.axis} "
                f"of a weight of shape {self.shape}; choose divisors"
            )

    @classmethod
    def of(cls, spec: PaletteSpec, shape: tuple[int, ...]) -> Layout:
        """Return the layout that a spec asks for; the spec must fit the axes of ``shape``."""
        axis = 0 if spec.channel_axis is None else spec.channel_axis % len(shape)
        groups = 1 if spec.group_size is None else shape[axis] // spec.group_size
        return cls(shape, axis, groups, spec.cluster_dim)

    @property
    def vector_axis(self) -> int | None:
        """Axis along which a point lies, as in ``Palettized``; None for points of one element."""
        return self.axis if self.cluster_dim > 1 else None

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Number of groups along each axis of the weight."""
        return tuple(self.groups if i == self.axis else 1 for i in range(len(self.shape)))

    @property
    def indices_shape(self) -> tuple[int, ...]:
        """Shape of the indices: one index per point."""
        return tuple(
            n // self.cluster_dim if i == self.axis else n for i, n in enumerate(self.shape)
        )

    @property
    def _channels_first(self) -> tuple[int, ...]:
        """(G, C / G / d, d, other axes)."""
        d, channels = self.cluster_dim, self.shape[self.axis]
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return (self.groups, channels // self.groups // d, d, *rest)

    def points(self, weight: Array) -> Array:
        """Return the points [G, N, d] of a weight, differentiable; a view where memory allows."""
        cut: Any = _moved(weight, self.axis, 0).reshape(self._channels_first)
        points: Array = _moved(cut, 2, cut.ndim - 1).reshape(self.groups, -1, self.cluster_dim)
        return points

    def weight(self, points: Array) -> Array:
        """Return the weight that has these points: the inverse of :meth:`points`."""
        groups, vectors, d, *rest = self._channels_first
        split: Any = points
        cut = _moved(split.reshape(groups, vectors, *rest, d), len(rest) + 2, 2)
        weight: Array = _moved(cut.reshape(self.shape[self.axis], *rest), 0, self.axis)
        return weight

    def rows(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the points [G, N] of an array where d is 1, C-contiguous; a view if possible."""
        return np.ascontiguousarray(self.points(weight)[..., 0])

    def indices(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return labels [G, N] as the indices of a palette, C-contiguous."""
        indices = attrs.evolve(self, shape=self.indices_shape, cluster_dim=1).weight(labels)
        return np.ascontiguousarray(indices)

    def table(self, tables: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return tables [G, entries, d] as the table of a palette: [*table_shape, entries, d]."""
        return np.ascontiguousarray(tables).reshape(*self.table_shape, *tables.shape[1:])


def _moved(array: Any, source: int, destination: int) -> Any:
    """Return a view with one axis moved; numpy and torch have different names for this."""
    step = 1 if source < destination else -1
    for axis in range(source, destination, step):
        array = array.swapaxes(axis, axis + step)
    return array
