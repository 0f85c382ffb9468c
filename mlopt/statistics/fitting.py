"""``fit``: palettization of one weight as a calibration guides it, and what it does to outputs."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.palette.palettize import palettize
from mlopt.palette.value.distortion import Distortion, measure_distortion
from mlopt.palette.value.palettized import Palettized
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import Guidance


@attrs.frozen(eq=False)
class Fitted:
    """The palette of a weight, its distortion, and notes for its row.

    output_snr_db: as in a report's rows, None without statistics; mean_error: float64[outputs],
    to be added to the bias of the guidance, None where it has none.
    """

    palettized: Palettized
    distortion: Distortion
    notes: tuple[str, ...]
    output_snr_db: float | None = None
    mean_error: npt.NDArray[np.float64] | None = None


def fit(
    value: npt.NDArray[Any],
    spec: PaletteSpec,
    guidance: Guidance[Any],
    *,
    importance: npt.NDArray[Any] | None = None,
    workers: int = 1,
) -> Fitted:
    """Palettize a weight; parameters and errors as for :func:`mlopt.palette.palettize`."""
    palettized, distortion = palettize(
        guidance.target(value),
        spec,
        importance=importance,
        workers=workers,
        moments=guidance.fitted(),
    )
    if guidance.shift is not None:
        distortion = measure_distortion(value, palettized)
    notes = guidance.notes if distortion.note is None else (*guidance.notes, distortion.note)
    mean_error, ratio = guidance.outcome(value, palettized.dequantize)
    return Fitted(palettized, distortion, notes, ratio, mean_error)
