"""Configurations: which modules of a model are palettized, and how; one class per palettizer.

The names and the documented behaviour are coremltools'; as in ``mlopt.coreml.config``, values are
checked when they are given, arguments are copied, and unknown keys are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, cast

import attrs
from torch import nn
from typing_extensions import TypeVar

from mlopt.errors import ConfigError
from mlopt.requests.checked import check_keys, integer, shown
from mlopt.requests.keep import Keep
from mlopt.requests.yaml_files import read_yaml
from mlopt.torch.palettization.dkm_config import ModuleDKMPalettizerConfig
from mlopt.torch.palettization.foreign_configs import is_foreign, parameters_of
from mlopt.torch.palettization.module_configs import (
    ModuleConfigT,
    ModuleOptimizationConfig,
    ModulePostTrainingPalettizerConfig,
    ModuleSKMPalettizerConfig,
)
from mlopt.torch.palettization.module_types import TypeKey, checked_type_key, key_text
from mlopt.torch.palettization.rules import rule_for
from mlopt.torch.palettization.thresholds import config_by_size

if TYPE_CHECKING:
    from typing_extensions import Self

RuleT = TypeVar("RuleT", default=Any)
"""The form of a rule that does not leave modules alone: mostly a config for a module."""


def _name_key(key: Any) -> str:
    # The empty name is that of the model itself.
    if isinstance(key, str):
        return key
    raise ConfigError(
        f"a key of module_name_configs must be the name of a module or a regular expression, got "
        f"{shown(key)}" + ("" if key is None else "; in YAML put it in quotes")
    )


def _rules(rules: Any, kind: str) -> Mapping[Any, Any]:
    if rules is None:
        return {}
    if not isinstance(rules, Mapping):
        raise ConfigError(f"{kind} must be a mapping from keys to configs, got {shown(rules)}")
    return rules


def _type_rules(rules: Any) -> dict[TypeKey, Any]:
    checked: dict[TypeKey, Any] = {}
    for given, config in _rules(rules, "module_type_configs").items():
        key = checked_type_key(given)
        if key in checked:
            raise ConfigError(
                f"module_type_configs has two keys for the same class, got {given!r} and "
                f"{key!r}; keep one"
            )
        checked[key] = config
    return checked


def _name_rules(rules: Any) -> dict[str, Any]:
    return {_name_key(key): config for key, config in _rules(rules, "module_name_configs").items()}


def _nsamples(value: Any) -> int:
    return integer(value, "calibration_nsamples", minimum=1)


def _read_global(instance: Any, attribute: Any, value: Any) -> Any:
    return instance._read(value, "global_config")


def _read_rules(instance: Any, attribute: Any, rules: Any) -> Any:
    return {
        key: instance._read(config, rule_text(attribute.name, key)) for key, config in rules.items()
    }


_reads_rules = attrs.setters.pipe(attrs.setters.convert, _read_rules)


@attrs.define
class OptimizationConfig(Generic[ModuleConfigT, RuleT]):
    """Base class of the configurations of all palettizers.

    A rule is a config of the class in `module_config`, coremltools' of that name, a mapping of its
    parameters, or None to leave the modules alone; ``mlopt.torch.palettization.rules`` says which
    rule wins.

    Parameters
    ----------
    global_config
        For every module that no other rule covers. None: leave those alone, except that a
        configuration without any arguments has the defaults here.
    module_type_configs
        Class of modules to rule. A key is the class, its qualified name (``"torch.nn.Linear"``) or
        its bare name (``"Linear"``), and covers derived classes too. A qualified name of a class
        that is loaded is kept as that class.
    module_name_configs
        Name of a module, as ``get_submodule`` takes it, to rule. A key may be a regular expression
        that matches the whole name; an invalid expression is only a name. The name of
        the model itself is ``""``.

    The mappings are copied. Type parameters: the configs of modules, and what rules are kept as.

    Raises
    ------
    ConfigError
        A rule or a key is not allowed; the message names the rule.
    """

    module_config: ClassVar[type[ModuleOptimizationConfig]] = ModuleOptimizationConfig

    global_config: RuleT | None = attrs.field(default=None, on_setattr=_read_global)
    module_type_configs: dict[TypeKey, RuleT | None] = attrs.field(
        default=None, converter=_type_rules, on_setattr=_reads_rules
    )
    module_name_configs: dict[str, RuleT | None] = attrs.field(
        default=None, converter=_name_rules, on_setattr=_reads_rules
    )

    def __attrs_post_init__(self) -> None:
        given = (self.global_config, self.module_type_configs, self.module_name_configs)
        # Set once more, because only setters read rules that are plain values.
        self.global_config, self.module_type_configs, self.module_name_configs = given
        if self.global_config is None and not any(given):
            self.global_config = self._read({}, "global_config")

    def set_global(self, global_config: RuleT | Mapping[str, Any] | None) -> Self:
        """Set the rule for every module that no other rule covers."""
        self.global_config = self._read(global_config, "global_config")
        return self

    def set_module_type(
        self, object_type: TypeKey, opt_config: RuleT | Mapping[str, Any] | None
    ) -> Self:
        """Set the rule for a class of modules, replacing an earlier one."""
        key = checked_type_key(object_type)
        rule = rule_text("module_type_configs", key)
        self.module_type_configs[key] = self._read(opt_config, rule)
        return self

    def set_module_name(
        self, module_name: str, opt_config: RuleT | Mapping[str, Any] | None
    ) -> Self:
        """Set the rule for a module by its name or an expression, replacing an earlier one."""
        key = _name_key(module_name)
        rule = rule_text("module_name_configs", key)
        self.module_name_configs[key] = self._read(opt_config, rule)
        return self

    def get_module_config(self, name: str, module: nn.Module) -> RuleT | None:
        """Return the rule for a module of that qualified name; None: the module is left alone."""
        rule: RuleT | None = rule_for(self, name, module)[2]
        return rule

    @classmethod
    def taken_over(cls, config: Any) -> Self:
        """Return the configuration that equals one of coremltools' class of the same name.

        Raises
        ------
        ConfigError
            It is not of that class, or has a rule that is not allowed here.
        """
        if not is_foreign(config, cls.__name__):
            got = f"{type(config).__module__}.{type(config).__name__}"
            raise ConfigError(
                f"config must be an mlopt.torch.palettization.{cls.__name__}, or coremltools' "
                f"class of that name, got {got}; convert a dictionary with its from_dict"
            )
        return cls.from_dict(parameters_of(config))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """Return the configuration that nested values describe; they are only read.

        The keys are the parameters of the class, all optional. An explicit `global_config` of None
        stays None, even without other rules.

        Raises
        ------
        ConfigError
            A key is unknown or a value not allowed; the message names the rule.
        """
        parameters = [field.name for field in attrs.fields(cls)]
        if not isinstance(config_dict, Mapping):
            raise ConfigError(
                f"a configuration must be a mapping, got {shown(config_dict)}; its keys are "
                f"{', '.join(parameters)}"
            )
        misplaced = [f.name for f in attrs.fields(cls.module_config) if f.name in config_dict]
        if misplaced:
            raise ConfigError(
                f"{misplaced[0]!r} is a parameter of a rule, got it next to the rules; "
                "put it under 'global_config'"
            )
        check_keys(config_dict, parameters)
        config = cls(**config_dict)
        if "global_config" in config_dict and config_dict["global_config"] is None:
            config.global_config = None
        return config

    @classmethod
    def from_yaml(cls, yml: str | os.PathLike[str] | IO[Any]) -> Self:
        """Return the configuration in a YAML file, in the form of :meth:`from_dict`.

        Parameters
        ----------
        yml
            The path of a file, or an open stream. An empty file has the defaults.

        Raises
        ------
        ConfigError
            It is not YAML, repeats a key, or is not a configuration; the message names the file.
        OSError
            The file cannot be read.
        """
        return read_yaml(yml, lambda values: cls.from_dict({} if values is None else values))

    def as_dict(self) -> dict[str, Any]:
        """Return nested plain values, which :meth:`from_dict` reads back as an equivalent one.

        Classes are written by their qualified names.
        """
        values = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return values | {
            "global_config": _written(self.global_config),
            "module_type_configs": {
                key_text(key): _written(config) for key, config in self.module_type_configs.items()
            },
            "module_name_configs": {
                key: _written(config) for key, config in self.module_name_configs.items()
            },
        }

    def config_for(self, rule: RuleT, module: nn.Module) -> ModuleConfigT | Keep:
        """Return what a rule asks for a module; Keep, if it asks for nothing after all.

        Parameters
        ----------
        rule
            A rule that is kept here and does not leave modules alone.
        module
            A module that has weights, with its values.
        """
        return cast("ModuleConfigT", rule)

    @classmethod
    def _read(cls, config: Any, rule: str) -> RuleT | None:
        if config is None or isinstance(config, cls.module_config):
            return cast("RuleT | None", config)
        wanted = cls.module_config.__name__
        if is_foreign(config, wanted):
            config = parameters_of(config)
        if isinstance(config, Mapping):
            try:
                return cast("RuleT", cls.module_config.from_dict(config))
            except ConfigError as error:
                raise ConfigError(f"{rule}: {error}") from error
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        raise ConfigError(
            f"{rule} must be a {wanted}, a mapping of its parameters, or None (leave alone), got "
            f"a {kind}"
        )


@attrs.define
class PostTrainingPalettizerConfig(
    OptimizationConfig[ModulePostTrainingPalettizerConfig, ModulePostTrainingPalettizerConfig]
):
    """Which modules ``PostTrainingPalettizer`` palettizes, and how.

    The parameters are those of :class:`OptimizationConfig`, the rules
    ModulePostTrainingPalettizerConfig objects, mappings of their parameters, or None.
    """

    module_config = ModulePostTrainingPalettizerConfig


@attrs.define
class SKMPalettizerConfig(OptimizationConfig[ModuleSKMPalettizerConfig, ModuleSKMPalettizerConfig]):
    """Which modules ``SKMPalettizer`` palettizes, and how.

    Parameters
    ----------
    global_config, module_type_configs, module_name_configs
        As for :class:`OptimizationConfig`; the rules are ModuleSKMPalettizerConfig objects,
        mappings of their parameters, or None.
    calibration_nsamples
        Number of samples, at least 1, from which sensitivities are computed.

    Raises
    ------
    ConfigError
        A rule, a key or the number is not allowed.
    """

    module_config = ModuleSKMPalettizerConfig

    calibration_nsamples: int = attrs.field(default=128, converter=_nsamples)


DKMRule: TypeAlias = ModuleDKMPalettizerConfig | Sequence[ModuleDKMPalettizerConfig]
"""One config for a module, or several for weights of different sizes."""


@attrs.define
class DKMPalettizerConfig(OptimizationConfig[ModuleDKMPalettizerConfig, DKMRule]):
    """Which modules ``DKMPalettizer`` palettizes, and how.

    The parameters are those of :class:`OptimizationConfig`. A rule is a ModuleDKMPalettizerConfig,
    a mapping of its parameters, None, or a list of several of the first two, with different
    `weight_threshold`: a module gets the one with the largest that all its weights exceed, and is
    left alone if they exceed none. A list is kept as a tuple, the smallest threshold first.

    Raises
    ------
    ConfigError
        A rule or a key is not allowed; the message names the rule.
    """

    module_config = ModuleDKMPalettizerConfig

    def config_for(self, rule: DKMRule, module: nn.Module) -> ModuleDKMPalettizerConfig | Keep:
        """Return the config for a module's weights, with its `n_bits`; Keep if too small."""
        return config_by_size(_candidates(rule), module)

    @classmethod
    def _read(cls, config: Any, rule: str) -> DKMRule | None:
        if not isinstance(config, (list, tuple)):
            return super()._read(config, rule)
        read_one = super()._read
        read = [read_one(item, f"{rule}[{n}]") for n, item in enumerate(config)]
        configs = [item for item in read if isinstance(item, ModuleDKMPalettizerConfig)]
        if not read or len(configs) < len(read):
            raise ConfigError(
                f"{rule}: a list must hold one config or more, got "
                f"{'None in one' if read else 'an empty one'}; "
                "to leave modules alone, give None instead of a list"
            )
        thresholds = [item.weight_threshold for item in configs]
        if len(set(thresholds)) < len(thresholds):
            raise ConfigError(
                f"{rule}: the configs in a list must have different weight_threshold, got "
                f"{', '.join(map(str, thresholds))}"
            )
        return tuple(sorted(configs, key=lambda item: item.weight_threshold))


def _candidates(rule: DKMRule) -> Sequence[ModuleDKMPalettizerConfig]:
    return (rule,) if isinstance(rule, ModuleDKMPalettizerConfig) else rule


def rule_text(kind: str, key: TypeKey) -> str:
    """Name a rule for a message: ``"module_type_configs['torch.nn.Linear']"``."""
    return f"{kind}[{key_text(key)!r}]"


def _written(rule: Any) -> Any:
    """Return a rule as plain values."""
    if isinstance(rule, tuple):
        return [_written(config) for config in rule]
    return None if rule is None else rule.as_dict()
