"""``PaletteSpec``: the request for one weight's palette, checked when it is constructed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from mlopt.choices import LUT_DTYPES, MODES, NBITS, LutDtype, Mode
from mlopt.errors import ConfigError


@attrs.frozen
class PaletteSpec:
    """A request for one weight's palette.

    Parameters
    ----------
    mode
        ``"kmeans"`` (optimal clusters), ``"uniform"`` (equal steps from minimum to maximum),
        ``"unique"`` (the distinct values themselves) or ``"custom"`` (``lut_function`` decides).
    nbits
        Bits per index; a table has ``2**nbits`` entries. None for ``unique`` and ``custom``, which
        take the smallest of ``allowed_nbits`` that holds their entries.
    channel_axis
        The axis along which channels form groups and along which vectors lie. None without groups
        and vectors.
    group_size
        Channels that share a table; None means one table for the whole tensor. Must divide the
        number of channels.
    cluster_dim
        Consecutive elements along ``channel_axis`` that one table entry stands for.
    scale_axis
        The output channel axis, if each of its channels is divided by its largest magnitude before
        clustering; None for no scale.
    lut_function
        For ``custom``: ``weight -> (table, indices)``.
    allowed_nbits
        The index widths that the target can store, ascending.
    lut_dtype
        ``"int8"`` or ``"uint8"`` for tables of 8-bit codes with one scale; None for tables in the
        dtype of the weight. Not with ``unique``.

    Raises
    ------
    ConfigError
        The parts contradict each other.
    """

    mode: Mode = "kmeans"
    nbits: int | None = None
    channel_axis: int | None = None
    group_size: int | None = None
    cluster_dim: int = 1
    scale_axis: int | None = None
    lut_function: Callable[[Any], tuple[Any, Any]] | None = None
    allowed_nbits: tuple[int, ...] = NBITS
    lut_dtype: LutDtype | None = None

    def __attrs_post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode must be one of {MODES}, got {self.mode!r}")
        if (self.mode in ("kmeans", "uniform")) != (self.nbits is not None):
            need = "needs nbits" if self.nbits is None else "chooses nbits itself; leave it None"
            raise ConfigError(f"mode {self.mode!r} {need}; got nbits={self.nbits}")
        if self.nbits is not None and self.nbits not in self.allowed_nbits:
            raise ConfigError(f"nbits must be one of {self.allowed_nbits}, got {self.nbits}")
        if (self.mode == "custom") != (self.lut_function is not None):
            raise ConfigError("lut_function belongs to mode 'custom', and only to it")
        if self.cluster_dim < 1:
            raise ConfigError(f"cluster_dim must be at least 1, got {self.cluster_dim}")
        if self.cluster_dim > 1 and self.mode == "uniform":
            raise ConfigError("mode 'uniform' has no vector form; use cluster_dim=1 or 'kmeans'")
        if self.channel_axis is None and (self.group_size is not None or self.cluster_dim > 1):
            raise ConfigError("groups and vectors need a channel_axis, got None")
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1, got {self.group_size}")
        if self.group_size is not None and self.group_size % self.cluster_dim:
            raise ConfigError(
                f"cluster_dim ({self.cluster_dim}) must divide group_size ({self.group_size})"
            )
        if self.lut_dtype not in (None, *LUT_DTYPES):
            raise ConfigError(
                f"lut_dtype must be None or one of {LUT_DTYPES}, got {self.lut_dtype!r}"
            )
        if self.lut_dtype is not None and self.mode == "unique":
            raise ConfigError(
                f"mode 'unique' stores the distinct values exactly, which a lookup table in "
                f"{self.lut_dtype} cannot; use mode 'kmeans' with nbits, or lut_dtype=None"
            )
