"""Resolution of rules: which rule of a configuration decides for a weight, by names alone.

For one operation that reads the weight, the first of these that exists decides:

1. a key of `op_name_configs` that is exactly a name of the weight (it has several names where
   constants of different names share their stored values),
2. a key of `op_name_configs` that is exactly the name of the operation,
3. the first key of `op_name_configs`, as written, that is a glob over either name,
4. a key of `op_type_configs` that is exactly the type of the operation,
5. the first key of `op_type_configs`, as written, that is a glob over the type,
6. `global_config`.

A weight that several operations read gets one decision, the one of ``mlopt.requests.rules``;
of two equally specific rules it prefers the one with more bits per weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.requests.checked import near_matches
from mlopt.requests.rules import Claim, Resolution, RuleKind, UnmatchedRule, resolve_claims

OperationKey = tuple[str, str]
"""Name and type of an operation, as far as rules look at it."""


class Rules(Protocol):
    """The rules of a :class:`mlopt.coreml.OptimizationConfig`, as this module uses them."""

    global_config: Any
    op_type_configs: dict[str, Any]
    op_name_configs: dict[str, Any]


def resolve(
    config: Rules,
    weight_name: str,
    consumers: Sequence[OperationKey],
    *,
    aliases: Sequence[str] = (),
) -> Resolution[OpPalettizerConfig]:
    """Return the resolution of `config` for a weight, whose consumers may have different rules.

    Parameters
    ----------
    config
        The configuration.
    weight_name
        The name of the constant.
    consumers
        Name and type of each operation that reads it; repeated ones count once.
    aliases
        Further names of the weight: those of other constants that share its stored values.
    """
    names = (weight_name, *aliases)
    claims = [
        Claim(f"constant {name!r}", "op_name_configs", name, config.op_name_configs[name])
        for name in names
        if name in config.op_name_configs
    ]
    if not claims:
        claims = [_claim(config, names, consumer) for consumer in dict.fromkeys(consumers)]
    if not claims:
        claims = [_claim(config, names, None)]
    return resolve_claims(claims, preference=_preference)


def rule_for(
    config: Rules, consumer: OperationKey, *weight_names: str
) -> OpPalettizerConfig | Any | None:
    """Return the rule of `config` for one operation and weights of these names."""
    return _claim(config, weight_names, consumer).config


def _claim(
    config: Rules, weight_names: Sequence[str], consumer: OperationKey | None
) -> Claim[OpPalettizerConfig]:
    names = [*weight_names] if consumer is None else [*weight_names, consumer[0]]
    # Without consumers there is only one claim, and messages do not show its user.
    user = "constant" if consumer is None else f"{consumer[1]} {consumer[0]!r}"
    key = _matching_key(config.op_name_configs, names)
    if key is not None:
        return Claim(user, "op_name_configs", key, config.op_name_configs[key])
    if consumer is not None:
        key = _matching_key(config.op_type_configs, [consumer[1]])
        if key is not None:
            return Claim(user, "op_type_configs", key, config.op_type_configs[key])
    return Claim(user, "global_config", None, config.global_config)


def _matching_key(rules: Mapping[str, object], names: Sequence[str]) -> str | None:
    """Return the key for any of `names`: an exact one, else the first glob as written."""
    for name in names:
        if name in rules:
            return name
    return next((key for key in rules if any(fnmatchcase(name, key) for name in names)), None)


def _preference(config: OpPalettizerConfig) -> tuple[int, float, bool, float]:
    # Lossless first, then more bits; in between the user's function, of which neither is known.
    mode = {"unique": 2, "custom": 1}.get(config.mode, 0)
    bits = (config.nbits or 0) / config.cluster_dim
    return (mode, bits, config.is_grouped, -(config.group_size or math.inf))


def unmatched_rules(
    config: Rules,
    weights: Iterable[tuple[str, Sequence[OperationKey]]],
    *,
    op_names: Iterable[str] = (),
    op_types: Iterable[str] = (),
) -> tuple[UnmatchedRule, ...]:
    """Return the rules of `config` whose keys match no weight, types before names.

    A rule also counts as matched where a more specific one decides.

    Parameters
    ----------
    config
        The configuration.
    weights
        Each weight's name and its consumers, as for :func:`resolve`.
    op_names, op_types
        The names and types of **all** operations, to distinguish an operation without weights from
        one that does not exist.
    """
    names: set[str] = set()
    types: set[str] = set()
    for weight_name, consumers in weights:
        names.add(weight_name)
        names.update(name for name, _ in consumers)
        types.update(op_type for _, op_type in consumers)
    all_names, all_types = {*names, *op_names}, {*types, *op_types}
    unmatched = []
    for key in config.op_type_configs:
        if not _matches(key, types):
            reason = "the model has no operation of this type"
            if _matches(key, all_types):
                reason = "the model has operations of this type, but none has weights"
            elif key in all_names:
                reason = "this is a name, not a type; put it under op_name_configs"
            unmatched.append(_unmatched("op_type_configs", key, reason, types))
    for key in config.op_name_configs:
        if not _matches(key, names):
            reason = "the model has no weight and no operation of this name"
            if _matches(key, all_names):
                reason = "the model has an operation of this name, but it has no weights"
            elif key in all_types:
                reason = "this is a type, not a name; put it under op_type_configs"
            unmatched.append(_unmatched("op_name_configs", key, reason, names))
    return tuple(unmatched)


def _unmatched(kind: RuleKind, key: str, reason: str, weighted: set[str]) -> UnmatchedRule:
    return UnmatchedRule(kind, key, near_matches(key, sorted(weighted)), reason)


def _matches(key: str, names: set[str]) -> bool:
    return key in names or any(fnmatchcase(name, key) for name in names)
