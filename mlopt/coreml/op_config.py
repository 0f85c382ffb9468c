"""OpPalettizerConfig: how a rule palettizes the weights of an operation.

The names, the order of the parameters and the documented behaviour are coremltools'. Every value is
checked by the constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from mlopt.choices import (
    DEFAULT_GROUP_SIZE,
    DEFAULT_WEIGHT_THRESHOLD,
    METHODS,
    MODES,
    NBITS,
    ON_INDIVISIBLE,
    GranularityName,
    LutDtype,
    Method,
    Mode,
    Nbits,
    OnIndivisible,
)
from mlopt.coreml.foreign_configs import CONFIG_TYPE, checked_config_type
from mlopt.errors import ConfigError
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
from mlopt.requests.forms import PaletteForm
from mlopt.requests.granularity import Granularity


def _mode(value: Mode) -> Mode:
    return word(value, "mode", MODES)


def _granularity(value: Granularity | GranularityName) -> Granularity:
    return Granularity.parse(value)


def _group_size(value: Any) -> int:
    return 0 if value is None else integer(value, "group_size", minimum=0)


def _cluster_dim(value: Any) -> int:
    return integer(value, "cluster_dim", minimum=1)


def _per_channel_scale(value: Any) -> bool:
    return flag(value, "enable_per_channel_scale")


def _workers(value: Any) -> int:
    return integer(value, "num_kmeans_workers")


def _on_indivisible(value: OnIndivisible) -> OnIndivisible:
    return word(value, "on_indivisible", ON_INDIVISIBLE)


def _method(value: Method | None) -> Method | None:
    return None if value is None else word(value, "method", METHODS)


def _nbits(value: Nbits | None) -> int | None:
    return None if value is None else index_bits(value, "nbits")


def _channel_axis(value: Any) -> int | None:
    return None if value is None else integer(value, "channel_axis")


def _threshold(value: Any) -> int:
    if value is None:
        return DEFAULT_WEIGHT_THRESHOLD
    return integer(value, "weight_threshold", minimum=0)


@attrs.frozen
class OpPalettizerConfig:
    """Options for palettizing the weights of an operation. Immutable; vary with ``attrs.evolve``.

    Parameters
    ----------
    mode
        How the table is made: ``"kmeans"`` (default; the clusters of least squared error),
        ``"uniform"`` (equal steps from the smallest to the largest element), ``"unique"`` (the
        distinct values, at most 256; lossless) or ``"custom"`` (`lut_function` decides).
        Not case-sensitive; stored in lower case.
    nbits
        Bits per index: 1, 2, 3, 4, 6 or 8, for a table of ``2**nbits`` entries. Required by
        kmeans and uniform; None for unique and custom, which choose their own.
    lut_function
        For custom only: ``weight -> (table, indices)``; both are lists or arrays.
    granularity
        ``"per_tensor"`` (default): one table; or ``"per_grouped_channel"``: one table for each
        `group_size` channels.
    group_size
        Channels that share a table; 0 or None: all of them. Only used when granularity is
        per_grouped_channel.
    channel_axis
        The axis whose channels form groups or vectors; a negative axis counts from the end. None:
        chosen by the type of the operation.
    cluster_dim
        Elements along the channel axis per table entry; above 1 the table holds vectors. Not with
        uniform. Where it does not divide a group, the weight is kept as it is.
    enable_per_channel_scale
        Divide each output channel by its largest magnitude before clustering, and store that scale.
        Clusters minimize the error of the unscaled weight, so that channels of large elements count
        most: on trained models the outputs were at least as good as with equal weight for all
        channels, mostly far better (``benchmarks.scale_importance``). A channel of zeros stays
        zero.
    num_kmeans_workers
        Threads for clustering, unless ``workers`` of :func:`palettize` is given. The largest number
        above 1 in a configuration counts; without one, one thread per processor is used. The result
        does not depend on it.
    weight_threshold
        Weights of **more** elements than this are palettized. None: 2048.
    lut_dtype
        ``"int8"`` or ``"uint8"`` (also numpy's and torch's types of these names): tables are stored
        in 8 bits with one scale for all tables of a weight, and with an offset for uint8. Needs
        iOS18; not with unique. None: tables in the dtype of the weight.
    on_indivisible
        Where `group_size` does not divide the number of channels: ``"skip"`` keeps the weight as it
        is, ``"divisor"`` takes the largest divisor not above `group_size`, ``"per_tensor"``
        uses one table.
    method
        How a calibration guides kmeans: as `method` of :func:`palettize`, for these weights. None:
        as that says. Without a calibration it has no effect.

    Raises
    ------
    ConfigError
        A value is not allowed, or two values contradict each other.
    """

    mode: Mode = attrs.field(default="kmeans", converter=_mode)
    nbits: int | None = attrs.field(default=None, converter=_nbits)
    lut_function: Callable[..., Any] | None = None
    granularity: Granularity = attrs.field(default=Granularity.PER_TENSOR, converter=_granularity)
    group_size: int = attrs.field(default=DEFAULT_GROUP_SIZE, converter=_group_size)
    channel_axis: int | None = attrs.field(default=None, converter=_channel_axis)
    cluster_dim: int = attrs.field(default=1, converter=_cluster_dim)
    enable_per_channel_scale: bool = attrs.field(default=False, converter=_per_channel_scale)
    num_kmeans_workers: int = attrs.field(default=1, converter=_workers)
    weight_threshold: int = attrs.field(default=DEFAULT_WEIGHT_THRESHOLD, converter=_threshold)
    lut_dtype: LutDtype | None = attrs.field(default=None, converter=lut_dtype_name)
    on_indivisible: OnIndivisible = attrs.field(default="skip", converter=_on_indivisible)
    method: Method | None = attrs.field(default=None, converter=_method)

    def __attrs_post_init__(self) -> None:
        chooses_nbits = self.mode in ("unique", "custom")
        if self.nbits is None and not chooses_nbits:
            raise ConfigError(
                f"nbits is required by mode {self.mode!r}, got None; allowed: {listed(NBITS)}"
            )
        if self.nbits is not None and chooses_nbits:
            raise ConfigError(
                f"nbits must be None for mode {self.mode!r}, which chooses its own, got "
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
                f"mode 'uniform' makes no tables of vectors, got cluster_dim={self.cluster_dim}; "
                "use cluster_dim=1, or mode 'kmeans'"
            )

    @property
    def is_grouped(self) -> bool:
        """Whether groups of channels have tables of their own."""
        return self.granularity is Granularity.PER_GROUPED_CHANNEL

    @property
    def summary(self) -> str:
        """The request in a few words: ``"4-bit kmeans, groups of 32, vectors of 2"``."""
        form = PaletteForm(
            nbits=self.nbits,
            group_size=self.group_size or None if self.is_grouped else None,
            cluster_dim=self.cluster_dim,
            has_scale=self.enable_per_channel_scale,
            lut_dtype=self.lut_dtype,
        )
        return form.words(self.mode)

    def _validate_op_type(self, op_type: str) -> None:
        """Accept every type of operation; coremltools' configurations call this."""

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as plain values that :meth:`from_dict` reads to an equal config.

        Parameters that are None are left out, and so are the two parameters that coremltools lacks
        if they have their default: then coremltools can read the dictionary too.

        Raises
        ------
        ConfigError
            There is a `lut_function`, which has no plain form.
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
        """Return the config that a mapping of parameters describes; the mapping is only read.

        A key ``"config_type"`` is allowed with the value ``"OpPalettizerConfig"``.

        Raises
        ------
        ConfigError
            A key is unknown, a value is not allowed, or a `lut_function` is given, which has no
            plain form; construct such a config in Python.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"the parameters of a rule must be a mapping, got {shown(values)}; "
                "None (null) leaves the weights alone"
            )
        config_type = checked_config_type(values.get("config_type"), CONFIG_TYPE)
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
