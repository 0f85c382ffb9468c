"""What happens to one weight, before anything is clustered."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs

from mlopt.palette.value.spec import PaletteSpec
from mlopt.requests.keep import Keep
from mlopt.requests.rules import RequestT

SubjectT = TypeVar("SubjectT")
"""What a decision is about: a weight of a Core ML model, or a parameter of a module."""


@attrs.frozen(eq=False)
class Decision(Generic[SubjectT, RequestT]):
    """What happens to one weight.

    Parameters
    ----------
    subject
        The weight.
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

    subject: SubjectT
    result: PaletteSpec | Keep
    rule: str
    notes: tuple[str, ...] = ()
    config: RequestT | None = None
    is_elementwise: bool = False
