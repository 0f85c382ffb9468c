"""What a user asks for: how to palettize a weight, and which weights to palettize.

The names, the order of the parameters and the documented behaviour are coremltools'. Three things
are stricter: every value is checked when it is given, a configuration is never changed behind its
owner's back, and a key that means nothing is refused instead of being carried along.

Rules may also be configs of coremltools, see ``mlopt.coreml.foreign_configs``; and a configuration
made here serves coremltools' compressors as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, TypeAlias

import attrs
import yaml

from mlopt.coreml import foreign_configs as foreign
from mlopt.errors import ConfigError
from mlopt.palette.value.spec import MODES, NBITS
from mlopt.requests.checked import (
    check_keys,
    flag,
    index_bits,
    integer,
    listed,
    lut_dtype_name,
    shown,
    word,
)
from mlopt.requests.granularity import Granularity, summary_of
from mlopt.requests.layout import ON_INDIVISIBLE, OnIndivisible
from mlopt.requests.yaml_files import read_yaml

DEFAULT_WEIGHT_THRESHOLD = 2048

CONFIG_TYPE = "OpPalettizerConfig"
CONFIG_TYPES = (CONFIG_TYPE, *foreign.COMPRESSORS)


CompressionGranularity = Granularity  # the name that coremltools gives to it


def _mode(value: Any) -> str:
    return word(value, "mode", MODES)


def _granularity(value: Any) -> Granularity:
    return Granularity.parse(value)


def _group_size(value: Any) -> int:
    return 0 if value is None else integer(value, "group_size", minimum=0)


def _cluster_dim(value: Any) -> int:
    return integer(value, "cluster_dim", minimum=1)


def _per_channel_scale(value: Any) -> bool:
    return flag(value, "enable_per_channel_scale")


def _workers(value: Any) -> int:
    return integer(value, "num_kmeans_workers")


def _on_indivisible(value: Any) -> OnIndivisible:
    return word(value, "on_indivisible", ON_INDIVISIBLE)


def _nbits(value: Any) -> int | None:
    return None if value is None else index_bits(value, "nbits")


def _channel_axis(value: Any) -> int | None:
    return None if value is None else integer(value, "channel_axis")


def _threshold(value: Any) -> int:
    if value is None:
        return DEFAULT_WEIGHT_THRESHOLD
    return integer(value, "weight_threshold", minimum=0)


@attrs.frozen
class OpPalettizerConfig:
    """How the weights of an operation are palettized. Immutable; vary it with ``attrs.evolve``.

    Parameters
    ----------
    mode
        How the table is made: ``"kmeans"`` (default; the clusters of least squared error),
        ``"uniform"`` (equal steps from the smallest to the largest weight), ``"unique"`` (the
        distinct values, where at most 256; lossless) or ``"custom"`` (`lut_function` decides).
        Any case; kept in lower case.
    nbits
        Bits per index: 1, 2, 3, 4, 6 or 8, for a table of ``2**nbits`` entries. Needed by kmeans
        and uniform; None for unique and custom, which find their own.
    lut_function
        For custom only: ``weight -> (table, indices)``, lists or arrays.
    granularity
        ``"per_tensor"`` (default) or ``"per_grouped_channel"``: a table for each `group_size`
        channels.
    group_size
        Channels that share a table; 0 or None: all of them. Only used when granularity is
        per_grouped_channel.
    channel_axis
        The axis whose channels form groups or vectors, negative counts from the end. None: chosen
        by the type of the operation.
    cluster_dim
        Weights along the channel axis that one table entry stands for; above 1 the table holds
        vectors. Not with uniform. Where it does not divide a group, the weight is left alone.
    enable_per_channel_scale
        Divide each output channel by its largest magnitude before clustering, and store that scale.
        Clusters are those of least error of the weights themselves, so that channels of large
        weights count most: on trained models that served the answers at least as well as counting
        all channels alike, mostly far better (``benchmarks.scale_importance``). A channel of zeros
        stays zero.
    num_kmeans_workers
        Threads that cluster at the same time, where ``workers`` of :func:`palettize` does not say:
        the largest number above 1 in a configuration; with none, one a processor. The result does
        not depend on it.
    weight_threshold
        Weights of **more** elements than this are palettized. None: 2048.
    lut_dtype
        ``"int8"`` or ``"uint8"`` (also numpy's and torch's types of these names):
        tables are stored in 8 bits with one scale for all tables of a weight, and an offset for
        uint8. Needs iOS18; not with unique. None: in the dtype of the weight.
    on_indivisible
        Where `group_size` does not divide the number of channels: ``"skip"`` leaves the weight
        alone, ``"divisor"`` takes the largest divisor not above `group_size`, ``"per_tensor"``
        uses one table.

    Raises
    ------
    ConfigError
        A value is not allowed, or two values contradict each other.
    """

    mode: str = attrs.field(default="kmeans", converter=_mode)
    nbits: int | None = attrs.field(default=None, converter=_nbits)
    lut_function: Callable[..., Any] | None = None
    granularity: Granularity = attrs.field(default=Granularity.PER_TENSOR, converter=_granularity)
    group_size: int = attrs.field(default=32, converter=_group_size)
    channel_axis: int | None = attrs.field(default=None, converter=_channel_axis)
    cluster_dim: int = attrs.field(default=1, converter=_cluster_dim)
    enable_per_channel_scale: bool = attrs.field(default=False, converter=_per_channel_scale)
    num_kmeans_workers: int = attrs.field(default=1, converter=_workers)
    weight_threshold: int = attrs.field(default=DEFAULT_WEIGHT_THRESHOLD, converter=_threshold)
    lut_dtype: str | None = attrs.field(default=None, converter=lut_dtype_name)
    on_indivisible: OnIndivisible = attrs.field(default="skip", converter=_on_indivisible)

    def __attrs_post_init__(self) -> None:
        chooses_nbits = self.mode in ("unique", "custom")
        if self.nbits is None and not chooses_nbits:
            raise ConfigError(
                f"nbits is required by mode {self.mode!r}, got None; allowed: {listed(NBITS)}"
            )
        if self.nbits is not None and chooses_nbits:
            raise ConfigError(
                f"nbits must be None for mode {self.mode!r}, which finds its own, got "
                f"{self.nbits}; leave it out, or use mode 'kmeans' or 'uniform'"
            )
        if self.lut_function is None and self.mode == "custom":
            raise ConfigError("mode 'custom' needs a lut_function, got None; give a callable")
        if self.lut_function is not None and self.mode != "custom":
            raise ConfigError(
                f"lut_function belongs to mode 'custom' only, got mode {self.mode!r}; "
                "set mode='custom' or leave lut_function out"
            )
        if self.lut_function is not None and not callable(self.lut_function):
            raise ConfigError(f"lut_function must be callable, got {shown(self.lut_function)}")
        if self.lut_dtype is not None and self.mode == "unique":
            raise ConfigError(
                f"mode 'unique' stores the distinct values exactly, which a table of "
                f"{self.lut_dtype} cannot, got lut_dtype={self.lut_dtype!r}; leave lut_dtype out, "
                "or use mode 'kmeans' with nbits"
            )
        if self.cluster_dim > 1 and self.mode == "uniform":
            raise ConfigError(
                f"mode 'uniform' has no table of vectors, got cluster_dim={self.cluster_dim}; "
                "use cluster_dim=1, or mode 'kmeans'"
            )

    @property
    def is_grouped(self) -> bool:
        """Whether groups of channels have tables of their own."""
        return self.granularity is Granularity.PER_GROUPED_CHANNEL

    @property
    def summary(self) -> str:
        """The request in a few words: ``"4-bit kmeans, groups of 32, vectors of 2"``."""
        return summary_of(
            self.mode if self.nbits is None else f"{self.nbits}-bit {self.mode}",
            group_size=self.group_size or None if self.is_grouped else None,
            vector_length=self.cluster_dim,
            has_scale=self.enable_per_channel_scale,
            lut_dtype=self.lut_dtype,
        )

    def _validate_op_type(self, op_type: str) -> None:
        """For coremltools' configurations: palettes are for operations of any type."""

    def as_dict(self) -> dict[str, Any]:
        """The parameters as plain values that :meth:`from_dict` reads back to an equal config.

        What is None is left out, and so are the two parameters that coremltools lacks where they
        have their default, so that coremltools reads the dictionary too where it can.

        Raises
        ------
        ConfigError
            There is a `lut_function`: a function cannot be written down.
        """
        if self.lut_function is not None:
            raise ConfigError(
                "a config with a lut_function cannot be written as plain values, got "
                f"{self.lut_function!r}; construct it in Python"
            )
        values = {f.name: getattr(self, f.name) for f in attrs.fields(OpPalettizerConfig)}
        values["granularity"] = self.granularity.value
        if self.on_indivisible == "skip":
            del values["on_indivisible"]
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OpPalettizerConfig:
        """The config that a mapping of parameters describes; the mapping is only read.

        ``"config_type"`` may be among the keys if it says ``"OpPalettizerConfig"``.

        Raises
        ------
        ConfigError
            A key is unknown, a value is not allowed, or a `lut_function` is given: a function has
            no plain form, such a config has to be constructed.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"the parameters of a rule must be a mapping, got {shown(values)}; "
                "None (null) leaves the weights alone"
            )
        config_type = _config_type(values.get("config_type"), CONFIG_TYPE)
        if config_type != CONFIG_TYPE:
            raise ConfigError(
                f"these are the parameters of an {config_type}, got config_type={config_type!r}; "
                "read them with OptimizationConfig.from_dict"
            )
        allowed = [f.name for f in attrs.fields(OpPalettizerConfig)]
        check_keys(values, [*allowed, "config_type"])
        if values.get("lut_function") is not None:
            raise ConfigError(
                "lut_function cannot come from a dictionary or a file, got "
                f"{shown(values['lut_function'])}; construct "
                "OpPalettizerConfig(mode='custom', lut_function=...) and set it with set_global, "
                "set_op_type or set_op_name"
            )
        return cls(**{name: value for name, value in values.items() if name != "config_type"})


OpConfig: TypeAlias = OpPalettizerConfig | Any
"""A rule that does not leave weights alone: an OpPalettizerConfig, or a config of coremltools for a
compressor of its own."""


def _config_type(given: object, default: str) -> str:
    if given is None:
        return default
    if isinstance(given, str) and given in CONFIG_TYPES:
        return given
    raise ConfigError(f"config_type must be {listed(CONFIG_TYPES)}, got {shown(given)}")


def _check_op_config(config: object, rule: str) -> OpConfig | None:
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


def _checked_rule(key: object, config: object, kind: str) -> tuple[str, OpConfig | None]:
    name, rule = _check_key(key, kind), f"{kind}[{key!r}]"
    checked = _check_op_config(config, rule)
    if kind == "op_type_configs":
        _check_type_of_operation(name, checked, rule)
    return name, checked


def _rules(rules: Any, kind: str) -> dict[str, OpConfig | None]:
    """A checked copy of a mapping of rules; None has none."""
    if rules is None:
        return {}
    if not isinstance(rules, Mapping):
        raise ConfigError(f"{kind} must be a mapping from names to configs, got {shown(rules)}")
    return dict(_checked_rule(key, config, kind) for key, config in rules.items())


def _type_rules(rules: Any) -> dict[str, OpConfig | None]:
    return _rules(rules, "op_type_configs")


def _name_rules(rules: Any) -> dict[str, OpConfig | None]:
    return _rules(rules, "op_name_configs")


def _global(config: Any) -> OpConfig | None:
    return _check_op_config(config, "global_config")


@attrs.define
class OptimizationConfig:
    """Which weights are compressed, and how: by name, else by operation type, else globally.

    It is for :func:`palettize` and its kind, and for coremltools' ``linear_quantize_weights``,
    ``prune_weights`` and ``linear_quantize_activations``: each refuses rules of another kind than
    its own. An OpPalettizerConfig of coremltools is taken over as one of mlopt.

    Parameters
    ----------
    global_config
        For every weight that no other rule covers. None: leave those alone.
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
        A value is no config and not None, or a key is not a name.
    """

    # What coremltools' compressors ask a configuration for besides: as in one that is not made for
    # its deprecated functions.
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
        key, config = _checked_rule(op_type, op_config, "op_type_configs")
        self.op_type_configs[key] = config

    def set_op_name(self, op_name: str, op_config: OpConfig | None) -> None:
        """Set the rule for an operation or a constant by its name (or a glob over names)."""
        key, config = _checked_rule(op_name, op_config, "op_name_configs")
        self.op_name_configs[key] = config

    def _get_op_config(self, op: Any) -> OpConfig | None:
        """For coremltools' compressors: the config for an operation of its own that is no const."""
        from mlopt.coreml.rules import rule_for

        return rule_for(self, (op.name, op.op_type))

    def _get_const_op_config(self, op: Any) -> OpConfig | None:
        """For coremltools' compressors: the config for a constant, None to leave it alone."""
        from mlopt.coreml.rules import rule_for

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
        """The configuration that nested plain values describe; they are only read.

        Keys, all optional: ``"config_type"`` (which config a rule is of, ``"OpPalettizerConfig"``
        where it is not told), ``"global_config"`` (the parameters of that config, or None),
        ``"op_type_configs"`` and ``"op_name_configs"`` (name to such parameters, or to None to
        leave alone). Parameters may have a ``"config_type"`` of their own among them.

        Raises
        ------
        ConfigError
            A key is unknown or a value not allowed; the message names the rule.
        """
        if not isinstance(config_dict, Mapping):
            raise ConfigError(
                f"a configuration must be a mapping, got {shown(config_dict)}; its keys are "
                "global_config, op_type_configs and op_name_configs"
            )
        config_type = _config_type(config_dict.get("config_type"), CONFIG_TYPE)
        misplaced = [f.name for f in attrs.fields(OpPalettizerConfig) if f.name in config_dict]
        if misplaced:
            raise ConfigError(
                f"{misplaced[0]!r} is a parameter of a rule, got it beside the rules; "
                "put it under 'global_config'"
            )
        kinds = ("op_type_configs", "op_name_configs")
        check_keys(config_dict, ["config_type", "global_config", *kinds])
        rules: dict[str, dict[str, OpConfig | None]] = {}
        for kind in kinds:
            given = config_dict.get(kind)
            if given is not None and not isinstance(given, Mapping):
                raise ConfigError(f"{kind} must be a mapping from names, got {shown(given)}")
            # Keys are checked with the values in hand, where the configuration is constructed.
            rules[kind] = {
                key: _read_rule(values, f"{kind}[{key!r}]", config_type)
                for key, values in (given or {}).items()
            }
        values = config_dict.get("global_config")
        return cls(global_config=_read_rule(values, "global_config", config_type), **rules)

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
            It is not YAML, repeats a key, or is not a configuration; the message names the file.
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
            result["global_config"] = _written_rule(self.global_config, "global_config")
        for kind in ("op_type_configs", "op_name_configs"):
            rules = getattr(self, kind)
            if rules:
                result[kind] = {
                    key: _written_rule(config, f"{kind}[{key!r}]") for key, config in rules.items()
                }
        return result

    def to_yaml(self, yml: str | os.PathLike[str] | None = None) -> str:
        """The configuration as YAML text, also written to the path `yml` where one is given.

        Raises
        ------
        ConfigError
            A rule has a `lut_function`, which cannot be written down.
        """
        text: str = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        if yml is not None:
            Path(yml).write_text(text, encoding="utf-8")
        return text


def _for_coremltools(config: OpConfig | None, name: str) -> OpConfig | None:
    """A rule as coremltools' compressors read it; refused where they could not read all of it."""
    if not isinstance(config, OpPalettizerConfig):
        return config
    from coremltools.optimize.coreml import OpPalettizerConfig as Theirs

    values = attrs.asdict(config, recurse=False) | {"granularity": config.granularity.value}
    for parameter, default in (("lut_dtype", None), ("on_indivisible", "skip")):
        value = values.pop(parameter)
        if value != default:
            raise ConfigError(
                f"{name}: coremltools' palettizer has no {parameter}, got {value!r}; palettize "
                f"with mlopt.coreml.palettize_weights, or leave {parameter} out"
            )
    return Theirs(**values)


def for_palettization(config: Any) -> OptimizationConfig:
    """A configuration as palettization takes it: every rule an OpPalettizerConfig, or None.

    Parameters
    ----------
    config
        An OptimizationConfig, mlopt's or coremltools'.

    Raises
    ------
    ConfigError
        It is none, or has rules that are not for palettes; all of these are listed.
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
    # Once more also where it is mlopt's: its mappings may have been changed directly.
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
            f"{'; '.join(others)}. To palettize, every rule has to be an OpPalettizerConfig, or "
            "None to leave weights alone: give the others a configuration of their own"
        )
    return checked


def _read_rule(values: Any, rule: str, config_type: str) -> OpConfig | None:
    is_config = isinstance(values, OpPalettizerConfig) or foreign.is_compressor_config(values)
    if values is None or is_config:
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{rule}: the parameters of a rule must be a mapping, got {shown(values)}; "
            "None (null) leaves the weights alone"
        )
    try:
        kind = _config_type(values.get("config_type"), config_type)
        if kind == CONFIG_TYPE:
            return OpPalettizerConfig.from_dict(values)
        return foreign.read_rule(values, kind)
    except ConfigError as error:
        raise ConfigError(f"{rule}: {error}") from error


def _written_rule(config: OpConfig | None, rule: str) -> dict[str, Any] | None:
    try:
        if config is None:
            return None
        if isinstance(config, OpPalettizerConfig):
            return config.as_dict()
        return foreign.plain_values(config)
    except ConfigError as error:
        raise ConfigError(f"{rule}: {error}") from error
