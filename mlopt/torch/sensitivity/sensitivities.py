"""``Sensitivities``: the result of computing the sensitivities of a model's weights."""

from __future__ import annotations

import attrs
from torch import Tensor


@attrs.frozen(eq=False)
class Sensitivities:
    """The diagonal Fisher information of parameters: values[name] = mean over samples of grad².

    Attributes
    ----------
    values
        Name of a parameter -> float32, on the CPU, contiguous, of the parameter's shape, finite,
        not negative, somewhere positive. The names are the ones asked for; where none were, the
        first name of each parameter in the order of ``named_parameters``. Two names of one
        parameter have the same tensor.
    samples
        How many samples the mean is over, on all ranks together; at least 1, unless there was
        nothing to compute.
    requested
        How many were asked for: more than ``samples`` where the data ended early.
    without_gradient
        Name of a parameter that was asked for and is not in ``values`` -> why. The caller decides
        their importance.
    aliases
        Any other name of these parameters (tied ones have several) -> its name in ``values`` or
        ``without_gradient``.
    """

    values: dict[str, Tensor]
    samples: int
    requested: int
    without_gradient: dict[str, str] = attrs.field(factory=dict)
    aliases: dict[str, str] = attrs.field(factory=dict)

    def value(self, name: str) -> Tensor | None:
        """Return the sensitivity of a parameter by any of its names; None where it has none."""
        return self.values.get(self.aliases.get(name, name))
