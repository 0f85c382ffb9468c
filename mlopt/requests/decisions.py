"""What happens to one weight, before anything is clustered."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs

from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep
from mlopt.requests.rules import RequestT

WeightT = TypeVar("WeightT")
"""A weight of a Core ML model, or a parameter of a module."""


@attrs.frozen(eq=False)
class Decision(Generic[WeightT, RequestT]):
    """What happens to one weight.

    Parameters
    ----------
    weight
        The weight of a Core ML model, or the parameter of a module.
    result
        The palette that it gets, or why it is kept.
    rule
        The rule that decided, as in :class:`mlopt.requests.rules.Resolution`.
    notes
        What else a reader should know, one sentence each.
    config
        What was asked for; None: nothing.
    is_elementwise
        Whether only elementwise operations read the weight.
    """

    weight: WeightT
    result: PaletteSpec | Keep
    rule: str
    notes: tuple[str, ...] = ()
    config: RequestT | None = None
    is_elementwise: bool = False
