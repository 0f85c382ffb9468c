"""What a rule of a configuration may be: its checks, and its plain values read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from mlopt.coreml import foreign_configs as foreign
from mlopt.coreml.foreign_configs import CONFIG_TYPE, checked_config_type
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.errors import ConfigError
from mlopt.requests.checked import shown

OpConfig: TypeAlias = OpPalettizerConfig | Any
"""A rule that does not leave weights alone: an OpPalettizerConfig, or a config of coremltools for a
compressor of its own."""


def check_op_config(config: object, rule: str) -> OpConfig | None:
    """The config as it is kept: that of coremltools for palettes as mlopt's; others are refused.

    ``rule``: the rule, as messages name it.
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
    """Have a config of coremltools say whether it is for such operations."""
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
    """The key and the config of a rule in the mapping ``kind`` as they are kept."""
    name, rule = _check_key(key, kind), f"{kind}[{key!r}]"
    checked = check_op_config(config, rule)
    if kind == "op_type_configs":
        _check_type_of_operation(name, checked, rule)
    return name, checked


def checked_rules(rules: Any, kind: str) -> dict[str, OpConfig | None]:
    """A checked copy of a mapping of rules; None has none."""
    if rules is None:
        return {}
    if not isinstance(rules, Mapping):
        raise ConfigError(f"{kind} must be a mapping from names to configs, got {shown(rules)}")
    return dict(checked_rule(key, config, kind) for key, config in rules.items())


def read_rule(values: Any, rule: str, config_type: str) -> OpConfig | None:
    """The config that plain values describe; ``config_type``: of which kind if they do not tell."""
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
    """The plain values that :func:`read_rule` reads back to an equal config."""
    try:
        if config is None:
            return None
        if isinstance(config, OpPalettizerConfig):
            return config.as_dict()
        return foreign.plain_values(config)
    except ConfigError as error:
        raise ConfigError(f"{rule}: {error}") from error
