"""What a calibration says for the clustering of one weight."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy.typing as npt

from mlopt.coreml.biases import BiasPlace, NewBias, corrected
from mlopt.palette.moments import InputMoments


@attrs.frozen(eq=False)
class Guidance:
    """How a calibration guides the clustering of one weight.

    Parameters
    ----------
    method
        ``"hessian"``, ``"diagonal"``, or ``"plain"`` where nothing is known.
    moments
        Of the inputs; None for ``"plain"``. About their mean if there is a bias to correct.
    bias
        Where the mean error of the outputs is folded into; None: nowhere.
    uncentred
        The moments about zero, for the mean.
    notes
        What a reader of the report should know, one sentence each.
    """

    method: str = "plain"
    moments: InputMoments | None = None
    bias: BiasPlace | None = None
    uncentred: InputMoments | None = None
    notes: tuple[str, ...] = ()

    def outcome(
        self, weight: npt.NDArray[Any], stored: npt.NDArray[Any]
    ) -> tuple[NewBias | None, float | None]:
        """Return the corrected bias, if any, and the signal-to-noise ratio of the outputs in dB.

        weight, stored: what was and what is stored, both decompressed.
        """
        if self.moments is None:
            return None, None
        error = self.moments.output_error(weight, stored)
        ratio = _decibels(self.moments.output_power(weight), error)
        if self.bias is None or self.uncentred is None:
            return None, ratio
        return corrected(self.bias, self.uncentred.mean_error(weight, stored)), ratio


def _decibels(power: float, error: float) -> float:
    if error <= 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power > 0.0 else -math.inf


UNGUIDED = Guidance()
