"""Configurations of a module: how its parameters are palettized; one class per palettizer.

The names, the order of the parameters and the defaults are coremltools'. Every value is checked
when it is given, and a configuration cannot be changed afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

import attrs
import torch

from mlopt.choices import LutDtype
from mlopt.errors import ConfigError
from mlopt.requests.checked import check_keys, flag, index_bits, integer, lut_dtype_name, shown
from mlopt.requests.forms import PaletteForm
from mlopt.requests.keep import Keep
from mlopt.requests.yaml_files import read_yaml
from mlopt.torch.palettization.granularity import PalettizationGranularity

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_N_BITS = 4
DEFAULT_ROUNDING_PRECISION = 4


def _n_bits(value: Any) -> int:
    return DEFAULT_N_BITS if value is None else index_bits(value, "n_bits")


def _lut_dtype(value: Any) -> torch.dtype | None:
    name = lut_dtype_name(value)
    return None if name is None else getattr(torch, name)


def _granularity(value: Any) -> PalettizationGranularity:
    return PalettizationGranularity(value)


def _group_size(value: Any) -> int | None:
    return None if value is None else integer(value, "group_size", minimum=1)


def _channel_axis(value: Any) -> int:
    axis = 0 if value is None else integer(value, "channel_axis")
    if axis not in (0, 1):
        raise ConfigError(
            f"channel_axis must be 0 (output channels) or 1 (input channels), got {axis}"
        )
    return axis


def _cluster_dim(value: Any) -> int | None:
    return None if value is None else integer(value, "cluster_dim", minimum=1)


def _vector_length(cluster_dim: int | None) -> int:
    return cluster_dim or 1


def _per_channel_scale(value: Any) -> bool:
    return False if value is None else flag(value, "enable_per_channel_scale")


def _fast_kmeans_mode(value: Any) -> bool:
    return True if value is None else flag(value, "enable_fast_kmeans_mode")


def _rounding_precision(value: Any) -> int:
    if value is None:
        return DEFAULT_ROUNDING_PRECISION
    return integer(value, "rounding_precision", minimum=0)


@attrs.frozen
class ModuleOptimizationConfig:
    """Base class of module configurations of all palettizers. Vary one with ``attrs.evolve``.

    Two configurations of a class are equal if they ask for the same: `cluster_dim` None equals 1.

    Parameters
    ----------
    n_bits
        Bits per index: 1, 2, 3, 4, 6 or 8, for a table of ``2**n_bits`` entries. None: 4.
    lut_dtype
        ``torch.int8`` or ``torch.uint8``, or the name of one: tables are stored in 8 bits with one
        scale for all tables of a weight, and an offset for uint8. None: in the dtype of the weight.
    granularity
        ``"per_tensor"`` (default) or ``"per_grouped_channel"``: a table for each `group_size`
        channels.
    group_size
        Channels that share a table. Required by per_grouped_channel, None for per_tensor.
    channel_axis
        Which channels form groups and vectors: 0, the output channels, or 1, the input channels.
        It is not an axis of the array: a transposed convolution keeps its output channels on axis 1
        of its weight, and 0 means these.
    cluster_dim
        Elements along the channels that one table entry stands for; above 1 the table holds
        vectors. Not with `enable_per_channel_scale`. Where it does not divide `group_size`, weights
        are left alone. None: 1.
    enable_per_channel_scale
        Divide each output channel by its largest magnitude before clustering, and store that scale.
        As in :class:`mlopt.coreml.OpPalettizerConfig`, channels of large weights count most.

    Raises
    ------
    ConfigError
        A value is not allowed, or two values contradict each other.
    """

    n_bits: int = attrs.field(default=DEFAULT_N_BITS, converter=_n_bits)
    lut_dtype: torch.dtype | None = attrs.field(default=None, converter=_lut_dtype)
    granularity: PalettizationGranularity = attrs.field(
        default=PalettizationGranularity.per_tensor, converter=_granularity
    )
    group_size: int | None = attrs.field(default=None, converter=_group_size)
    channel_axis: int = attrs.field(default=0, converter=_channel_axis)
    cluster_dim: int | None = attrs.field(default=None, converter=_cluster_dim, eq=_vector_length)
    enable_per_channel_scale: bool = attrs.field(default=False, converter=_per_channel_scale)

    def __attrs_post_init__(self) -> None:
        if self.is_grouped and self.group_size is None:
            raise ConfigError(
                "group_size is required by granularity per_grouped_channel, got None; give the "
                "number of channels that share a table"
            )
        if self.group_size is not None and not self.is_grouped:
            raise ConfigError(
                f"group_size belongs to granularity per_grouped_channel only, got {self.group_size}"
                " with per_tensor; set granularity='per_grouped_channel' or leave group_size out"
            )
        if self.vector_length > 1 and self.enable_per_channel_scale:
            raise ConfigError(
                "enable_per_channel_scale is for tables of numbers, got True with cluster_dim="
                f"{self.cluster_dim}; use cluster_dim=1, or leave the scale out"
            )

    @property
    def is_grouped(self) -> bool:
        """Whether groups of channels have tables of their own."""
        return self.granularity is PalettizationGranularity.per_grouped_channel

    @property
    def vector_length(self) -> int:
        """Elements that one table entry stands for: `cluster_dim`, and 1 for None."""
        return _vector_length(self.cluster_dim)

    def group_size_for(self, weight_shape: Sequence[int], axis: int = 0) -> int | Keep | None:
        """Return how many channels on an axis share a table; None: all. Keep: it is impossible."""
        return self.group_size if self.is_grouped else None

    def permutation_for(self, rank: int) -> tuple[int, ...] | None:
        """Return the order of the axes in which a weight is divided; None: as it is."""
        return None

    @property
    def lut_dtype_name(self) -> LutDtype | None:
        """The name of `lut_dtype`: ``"int8"``, ``"uint8"`` or None."""
        return lut_dtype_name(self.lut_dtype)

    @property
    def summary(self) -> str:
        """The request in a few words: ``"4-bit kmeans, groups of 8, along input channels"``."""
        form = PaletteForm(
            nbits=self.n_bits,
            group_size=self.group_size,
            cluster_dim=self.vector_length,
            has_scale=self.enable_per_channel_scale,
            lut_dtype=self.lut_dtype_name,
        )
        words = form.words("kmeans")
        has_axis = self.is_grouped or self.vector_length > 1
        return f"{words}, along input channels" if has_axis and self.channel_axis == 1 else words

    def as_dict(self) -> dict[str, Any]:
        """Return all parameters as plain values that :meth:`from_dict` and coremltools read."""
        values = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return values | {"lut_dtype": self.lut_dtype_name, "granularity": self.granularity.value}

    @classmethod
    def from_dict(cls, data_dict: Mapping[str, Any]) -> Self:
        """Return the config that a mapping of parameters describes; the mapping is only read.

        Raises
        ------
        ConfigError
            A key is unknown or a value is not allowed.
        """
        if not isinstance(data_dict, Mapping):
            raise ConfigError(
                f"the parameters of a rule must be a mapping, got {shown(data_dict)}; "
                "None (null) leaves the modules alone"
            )
        check_keys(data_dict, [field.name for field in attrs.fields(cls)])
        return cls(**data_dict)

    @classmethod
    def from_yaml(cls, yml: str | os.PathLike[str] | IO[Any]) -> Self:
        """Return the config in a YAML file as for :meth:`from_dict`; an empty one has defaults.

        Parameters
        ----------
        yml
            The path of a file, or an open stream.

        Raises
        ------
        ConfigError
            It is not YAML, repeats a key, or is not a config; the message names the file.
        OSError
            The file cannot be read.
        """
        return read_yaml(yml, lambda values: cls.from_dict({} if values is None else values))


ModuleConfigT = TypeVar("ModuleConfigT", bound=ModuleOptimizationConfig)


@attrs.frozen
class ModulePostTrainingPalettizerConfig(ModuleOptimizationConfig):
    """How ``PostTrainingPalettizer`` palettizes a module.

    The last two parameters speed coremltools' clustering up by rounding the weights first. Here
    clustering is exact on the weights as they are, and fast: both are checked, kept and without
    effect, so that they make no difference between two configurations either.

    Parameters
    ----------
    n_bits, lut_dtype, granularity, group_size, channel_axis, cluster_dim, enable_per_channel_scale
        As for :class:`ModuleOptimizationConfig`.
    enable_fast_kmeans_mode
        True or False. None: True. Without effect.
    rounding_precision
        Decimal places, 0 or more. None: 4. Without effect.

    Raises
    ------
    ConfigError
        A value is not allowed, or two values contradict each other.
    """

    enable_fast_kmeans_mode: bool = attrs.field(default=True, converter=_fast_kmeans_mode, eq=False)
    rounding_precision: int = attrs.field(
        default=DEFAULT_ROUNDING_PRECISION, converter=_rounding_precision, eq=False
    )


@attrs.frozen
class ModuleSKMPalettizerConfig(ModuleOptimizationConfig):
    """How ``SKMPalettizer`` palettizes a module; the parameters of ModuleOptimizationConfig."""
