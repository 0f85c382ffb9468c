"""Losses of a plan for a reader: squared ones in dB, divergences in nats."""

from __future__ import annotations

import math

import attrs

from mlopt.choices import LossName
from mlopt.planning.limits import loss_in_words


@attrs.frozen
class Unit:
    """What the losses of a recipe are in.

    Attributes
    ----------
    loss
        The recipe's name of the loss.
    """

    loss: LossName

    @property
    def title(self) -> str:
        """What is shown, for a head of a table."""
        return "signal-to-noise ratio" if self.loss == "squared" else "divergence"

    @property
    def axis(self) -> str:
        """What is shown, for an axis on which better is higher."""
        if self.loss == "squared":
            return "signal-to-noise ratio, dB (higher is better)"
        return "divergence, nats (less is better: upwards)"

    def tick(self, height: float) -> str:
        """Return the words of a place on that axis, whose places are those of decibels."""
        return f"{height:g}" if self.loss == "squared" else f"{10.0 ** (-height / 10.0):.2g}"

    def words(self, loss: float | None) -> str:
        """Return a loss for a reader, ``""`` for none that is known."""
        return "" if loss is None else loss_in_words(loss, self.loss)


def share(part: float, whole: float) -> str:
    """Return a part of a sum of losses in percent, ``""`` where there is none to share."""
    return f"{100 * part / whole:.1f} %" if 0.0 < whole < math.inf and math.isfinite(part) else ""
