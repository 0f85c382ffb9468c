"""Values of a rule of a configuration: checks, and conversion from and to plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from mlopt.coreml import foreign_configs as foreign
from mlopt.coreml.foreign_configs import CONFIG_TYPE, checked_config_type
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.requests.checked import shown

OpConfig: TypeAlias = OpPalettizerConfig | Any
"""A rule other than None: an OpPalettizerConfig, or a config for one of coremltools' own
compressors."""


def check_op_config(config: object, rule: str) -> OpConfig | None:
    """Return the config as it is stored, coremltools' config for palettes as mlopt's own.

    Anything else but a config is refused. ``rule``: the name of the rule in messages.
    """
    if config is None or isinstance(config, OpPalettizerConfig):
        return config
    if foreign.is_palettizer_config(config):
        try:
            return OpPalettizerConfig(**foreign.parameters_of(config))
        except ConfigError as error:
            raise ConfigError(f"{rule}: {error}") from error
    if foreign.is_compressor_config(config):
        return config
    kind = f"{type(config).__module__}.{type(config).__qualname__}"
    remedy = ""
    if isinstance(config, Mapping):
        remedy = "; plain values go through OptimizationConfig.from_dict"
    raise ConfigError(
        f"{rule} must be an OpPalettizerConfig or None (leave alone), got a {kind}{remedy}"
    )


def _check_type_of_operation(key: str, config: Any, rule: str) -> None:
    """Refuse a config of coremltools that is not for operations of this type."""
    if config is None or isinstance(config, OpPalettizerConfig):
        return
    try:
        config._validate_op_type(key)
    except ValueError as error:
        raise ConfigError(f"{rule}: {error}") from error


def _check_key(key: object, kind: str) -> str:
    if not isinstance(key, str) or not key:
        remedy = "; in YAML put it in quotes" if key is not None else ""
        raise ConfigError(f"a key of {kind} must be a name, got {shown(key)}{remedy}")
    if kind == "op_type_configs" and key == "const":
        raise ConfigError(
            "op_type_configs cannot have the key 'const': a constant takes the rule of the "
            "operations that use it; name it in op_name_configs, or use global_config for all"
        )
    return key


def checked_rule(key: object, config: object, kind: str) -> tuple[str, OpConfig | None]:
    """Return the checked key and config of a rule in the mapping ``kind``."""
    name, rule = _check_key(key, kind), f"{kind}[{key!r}]"
    checked = check_op_config(config, rule)
    if kind == "op_type_configs":
        _check_type_of_operation(name, checked, rule)
    return name, checked


def checked_rules(rules: Any, kind: str) -> dict[str, OpConfig | None]:
    """Return a checked copy of a mapping of rules; of None, an empty one."""
    if rules is None:
        return {}
    if not isinstance(rules, Mapping):
        raise ConfigError(f"{kind} must be a mapping from names to configs, got {shown(rules)}")
    return dict(checked_rule(key, config, kind) for key, config in rules.items())


def read_rule(values: Any, rule: str, config_type: str) -> OpConfig | None:
    """Return the config that plain values describe; ``config_type``: its default type."""
    is_config = isinstance(values, OpPalettizerConfig) or foreign.is_compressor_config(values)
    if values is None or is_config:
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{rule}: the parameters of a rule must be a mapping, got {shown(values)}; "
            "None (null) leaves the weights alone"
        )
    try:
        kind = checked_config_type(values.get("config_type"), config_type)
        if kind == CONFIG_TYPE:
            return OpPalettizerConfig.from_dict(values)
        return foreign.read_rule(values, kind)
    except ConfigError as error:
        raise ConfigError(f"{rule}: {error}") from error


def written_rule(config: OpConfig | None, rule: str) -> dict[str, Any] | None:
    """Return the plain values that :func:`read_rule` reads back to an equal config."""
    try:
        if config is None:
            return None
        if isinstance(config, OpPalettizerConfig):
            return config.as_dict()
        return foreign.plain_values(config)
    except ConfigError as error:
        raise ConfigError(f"{rule}: {error}") from error
