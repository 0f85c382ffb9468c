"""What a calibration says for the clustering of one weight."""

from __future__ import annotations

import attrs

from mlopt.coreml.biases import BiasPlace
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


UNGUIDED = Guidance()
