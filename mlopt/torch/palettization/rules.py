"""Rule resolution: which rule of a configuration decides for a module.

The first of these that exists decides:

1. the key of `module_name_configs` that is exactly the name of the module,
2. the first key of `module_name_configs`, as written, that is a regular expression for the name,
3. the key of `module_type_configs` for the class of the module, or else for the nearest class that
   it is derived from,
4. `global_config`.

A rule may ask for nothing after all, because the weights of the module are too small for it; then
the module is left alone, and less specific rules are not considered.

A parameter that several modules share gets one decision, the one of ``mlopt.requests.rules``;
the more careful of two equally specific rules is the one with more bits per element.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any, Protocol, TypeVar

from torch import nn

from mlopt.requests.checked import near_matches
from mlopt.requests.keep import Keep
from mlopt.requests.rules import Claim, Resolution, RuleKind, UnmatchedRule, resolve_claims
from mlopt.torch.palettization.module_configs import ModuleConfigT, ModuleOptimizationConfig
from mlopt.torch.palettization.module_types import (
    TypeKey,
    key_text,
    matching_type_key,
    type_name,
)

NamedModule = tuple[str, nn.Module]
"""A module with its qualified name, ``""`` for the model itself."""

ConfigT_co = TypeVar("ConfigT_co", bound=ModuleOptimizationConfig, covariant=True)


class ModuleRules(Protocol[ConfigT_co]):
    """Interface of an ``OptimizationConfig``: its rules, and what one asks for a module."""

    global_config: Any
    module_type_configs: dict[TypeKey, Any]
    module_name_configs: dict[str, Any]

    def config_for(self, rule: Any, module: nn.Module) -> ConfigT_co | Keep:
        """Return what a rule asks for a module; Keep, if it asks for nothing after all."""


def resolve(
    config: ModuleRules[ModuleConfigT], name: str, module: nn.Module
) -> Resolution[ModuleConfigT]:
    """Return the decision of `config` for the module with a qualified name."""
    return resolve_shared(config, [(name, module)])


def resolve_shared(
    config: ModuleRules[ModuleConfigT], owners: Sequence[NamedModule]
) -> Resolution[ModuleConfigT]:
    """Return the one decision of `config` for a parameter.

    Parameters
    ----------
    config
        The configuration.
    owners
        The modules, at least one, that own the parameter.
    """
    claims = [_claim(config, name, module) for name, module in owners]
    return resolve_claims(claims, preference=_preference)


def _claim(
    config: ModuleRules[ModuleConfigT], name: str, module: nn.Module
) -> Claim[ModuleConfigT]:
    user = f"{type(module).__name__} {name!r}"
    kind, key, rule = rule_for(config, name, module)
    wanted = None if rule is None else config.config_for(rule, module)
    if isinstance(wanted, Keep):
        return Claim(user, kind, key, None, wanted)
    return Claim(user, kind, key, wanted)


def rule_for(
    config: ModuleRules[Any], name: str, module: nn.Module
) -> tuple[RuleKind, str | None, Any]:
    """Return the rule that decides for a module: its kind, its key, and what it says."""
    by_name, by_type = config.module_name_configs, config.module_type_configs
    key = _matching_name_key(by_name, name)
    if key is not None:
        return "module_name_configs", key, by_name[key]
    type_key = matching_type_key(by_type, type(module))
    if type_key is not None:
        return "module_type_configs", key_text(type_key), by_type[type_key]
    return "global_config", None, config.global_config


def _matching_name_key(keys: Collection[str], name: str) -> str | None:
    """Return the key for a module's name: the exact one, or else the first expression."""
    if name in keys:
        return name
    return next((key for key in keys if _is_expression_for(key, name)), None)


def _is_expression_for(key: str, name: str) -> bool:
    return _flaw_of_expression(key) is None and re.fullmatch(key, name) is not None


def _flaw_of_expression(key: str) -> str | None:
    try:
        re.compile(key)
    except (re.error, OverflowError) as error:
        return str(error)
    return None


def _preference(config: ModuleOptimizationConfig) -> tuple[float, bool, int, bool, bool]:
    bits = config.n_bits / config.vector_length
    has_float_table = config.lut_dtype_name is None
    groups = (config.is_grouped, -(config.group_size or 0))
    return (bits, *groups, has_float_table, config.enable_per_channel_scale)


def unmatched_rules(
    config: ModuleRules[Any], modules: Sequence[NamedModule], with_weights: Set[str]
) -> tuple[UnmatchedRule, ...]:
    """Return the rules of `config` that match no module with weights to palettize, types first.

    A rule counts as matched even where a more specific one decides.

    Parameters
    ----------
    config
        The configuration.
    modules
        **All** modules of the model, to tell one without weights from one that does not exist.
    with_weights
        The names of those with weights of their own that can be palettized.
    """
    weighted = [(name, module) for name, module in modules if name in with_weights]
    unmatched = []
    for type_key in config.module_type_configs:
        if not _matches_type(type_key, weighted):
            key = key_text(type_key)
            near = near_matches(key, _type_names(weighted, qualified="." in key))
            reason = _reason_of_type(type_key, modules)
            unmatched.append(UnmatchedRule("module_type_configs", key, near, reason))
    for key in config.module_name_configs:
        if not _matches_name(key, weighted):
            near = near_matches(key, [name for name, _ in weighted])
            reason = _reason_of_name(key, modules, weighted)
            unmatched.append(UnmatchedRule("module_name_configs", key, near, reason))
    return tuple(unmatched)


def _matches_type(key: TypeKey, modules: Iterable[NamedModule]) -> bool:
    return any(matching_type_key([key], type(module)) is not None for _, module in modules)


def _matches_name(key: str, modules: Iterable[NamedModule]) -> bool:
    return any(_matching_name_key([key], name) is not None for name, _ in modules)


def _type_names(modules: Iterable[NamedModule], *, qualified: bool) -> list[str]:
    types = {type(module) for _, module in modules}
    return sorted(type_name(cls) if qualified else cls.__name__ for cls in types)


def _reason_of_type(key: TypeKey, modules: Sequence[NamedModule]) -> str:
    if _matches_type(key, modules):
        return "the model has modules of this type, but none with weights to palettize"
    if isinstance(key, str) and _matches_name(key, modules):
        return "this is a name, not a type; put it under module_name_configs"
    return "the model has no module of this type"


def _reason_of_name(
    key: str, modules: Sequence[NamedModule], weighted: Sequence[NamedModule]
) -> str:
    if _matches_name(key, modules):
        reason = "the model has a module of this name, but without weights to palettize"
        inside = rf"{re.escape(key)}\..*" if key else ".*"
        if any(name == key for name, _ in modules) and _matches_name(inside, weighted):
            return f"{reason} of its own; those inside it have the names {inside!r}"
        return reason
    if _matches_type(key, modules):
        return "this is a type, not a name; put it under module_type_configs"
    flaw = _flaw_of_expression(key)
    if flaw is not None:
        return (
            f"the model has no module of this name, and it is not a regular expression: {flaw} "
            "(any text is '.*')"
        )
    return "the model has no module of this name"
