"""The held-out check: what tables fitted to some inputs would gain on others.

A fitted table leaves rounding errors that error feedback has shaped by the second moments H of the
inputs: with ``H = L D L^T``, L unit lower triangular, a row of errors is ``e = d L^-1`` with d
white (LDLQ: Chee et al., *QuIP*, arXiv 2307.13304). A plain table leaves white errors. So what
fitting gains on inputs with second moments N is ``tr(N) / tr(L^-1 N L^-T)``, for N = H as well as
for those of inputs that were not seen. If the first is much more, H is of too few inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.moments.moments import DAMPING

_PANEL = 64
_DRAWS = 64
"""Rows of errors that are drawn where there are more columns; their mean is a trace within a few
percent."""


FEW_DB = 3.0
"""The gain that is lost on other samples from which on a calibration says that it has few."""


@attrs.frozen
class HeldOut:
    """What fitting to the second moments of some samples gains over plain tables, as predicted.

    samples: how many they are; seen_db: the gain on these; held_out_db: on others.
    """

    samples: int
    seen_db: float
    held_out_db: float

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.seen_db) and math.isfinite(self.held_out_db)):
            raise ValueError("the gains of a held-out check must be finite")

    @property
    def has_few(self) -> bool:
        """Whether other samples lose so much of the gain that more are needed."""
        return self.seen_db - self.held_out_db >= FEW_DB


def mean_of(checks: Sequence[HeldOut]) -> HeldOut:
    """Return the means of one or more checks."""
    return HeldOut(
        max(check.samples for check in checks),
        sum(check.seen_db for check in checks) / len(checks),
        sum(check.held_out_db for check in checks) / len(checks),
    )


def held_out(
    seen: npt.NDArray[np.float32], other: npt.NDArray[np.float32], samples: int
) -> HeldOut | None:
    """Return what fitting to inputs gains on these and on others; None if that is not known.

    It takes a third of columns^3 operations, and memory for three matrices.

    Parameters
    ----------
    seen, other
        Sums of the second moments of both, float32[blocks, columns, columns].
    samples
        How many samples ``seen`` is of.
    """
    random = np.random.default_rng(0)
    white, fitted = np.zeros(2), np.zeros(2)
    for matrix, new in zip(seen, other, strict=True):
        power = float(np.trace(matrix))
        if not power:
            continue
        errors = _errors(matrix, power, random)
        if errors is None:
            return None
        for i, each in enumerate((matrix, new)):
            white[i] += np.trace(each)
            fitted[i] += np.vdot(errors, each @ errors)
    if not (white > 0).all() or not (fitted > 0).all() or not np.isfinite((white, fitted)).all():
        return None
    seen_db, held_out_db = (10.0 * math.log10(ratio) for ratio in white / fitted)
    return HeldOut(samples, seen_db, held_out_db)


def _errors(
    matrix: npt.NDArray[np.float32], power: float, random: np.random.Generator
) -> npt.NDArray[Any] | None:
    """Return errors that feedback by a matrix leaves of white ones, float32[columns, draws].

    The white ones have d d^T = I in sum, at least on average.
    """
    columns = len(matrix)
    damped = matrix.copy()
    damped[np.diag_indices(columns)] += np.float32(DAMPING * power / columns)
    try:
        factor = np.linalg.cholesky(damped)
    except np.linalg.LinAlgError:
        return None
    # factor = L D^1/2, so that L^T e = d is factor^T e = D^1/2 d
    scales = np.diagonal(factor)
    errors = _white(columns, random) * scales[:, None]
    for end in range(columns, 0, -_PANEL):
        start = max(0, end - _PANEL)
        panel = factor[start:end]
        errors[start:end] = np.linalg.solve(panel[:, start:end].T, errors[start:end])
        errors[:start] -= panel[:, :start].T @ errors[start:end]
    return errors


def _white(columns: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    if columns <= _DRAWS:
        return np.eye(columns, dtype=np.float32)
    size = np.float32(_DRAWS**-0.5)
    return random.choice(np.array([-size, size]), (columns, _DRAWS))
