"""What the rules of a configuration come to: one decision per weight, and rules without effect."""

from __future__ import annotations

from typing import Any, Generic

import attrs

from mlopt.requests.agreement import RequestT, RuleKind
from mlopt.requests.checked import did_you_mean


@attrs.frozen
class Resolution(Generic[RequestT]):
    """What a configuration says about one weight.

    Parameters
    ----------
    config
        How to palettize it; None: leave it alone.
    rule
        The rule that decided, ``"op_name_configs['conv1']"``, ``"global_config"``, or
        ``"no rule"``.
    note
        Which users of the weight (operations or modules) ask for something else, and why this rule
        won. None where they agree.
    """

    config: RequestT | None
    rule: str
    note: str | None = None


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
        What the key fails to match.
    """

    kind: RuleKind
    key: str
    near_matches: tuple[str, ...] = ()
    reason: str = "nothing matches it"

    def __str__(self) -> str:
        return f"{self.kind}[{self.key!r}]: {self.reason}{did_you_mean(self.near_matches)}"

    def as_dict(self) -> dict[str, Any]:
        """The rule as values that JSON has."""
        return {
            "kind": self.kind,
            "key": self.key,
            "near_matches": list(self.near_matches),
            "reason": self.reason,
        }
