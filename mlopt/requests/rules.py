"""The rules of a configuration: the one that decides for a weight, and those that apply to none.

A weight that several users read, or own, gets one decision. If they ask for the same, that is it.
Otherwise the most specific rule decides (name before type before global), and among equally
specific ones the more careful: to leave the weight alone first, then the caller's preference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import attrs

from mlopt.requests.checked import did_you_mean
from mlopt.requests.keep import Keep

RuleKind = Literal[
    "op_name_configs",
    "op_type_configs",
    "module_name_configs",
    "module_type_configs",
    "global_config",
]
_SPECIFICITY: dict[RuleKind, int] = {
    "global_config": 0,
    "op_type_configs": 1,
    "module_type_configs": 1,
    "op_name_configs": 2,
    "module_name_configs": 2,
}


class Request(Protocol):
    """The content of a rule that does not leave a weight alone."""

    @property
    def summary(self) -> str:
        """The request in a few words."""


RequestT = TypeVar("RequestT", bound=Request)


@attrs.frozen
class Claim(Generic[RequestT]):
    """The request of one user of a weight: what the rule for it says.

    Parameters
    ----------
    user
        The operation or module, as messages name it: ``"linear 'head'"``.
    kind, key
        The rule that decides for this user, and its key as written; None for `global_config`.
    config
        What the rule says; None: leave the weight alone.
    keep
        Why the weight is left alone although the rule does not say so.
    """

    user: str
    kind: RuleKind
    key: str | None
    config: RequestT | None
    keep: Keep | None = None

    @property
    def rule(self) -> str:
        """The rule for a report: ``"op_name_configs['conv1']"``, ``"no rule"``."""
        if self.key is not None:
            return f"{self.kind}[{self.key!r}]"
        return "no rule" if self.config is None and self.keep is None else self.kind

    def __str__(self) -> str:
        request = "to be left alone" if self.config is None else self.config.summary
        reason = "" if self.keep is None else f": {self.keep.reason}"
        return f"{self.user} {request} ({self.rule}){reason}"


@attrs.frozen
class Resolution(Generic[RequestT]):
    """The decision of a configuration about one weight.

    Parameters
    ----------
    config
        How to palettize it; None: leave it alone.
    rule
        The rule that decided, ``"op_name_configs['conv1']"``, ``"global_config"``, or
        ``"no rule"``.
    note
        Users of the weight (operations or modules) that ask for something else, and why this rule
        won. None if there are none.
    keep
        Why the weight is left alone although the rule does not say so; None otherwise.
    """

    config: RequestT | None
    rule: str
    note: str | None = None
    keep: Keep | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The note, if there is one."""
        return () if self.note is None else (self.note,)

    @property
    def reason_to_keep(self) -> Keep:
        """Why the weight is left alone, if `config` is None."""
        if self.keep is not None:
            return self.keep
        return Keep("no rule applies" if self.rule == "no rule" else f"left alone by {self.rule}")


def resolve_claims(
    claims: Sequence[Claim[RequestT]], *, preference: Callable[[RequestT], tuple[Any, ...]]
) -> Resolution[RequestT]:
    """The one decision of a configuration about a weight.

    Parameters
    ----------
    claims
        One for each user, at least one. Among equally good ones the first wins.
    preference
        The key by which equally specific rules are compared; the greater is the more careful.
    """

    def precedence(claim: Claim[RequestT]) -> tuple[int, bool, tuple[Any, ...]]:
        preferred = () if claim.config is None else preference(claim.config)
        return (_SPECIFICITY[claim.kind], claim.config is None, preferred)

    winner = max(claims, key=precedence)
    losers = [claim for claim in claims if claim.config != winner.config]
    if not losers:
        return Resolution(winner.config, winner.rule, keep=winner.keep)
    equally_specific = any(
        _SPECIFICITY[loser.kind] == _SPECIFICITY[winner.kind] for loser in losers
    )
    law = "the more careful one" if equally_specific else "the more specific one"
    asked = "; ".join(str(claim) for claim in (winner, *losers))
    note = f"its users ask for different things, {law} wins: {asked}"
    return Resolution(winner.config, winner.rule, note, winner.keep)


@attrs.frozen
class UnmatchedRule:
    """A rule that applies to no weight of the model.

    Parameters
    ----------
    kind
        ``"op_name_configs"``, ``"op_type_configs"``, ``"module_name_configs"`` or
        ``"module_type_configs"``.
    key
        The key as written.
    near_matches
        Names or types with weights that look like the key.
    reason
        Why the key matches nothing.
    """

    kind: RuleKind
    key: str
    near_matches: tuple[str, ...] = ()
    reason: str = "nothing matches it"

    def __str__(self) -> str:
        return f"{self.kind}[{self.key!r}]: {self.reason}{did_you_mean(self.near_matches)}"

    def as_dict(self) -> dict[str, Any]:
        """The rule as JSON values."""
        return {
            "kind": self.kind,
            "key": self.key,
            "near_matches": list(self.near_matches),
            "reason": self.reason,
        }
