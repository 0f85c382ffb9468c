"""Options of soft k-means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import attrs
from torch import Tensor

from mlopt.errors import ConfigError

Mode = Literal["dkm", "hard", "gsm"]
"""How points attend to centroids: by softmax, only to the nearest, by softmax with noise."""

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks that hold parts of the points; called in the same order on each."""


def unreduced(tensor: Tensor) -> Tensor:
    """Return the sum over ranks where there is but one."""
    return tensor


_USUAL = 1 << 20
"""Distances that are computed at a time where less than the usual memory may be used."""


@attrs.frozen(kw_only=True)
class SoftOptions:
    """How soft k-means works, the same in every call for a weight.

    Attributes
    ----------
    iterations
        The most iterations, at least 1.
    mode
        ``"dkm"``: attention by softmax. ``"hard"``: only to the nearest centroid, a constant for
        the gradient, which goes through the means only. ``"gsm"``: softmax with Gumbel noise, drawn
        in each iteration.
    implicit
        Take the gradient as that of a fixed point, independent of how many iterations led there.
        Not with ``"gsm"``.
    lost_size
        A cluster whose attention, weighted with importance, adds up to at most this has lost its
        points: it is moved to the mean of all points of the group, in the same iteration. 0.0 for
        never.
    coded
        Round float32 points with ``d`` = 1 to 16 bits first: half the memory is kept, and 16-bit
        codes are fast. To float16, or to bfloat16 for magnitudes that float16 has no digits for.
        The gradient passes through the rounding.
    memory_share
        The share of the usual memory, above 0 and at most 1, that is used besides the points: they
        are processed in pieces that are smaller by that factor. It changes only rounding (and, for
        ``"gsm"`` on a GPU, the noise).
    """

    iterations: int = 3
    mode: Mode = "dkm"
    implicit: bool = False
    lost_size: float = 0.0
    coded: bool = False
    memory_share: float = 1.0

    def chunk(self, k_count: int) -> int | None:
        """Return the points to take at a time with ``k_count`` centroids; None: a good number."""
        if self.memory_share == 1:
            return None
        return max(1, int(_USUAL * self.memory_share) // k_count)

    def for_tables_alone(self, *, mode: Mode, iterations: int) -> SoftOptions:
        """Return the options for a call whose points are not used: full precision, no gradient."""
        return attrs.evolve(
            self, mode=mode, iterations=iterations, implicit=False, coded=False, memory_share=1.0
        )

    def check(self) -> None:
        """Raise ``ConfigError`` for a number or a mode that is not as described."""
        if self.iterations < 1:
            raise ConfigError(f"iterations must be at least 1, got {self.iterations}")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode must be one of {get_args(Mode)}, got {self.mode!r}")
        if not (0.0 <= self.lost_size < math.inf):
            raise ConfigError(f"lost_size must be finite and not negative, got {self.lost_size}")
        if not (0.0 < self.memory_share <= 1.0):
            raise ConfigError(
                f"memory_share must be above 0 and at most 1, got {self.memory_share}"
            )
        if self.implicit and self.mode == "gsm":
            raise ConfigError(
                "implicit=True needs iterations that settle, which those of mode='gsm' with noise "
                "of their own do not: use mode='dkm' or implicit=False"
            )


@attrs.frozen
class Call:
    """What one call adds to the options.

    Attributes
    ----------
    options
        As ``soft_kmeans`` was given them.
    epsilon
        Iterations end after one that moves no centroid further than this distance; 0.0 for never.
    reduce
        Sums over ranks; ``unreduced`` where this process has all points.
    seeds
        Of the noise, one per iteration; empty without noise.
    """

    options: SoftOptions
    epsilon: float
    reduce: Reduce
    seeds: tuple[int, ...]

    @property
    def is_alone(self) -> bool:
        """Whether this process has all points."""
        return self.reduce is unreduced
