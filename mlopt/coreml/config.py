"""Configuration of a compression run: rules that say which weights are compressed, and how.

The names, the order of the parameters and the documented behaviour are coremltools'. Three things
are stricter: every value is checked when it is set, a configuration is never changed behind its
owner's back, and an unknown key is refused instead of being carried along.

Rules may also be configs of coremltools, see ``mlopt.coreml.foreign_configs``; and a configuration
made here works with coremltools' compressors as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, Any, ClassVar

import attrs
import yaml

from mlopt.coreml import foreign_configs as foreign
from mlopt.coreml.foreign_configs import CONFIG_TYPE, checked_config_type
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.rule_values import (
    OpConfig,
    check_op_config,
    checked_rule,
    checked_rules,
    read_rule,
    written_rule,
)
from mlopt.coreml.rules import rule_for
from mlopt.errors import ConfigError
from mlopt.requests.checked import check_keys, shown
from mlopt.requests.yaml_files import read_yaml
from mlopt.whole_files import write_whole_text


def _type_rules(rules: Any) -> dict[str, OpConfig | None]:
    return checked_rules(rules, "op_type_configs")


def _name_rules(rules: Any) -> dict[str, OpConfig | None]:
    return checked_rules(rules, "op_name_configs")


def _global(config: Any) -> OpConfig | None:
    return check_op_config(config, "global_config")


@attrs.define
class OptimizationConfig:
    """Rules for compressing weights: by name, else by operation type, else globally.

    It is for :func:`palettize` and related functions, and for coremltools'
    ``linear_quantize_weights``, ``prune_weights`` and ``linear_quantize_activations``: each refuses
    rules of a kind other than its own. coremltools' OpPalettizerConfig is converted to mlopt's.

    Parameters
    ----------
    global_config
        The rule for every weight that no other rule covers. None: leave those alone.
    op_type_configs
        Operation type (``"conv"``, ``"linear"``, ...) to config, or to None to leave the weights of
        such operations alone.
    op_name_configs
        Name of an operation or of a constant to config, or to None to leave it alone.
        ``get_weights_metadata`` lists the names.

    The keys of both mappings may be globs (``"encoder.*.attn_*"``); ``mlopt.coreml.rules`` says
    which rule wins. The mappings are copied.

    Raises
    ------
    ConfigError
        A value is neither a config nor None, or a key is not a name.
    """

    # Further attributes that coremltools' compressors read, with the values of a configuration that
    # is not made for its deprecated functions.
    _is_deprecated: ClassVar[bool] = False
    _op_selector: ClassVar[None] = None

    global_config: OpConfig | None = attrs.field(default=None, converter=_global)
    op_type_configs: dict[str, OpConfig | None] = attrs.field(default=None, converter=_type_rules)
    op_name_configs: dict[str, OpConfig | None] = attrs.field(default=None, converter=_name_rules)

    def __attrs_post_init__(self) -> None:
        foreign.let_stand(OpPalettizerConfig, CONFIG_TYPE)

    def set_global(self, op_config: OpConfig | None) -> None:
        """Set the rule for every weight that no other rule covers."""
        self.global_config = op_config

    def set_op_type(self, op_type: str, op_config: OpConfig | None) -> None:
        """Set the rule for the operations of a type (or of the types that a glob matches)."""
        key, config = checked_rule(op_type, op_config, "op_type_configs")
        self.op_type_configs[key] = config

    def set_op_name(self, op_name: str, op_config: OpConfig | None) -> None:
        """Set the rule for an operation or a constant by its name (or a glob over names)."""
        key, config = checked_rule(op_name, op_config, "op_name_configs")
        self.op_name_configs[key] = config

    def _get_op_config(self, op: Any) -> OpConfig | None:
        """For coremltools' compressors: the config for one of its operations, not a const."""
        return rule_for(self, (op.name, op.op_type))

    def _get_const_op_config(self, op: Any) -> OpConfig | None:
        """For coremltools' compressors: the config for a constant, None to leave it alone."""
        if op.name in self.op_name_configs:
            return _for_coremltools(self.op_name_configs[op.name], op.name)
        readers = [reader for output in op.outputs for reader in output.child_ops]
        if readers and all(reader.op_type.startswith("constexpr_") for reader in readers):
            return self._get_const_op_config(readers[0])
        wanted = [rule_for(self, (reader.name, reader.op_type), op.name) for reader in readers]
        if any(config != wanted[0] for config in wanted):
            users = ", ".join(f"{reader.op_type}({reader.name})" for reader in readers)
            raise ConfigError(
                f"{op.name}: its users {users} have different rules; set one for the constant in "
                "op_name_configs"
            )
        return _for_coremltools(wanted[0], op.name) if wanted else None

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> OptimizationConfig:
        """The configuration that nested plain values describe; they are not modified.

        Keys, all optional: ``"config_type"`` (the class of the rules, ``"OpPalettizerConfig"`` by
        default), ``"global_config"`` (the parameters of that class, or None),
        ``"op_type_configs"`` and ``"op_name_configs"`` (name to such parameters, or to None to
        leave alone). The parameters of a rule may include a ``"config_type"`` of their own.

        Raises
        ------
        ConfigError
            A key is unknown or a value is not allowed; the message names the rule.
        """
        if not isinstance(config_dict, Mapping):
            raise ConfigError(
                f"a configuration must be a mapping, got {shown(config_dict)}; its keys are "
                "global_config, op_type_configs and op_name_configs"
            )
        config_type = checked_config_type(config_dict.get("config_type"), CONFIG_TYPE)
        misplaced = [f.name for f in attrs.fields(OpPalettizerConfig) if f.name in config_dict]
        if misplaced:
            raise ConfigError(
                f"{misplaced[0]!r} is a parameter of a rule, got it next to the rules; "
                "put it under 'global_config'"
            )
        kinds = ("op_type_configs", "op_name_configs")
        check_keys(config_dict, ["config_type", "global_config", *kinds])
        rules: dict[str, dict[str, OpConfig | None]] = {}
        for kind in kinds:
            given = config_dict.get(kind)
            if given is not None and not isinstance(given, Mapping):
                raise ConfigError(f"{kind} must be a mapping from names, got {shown(given)}")
            # Keys are checked together with the values, when the configuration is constructed.
            rules[kind] = {
                key: read_rule(values, f"{kind}[{key!r}]", config_type)
                for key, values in (given or {}).items()
            }
        values = config_dict.get("global_config")
        return cls(global_config=read_rule(values, "global_config", config_type), **rules)

    @classmethod
    def from_yaml(cls, yml: str | os.PathLike[str] | IO[Any]) -> OptimizationConfig:
        """The configuration in a YAML file, in the form of :meth:`from_dict`.

        Parameters
        ----------
        yml
            The path of a file, or an open stream.

        Raises
        ------
        ConfigError
            The file is not YAML, repeats a key, or is not a configuration; the message names it.
        OSError
            The file cannot be read.
        """
        return read_yaml(yml, cls.from_dict)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values that :meth:`from_dict` reads back to an equal configuration.

        Raises
        ------
        ConfigError
            A rule has a `lut_function`, which cannot be written down.
        """
        result: dict[str, Any] = {"config_type": CONFIG_TYPE}
        if self.global_config is not None:
            result["global_config"] = written_rule(self.global_config, "global_config")
        for kind in ("op_type_configs", "op_name_configs"):
            rules = getattr(self, kind)
            if rules:
                result[kind] = {
                    key: written_rule(config, f"{kind}[{key!r}]") for key, config in rules.items()
                }
        return result

    def to_yaml(self, yml: str | os.PathLike[str] | None = None) -> str:
        """The configuration as YAML text; also written to the path `yml` if one is given.

        Raises
        ------
        ConfigError
            A rule has a `lut_function`, which cannot be written down.
        """
        text: str = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        if yml is not None:
            write_whole_text(yml, text)
        return text


def _for_coremltools(config: OpConfig | None, name: str) -> OpConfig | None:
    """A rule as coremltools' compressors read it; refused if they cannot read all of it."""
    if not isinstance(config, OpPalettizerConfig):
        return config
    from coremltools.optimize.coreml import OpPalettizerConfig as Theirs

    values = attrs.asdict(config, recurse=False) | {"granularity": config.granularity.value}
    for parameter, default in (("lut_dtype", None), ("on_indivisible", "skip"), ("method", None)):
        value = values.pop(parameter)
        if value != default:
            raise ConfigError(
                f"{name}: coremltools' palettizer has no {parameter}, got {value!r}; palettize "
                f"with mlopt.coreml.palettize_weights, or leave {parameter} out"
            )
    return Theirs(**values)


def for_palettization(config: Any) -> OptimizationConfig:
    """Check a configuration for palettization: every rule an OpPalettizerConfig, or None.

    Parameters
    ----------
    config
        An OptimizationConfig, mlopt's or coremltools'.

    Raises
    ------
    ConfigError
        It is not a configuration, or has rules that are not for palettes; all are listed.
    """
    if not (isinstance(config, OptimizationConfig) or foreign.is_configuration(config)):
        remedy = ""
        if isinstance(config, OpPalettizerConfig) or foreign.is_compressor_config(config):
            remedy = "; wrap a single config as OptimizationConfig(global_config=...)"
        raise ConfigError(
            f"config must be an mlopt.coreml.OptimizationConfig, got {type(config).__name__}"
            f"{remedy}"
        )
    if config._op_selector is not None:
        raise ConfigError(
            "config has an op_selector, which only coremltools' deprecated compression_utils know; "
            "name what is meant in op_type_configs and op_name_configs"
        )
    # Checked again even if it is mlopt's: its mappings may have been changed directly.
    checked = OptimizationConfig(
        config.global_config, config.op_type_configs, config.op_name_configs
    )
    rules = {"global_config": checked.global_config}
    for kind in ("op_type_configs", "op_name_configs"):
        rules |= {f"{kind}[{key!r}]": rule for key, rule in getattr(checked, kind).items()}
    others = [
        f"{name} is an {type(rule).__name__}, which "
        f"{foreign.COMPRESSORS.get(type(rule).__name__, 'coremltools')} takes"
        for name, rule in rules.items()
        if not (rule is None or isinstance(rule, OpPalettizerConfig))
    ]
    if others:
        raise ConfigError(
            f"{'; '.join(others)}. To palettize, every rule must be an OpPalettizerConfig, or "
            "None to leave weights alone: put the others into a configuration of their own"
        )
    return checked
