"""``InputMoments``: second moments and means of the inputs that a weight is multiplied by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.errors import ConfigError
from mlopt.palette.moments.arrangement import Arrangement
from mlopt.palette.moments.kernels import Quadratic, squared_products
from mlopt.threads import for_each

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of second moments, block by block.

It stands for what a finite sample does not show, and keeps every system definite: an input that was
always 0 counts for this much. The usual value (GPTQ, arXiv 2210.17323, section 3.3; LNQ, arXiv
2505.07004).
"""

_TILE = 1024
"""Rows and columns of the second moments that are compared at a time."""

_ASYMMETRY = 1e-3
"""The most by which two halves may differ, as a share of the two diagonal elements' mean."""

_LEAST = float(np.finfo(np.float32).tiny)

_PART = 1 << 18
"""Elements of a weight that are widened to float64 at a time, about."""


@attrs.frozen(eq=False)
class InputMoments:
    """Averages over the inputs x [columns] of each block of a weight.

    Parameters
    ----------
    arrangement
        The matrices that multiply these inputs.
    second
        float32[blocks, columns, columns], the mean of ``x x^T``, symmetric; None where only its
        diagonal is known.
    diagonal
        float32[blocks, columns], the mean of ``x**2``, not negative.
    mean
        float32[blocks, columns], the mean of x.
    count
        Number of input vectors averaged, at least 1.
    shares
        float32[blocks], not negative, what ``second`` and ``diagonal`` of each block have been
        multiplied by: its inputs count so much more than those of other blocks. None for 1.

    Raises
    ------
    ConfigError
        A shape or dtype is another, a number is not finite, or the matrix is not symmetric.
    """

    arrangement: Arrangement
    second: npt.NDArray[np.float32] | None
    diagonal: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    count: int
    shares: npt.NDArray[np.float32] | None = None

    def __attrs_post_init__(self) -> None:
        blocks, columns = self.arrangement.blocks, self.arrangement.columns
        _check_array("diagonal", self.diagonal, (blocks, columns))
        _check_array("mean", self.mean, (blocks, columns))
        if self.diagonal.min() < 0:
            raise ConfigError(
                f"means of squares cannot be negative, got {self.diagonal.min()} on the diagonal; "
                "calibrate again"
            )
        if self.count < 1:
            raise ConfigError(
                f"moments must be averages of at least 1 input, got count={self.count}; calibrate "
                "with samples that reach the operation"
            )
        if self.shares is not None:
            _check_array("shares", self.shares, (blocks,))
        if self.second is not None:
            _check_array("second", self.second, (blocks, columns, columns))
            for matrix, diagonal in zip(self.second, self.diagonal, strict=True):
                _check_matrix(matrix, diagonal)

    def importance(self) -> npt.NDArray[np.float32]:
        """Return E[x_i**2] for each element of the weight: float32 of its shape.

        Damped by 1 % of a block's mean, so that inputs which were always 0 still count a little:
        other samples may have some there.
        """
        a = self.arrangement
        damped = self.diagonal + self.damping()[:, None].astype(np.float32)
        spread = np.broadcast_to(damped[:, None], (a.blocks, a.rows, a.columns))
        return np.ascontiguousarray(a.weight(spread))

    def damping(self) -> npt.NDArray[np.float64]:
        """Return what is added to the diagonal of each block: 1 % of its mean, float64[blocks].

        A block whose inputs were always 0 is damped as the mean of the others.
        """
        means = self.diagonal.mean(axis=1, dtype=np.float64)
        return np.asarray(DAMPING * np.where(means > 0, means, means.mean()))

    def centred(self) -> InputMoments:
        """Return the moments about the mean: ``H - s mu mu^T`` with the shares s, and the mean 0.

        They are what is left of the error once the mean error is part of the bias (Nagel et al.,
        arXiv 1906.04721, section 4.2).
        """
        roots = self.mean if self.shares is None else np.sqrt(self.shares)[:, None] * self.mean
        diagonal = np.maximum(self.diagonal - np.square(roots), 0)
        second = self.second
        if second is not None:
            second = second - roots[:, :, None] * roots[:, None, :]
            of_each = np.einsum("bii->bi", second)
            of_each[:] = diagonal
        return attrs.evolve(self, second=second, diagonal=diagonal, mean=np.zeros_like(self.mean))

    def output_error(self, weight: npt.NDArray[Any], stored: npt.NDArray[Any]) -> float:
        """Return the mean squared error of the outputs, summed over these.

        ``tr(E H E^T)`` summed over blocks, with E the matrices of ``stored - weight``, and with the
        diagonal of H alone where no more is known. Not below 0, where rounding would bring it.
        """
        return self._power(weight, stored)

    def output_power(self, weight: npt.NDArray[Any]) -> float:
        """Return the mean square of the outputs, summed over these: ``tr(W H W^T)``."""
        return self._power(weight, None)

    def mean_error(
        self, weight: npt.NDArray[Any], stored: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Return ``(W - Q) mu``, float64[blocks, rows]: add it to a bias to correct the mean."""
        a = self.arrangement
        of_weight, of_stored = a.matrices(weight), a.matrices(stored)
        answer = np.empty((a.blocks, a.rows))
        for block in range(a.blocks):
            error = of_weight[block].astype(np.float64) - of_stored[block].astype(np.float64)
            answer[block] = error @ self.mean[block].astype(np.float64)
        return answer

    def _power(self, weight: npt.NDArray[Any], stored: npt.NDArray[Any] | None) -> float:
        if self.second is not None:
            damping = np.zeros(self.arrangement.blocks, np.float32)
            quadratic = Quadratic(read_only(self.second), damping)
            return max(0.0, error_power(self.arrangement, weight, stored, quadratic))
        parts = _error_parts(self.arrangement, weight, stored, None)
        return float(sum((np.square(part) * self.diagonal[block]).sum() for part, block in parts))


def error_power(
    arrangement: Arrangement,
    weight: npt.NDArray[Any],
    stored: npt.NDArray[Any] | None,
    quadratic: Quadratic,
    *,
    factors: npt.NDArray[Any] | None = None,
    workers: int = 1,
) -> float:
    """Return ``tr(E H E^T)`` summed over blocks, in float64 and in a fixed order.

    Parameters
    ----------
    stored
        The weight that is stored; None for the power of the weight itself, ``E = W``.
    factors
        Of the weight's shape, by which its errors are multiplied; None for 1.
    workers
        Threads. The result does not depend on it.
    """
    parts = _error_parts(arrangement, weight, stored, factors)
    return float(sum(for_each(parts, lambda part: squared_products(*part, quadratic), workers)))


def _error_parts(
    arrangement: Arrangement,
    weight: npt.NDArray[Any],
    stored: npt.NDArray[Any] | None,
    factors: npt.NDArray[Any] | None,
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """Yield rows of ``factors * (stored - weight)``, or of the weight, and the block of each."""
    columns = arrangement.columns
    flat = [
        None if array is None else arrangement.matrices(array).reshape(-1, columns)
        for array in (weight, stored, factors)
    ]
    assert flat[0] is not None
    step = max(1, _PART // columns)
    for first in range(0, len(flat[0]), step):
        part, other, factor = (
            None if array is None else array[first : first + step].astype(np.float64)
            for array in flat
        )
        assert part is not None
        errors = part if other is None else other - part
        if factor is not None:
            errors *= factor
        yield errors, np.arange(first, first + len(errors)) // arrangement.rows


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a C-contiguous read-only view, or copy: kernels are compiled for these only."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _check_array(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise ConfigError(
            f"{name} of moments must be float32 {shape}, for the blocks and columns of their "
            f"arrangement, got {array.dtype} {array.shape}; convert it, or correct the arrangement"
        )
    # min and max propagate NaN, and an infinity is one of the two
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ConfigError(
            f"{name} of moments must be finite, got an infinity or a NaN; leave out the samples "
            "for which the model's activations overflow, or accumulate in a wider type"
        )


def _check_matrix(matrix: npt.NDArray[np.float32], diagonal: npt.NDArray[np.float32]) -> None:
    """Check that one block's second moments are symmetric, with the diagonal that is given."""
    # float32 rounding of a mean is relative to the squares it is made of
    scale = np.sqrt(diagonal.astype(np.float64)).astype(np.float32)
    if np.any(np.abs(matrix.diagonal() - diagonal) > _ASYMMETRY * diagonal + _LEAST):
        raise ConfigError(
            "the diagonal of the second moments must be the means of squares, got "
            f"{matrix.diagonal()[:4]}... and {diagonal[:4]}...; pass numpy.diagonal(second)"
        )
    for first in range(0, len(matrix), _TILE):
        rows = slice(first, first + _TILE)
        for other in range(0, first + 1, _TILE):
            columns = slice(other, other + _TILE)
            gap = np.abs(matrix[rows, columns] - matrix[columns, rows].T)
            if np.any(gap > _ASYMMETRY * scale[rows, None] * scale[columns] + _LEAST):
                raise ConfigError(
                    "second moments must be symmetric, got elements that differ by up to "
                    f"{gap.max()}; average x x^T, or take (second + second^T) / 2"
                )
