"""One decision about a weight that several users have a say in.

Where they agree, that is it. Else the most specific rule decides (name before type before global),
and among equally specific ones the more careful: to leave the weight alone before everything, then
what the caller takes for more careful.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import attrs

RuleKind = Literal[
    "op_name_configs",
    "op_type_configs",
    "module_name_configs",
    "module_type_configs",
    "global_config",
]
_SPECIFICITY = {
    "global_config": 0,
    "op_type_configs": 1,
    "module_type_configs": 1,
    "op_name_configs": 2,
    "module_name_configs": 2,
}


class Request(Protocol):
    """What a rule asks for, if not to leave a weight alone."""

    @property
    def summary(self) -> str:
        """The request in a few words."""


RequestT = TypeVar("RequestT", bound=Request)


@attrs.frozen
class Wish(Generic[RequestT]):
    """What one user of a weight asks for.

    Parameters
    ----------
    user
        Who asks, for a message: ``"linear 'head'"``.
    kind, key
        The rule that decides for this user; its key as written, None for `global_config`.
    config
        What the rule says; None: leave the weight alone.
    """

    user: str
    kind: RuleKind
    key: str | None
    config: RequestT | None

    @property
    def rule(self) -> str:
        """The rule for a report: ``"op_name_configs['conv1']"``, ``"no rule"``."""
        if self.key is not None:
            return f"{self.kind}[{self.key!r}]"
        return "no rule" if self.config is None else self.kind

    def __str__(self) -> str:
        wish = "to be left alone" if self.config is None else self.config.summary
        return f"{self.user} {wish} ({self.rule})"


def agree(
    wishes: Sequence[Wish[RequestT]], *, carefulness: Callable[[RequestT], tuple[Any, ...]]
) -> tuple[Wish[RequestT], str | None]:
    """The wish that is granted, and a note about the others; None where all ask for the same.

    Parameters
    ----------
    wishes
        At least one. Among equally good ones the first is granted.
    carefulness
        What to compare equally specific rules by; the greater is the more careful.
    """

    def precedence(wish: Wish[RequestT]) -> tuple[int, bool, tuple[Any, ...]]:
        care = () if wish.config is None else carefulness(wish.config)
        return (_SPECIFICITY[wish.kind], wish.config is None, care)

    winner = max(wishes, key=precedence)
    losers = [wish for wish in wishes if wish.config != winner.config]
    if not losers:
        return winner, None
    equally_specific = any(
        _SPECIFICITY[loser.kind] == _SPECIFICITY[winner.kind] for loser in losers
    )
    law = "the more careful one" if equally_specific else "the more specific one"
    asked = "; ".join(str(wish) for wish in (winner, *losers))
    return winner, f"its users ask for different things, {law} wins: {asked}"
