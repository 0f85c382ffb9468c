"""Configuration of differentiable k-means for a module.

The names, the order of the parameters and the defaults are coremltools'; what each does is
described here, because it is not always the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import nn

from mlopt.choices import LutDtype
from mlopt.errors import ConfigError
from mlopt.requests.checked import flag, index_bits, integer
from mlopt.requests.forms import PaletteForm
from mlopt.requests.keep import Keep
from mlopt.torch.adapters import is_linear
from mlopt.torch.palettization import dkm_values as checked
from mlopt.torch.palettization.dkm_values import KmeansInit, ScaleScheme, ShortLutDtype
from mlopt.torch.palettization.granularity import PalettizationGranularity
from mlopt.torch.palettization.module_configs import ModuleOptimizationConfig
from mlopt.torch.soft_kmeans import Mode

LINEAR_N_BITS = 4
OTHER_N_BITS = 2


def _n_bits(value: Any) -> int | None:
    return None if value is None else index_bits(value, "n_bits")


def _granularity(value: Any) -> PalettizationGranularity:
    return PalettizationGranularity(value)


def _vector_length(cluster_dim: int | None) -> int:
    return cluster_dim or 1


def _flag(name: str) -> Any:
    """A field that is False by default."""
    return attrs.field(default=False, converter=lambda value: flag(value, name))


def _integer(default: int, name: str, minimum: int | None = None) -> Any:
    """A field for an integer."""
    return attrs.field(default=default, converter=lambda value: integer(value, name, minimum))


def _count(name: str, eq: Any = True) -> Any:
    """A field for an integer of at least 1, or None, which is the default."""

    def count(value: Any) -> int | None:
        return None if value is None else integer(value, name, minimum=1)

    return attrs.field(default=None, converter=count, eq=eq)


def _number(
    default: float, name: str, *, maximum: float = math.inf, exclusive: bool = False
) -> Any:
    """A field for a number of at least 0, or above 0 if `exclusive`."""

    def bounded(value: Any) -> float:
        return checked.number(value, name, maximum=maximum, exclusive=exclusive)

    return attrs.field(default=default, converter=bounded)


@attrs.frozen
class ModuleDKMPalettizerConfig(ModuleOptimizationConfig):
    """How ``DKMPalettizer`` palettizes a module. Vary one with ``attrs.evolve``.

    Most uses need only `n_bits`, `weight_threshold` and `milestone`. A *group* is the elements that
    share a table, all of a tensor unless there are groups of channels; an *entry* is one row of a
    table, also called a centroid while it is learned.

    Parameters
    ----------
    n_bits
        Bits per index: 1, 2, 3, 4, 6 or 8, for a table of ``2**n_bits`` entries. None: 4 for
        linear, bilinear and recurrent layers, and 2 for all others.
    weight_threshold
        Only weights of more elements are palettized, and those of a module with several only if all
        of them have more.
    granularity
        ``"per_tensor"`` (default) or ``"per_grouped_channel"``: a table for each `group_size`
        channels.
    group_size
        Output channels that share a table. Required by per_grouped_channel, None for per_tensor.
    channel_axis
        0, the output channels: no others form groups and vectors. None: 0.
    enable_per_channel_scale
        Divide each output channel by a number of its own before clustering, and store that scale.
    milestone
        Number of calls of ``step`` before palettization begins; 0: it begins at once.
    cluster_dim
        Elements along the output channels that one entry stands for; above 1 the table holds
        vectors. Not with `enable_per_channel_scale`. Where it does not divide `group_size`, weights
        are left alone. None: 1.
    quant_min, quant_max
        The least and the greatest code of activations, codes that `dtype` has. Entries in 8 bits
        (`lut_dtype`) use all their codes.
    dtype
        ``torch.qint8`` or ``torch.quint8``, or the name of one, for the codes of activations. Only
        with `quantize_activations`; ``torch.float32`` without them.
    lut_dtype
        How entries are stored: ``"i8"`` or ``"u8"`` in 8 bits with one scale for all tables of a
        weight, ``"f16"`` or ``"bf16"`` rounded to that format, ``"f32"`` (default) in the dtype of
        the weight. Other names (``"int8"``) and the types of torch and numpy are taken too.
    quantize_activations
        Quantize the outputs of the module: in training their range is observed, and they are
        rounded to 8-bit codes; then the range is fixed. Needs iOS17.
    cluster_permute
        The order in which to put the axes of a weight before it is divided into groups and vectors.
        It applies to weights with as many axes; others stay as they are. None: as they are.
    palett_max_mem
        The share of the usual memory, above 0 and at most 1, that palettization takes besides a
        weight: its points are processed in parts that are smaller by that factor. Below 1, see also
        `palett_min_tsize`.
    kmeans_max_iter
        Soft iterations per forward pass, at least 1.
    prune_threshold
        Weights of at most this magnitude count as zero.
    kmeans_init
        ``"auto"``, ``"opt1d"``, ``"kmeans++"`` or ``"cpu.kmeans++"``. Tables of numbers start from
        the exact optimum regardless. Accepted; vectors start from k-means++ with a fixed seed.
    kmeans_opt1d_threshold
        Changes nothing for tables of numbers. Accepted; vectors start from k-means++ with a fixed
        seed.
    enforce_zero
        The entry that is nearest to zero is fixed to exactly zero, and weights that count as zero
        stay exactly zero.
    palett_mode
        How weights are assigned to entries: ``"dkm"`` in the shares of a softmax over distances,
        ``"gsm"`` in those of a Gumbel softmax, ``"hard"`` entirely to the nearest.
    palett_tau
        The temperature, above 0, in units of 1e-4: that of the softmax is ``palett_tau / 1e-4``
        times half the mean squared error of optimal k-means on the group at the start. So it
        follows the spread of the weights and the number of clusters.
    palett_epsilon
        Iterations stop early when no centroid moves further than this fraction of the root mean
        square of the weights.
    palett_lambda
        How much less outliers count in the centroids: a weight w of a group with root mean square
        r counts ``1 / (1 + palett_lambda * (w / r)**2)``. 0: all count the same.
    add_extra_centroid
        One entry more than ``2**n_bits``. At the end the table takes the smallest number of bits
        that holds them.
    palett_cluster_tol
        The share of entries, 0 to 1, that may coincide before coinciding ones are moved to where
        the error is largest.
    palett_min_tsize
        When `palett_max_mem` is below 1, weights of more elements are coded in 16 bits, as with
        `palett_unique`, and so take half the bytes until the backward pass.
    palett_unique
        Weights in float32 are coded in 16 bits for the assignment, so that equal ones are assigned
        once.
    palett_shard
        The same as `palett_dist`: the share that a rank computes is all that it keeps for the
        backward pass, of the points or their codes.
    palett_batch_mode
        With `palett_dist` or `palett_shard`, where there are at least as many groups as ranks: a
        rank computes whole groups instead of a share of each. Ranks then exchange only the results,
        not sums in each iteration; a rank's iterations stop early (`palett_epsilon`) when its
        own groups have settled. In one process groups are always computed together, in parts that
        bound the memory.
    palett_dist
        Soft assignment is computed in shares by the ranks of the default group of
        ``torch.distributed``, which exchange sums and soft weights. All must hold the same
        weights, and to take the same forward and backward passes in the same order, as replicas in
        ``DistributedDataParallel`` or ``fully_shard`` do. Each rank gets the gradient of the mean
        of the ranks' losses, so that averaging gradients gives what it gives without shares.
        A rank that reads a weight alone, with gradients in training mode, waits for the others;
        in evaluation or without gradients it computes all by itself, and leaves the tables alone
        (so reentrant activation checkpointing draws other noise for ``"gsm"`` the second time).
        Nothing is divided without a process group, in a group of one rank, and in evaluation.
    per_channel_scaling_factor_scheme
        What `enable_per_channel_scale` divides a channel by: ``"min_max"`` half the difference
        between its greatest and its least weight, ``"abs"`` its largest magnitude.
    percentage_palett_enable
        The share of groups, above 0 and at most 1, that are assigned softly: the first ones, at
        least one. The others are assigned hard.
    kmeans_batch_threshold
        With `palett_dist` or `palett_shard`: from so many groups on, and at least as many as ranks,
        the ranks divide the initial clustering among them. Fewer groups are clustered by each rank
        by itself, which gives the same.
    kmeans_n_init
        At least 1. Changes nothing for tables of numbers. Accepted; vectors start from k-means++
        with a fixed seed.
    zero_threshold
        An entry that has at most this much of the weights, the shares of all of them added up, has
        lost them: all weights then have an equal share in it, and it moves to their mean. 0: it
        stays where it is.
    kmeans_error_bnd
        Changes nothing for tables of numbers. Accepted; vectors start from k-means++ with a fixed
        seed.
    partition_size
        The older way to ask for groups: how many elements of a weight share a table. Not with
        per_grouped_channel; see :meth:`group_size_for`. None: no groups.
    cluster_dtype
        The older name of `lut_dtype`, which gets its value and must be the default or the same.
        ``"oc_last"`` is kept: it stands for the `cluster_permute` that moves the output channels to
        the last axis.
    implicit_gradient
        Not in coremltools: take the gradient of the tables as if they had settled, by the implicit
        function theorem (IDKM, arXiv 2312.07759), instead of back through each iteration. That
        takes one backward pass over the weights instead of `kmeans_max_iter`, and a system of
        equations for each group. Not with `palett_mode` ``"gsm"``.

    Raises
    ------
    ConfigError
        A value is not allowed, or two values contradict each other.
    """

    # All fields stand here, because those of a base class come first otherwise. Two are wider than
    # there; nbits_for and lut_dtype_name read them.
    n_bits: int | None = attrs.field(  # type: ignore[assignment]
        default=None, converter=_n_bits
    )
    weight_threshold: int = _integer(2048, "weight_threshold", minimum=0)
    granularity: PalettizationGranularity = attrs.field(
        default=PalettizationGranularity.per_tensor, converter=_granularity
    )
    group_size: int | None = _count("group_size")
    channel_axis: int = attrs.field(default=0, converter=checked.output_axis)
    enable_per_channel_scale: bool = _flag("enable_per_channel_scale")
    milestone: int = _integer(0, "milestone", minimum=0)
    cluster_dim: int | None = _count("cluster_dim", eq=_vector_length)
    quant_min: int = _integer(-128, "quant_min")
    quant_max: int = _integer(127, "quant_max")
    dtype: torch.dtype = attrs.field(default=torch.qint8, converter=checked.activation_dtype)
    lut_dtype: ShortLutDtype = attrs.field(  # type: ignore[assignment]
        default="f32", converter=checked.short_lut_dtype
    )
    quantize_activations: bool = _flag("quantize_activations")
    cluster_permute: tuple[int, ...] | None = attrs.field(
        default=None, converter=checked.permutation
    )
    palett_max_mem: float = _number(1.0, "palett_max_mem", maximum=1, exclusive=True)
    kmeans_max_iter: int = _integer(3, "kmeans_max_iter", minimum=1)
    prune_threshold: float = _number(1e-7, "prune_threshold")
    kmeans_init: KmeansInit = attrs.field(default="auto", converter=checked.kmeans_init)
    kmeans_opt1d_threshold: int = _integer(1024, "kmeans_opt1d_threshold", minimum=0)
    enforce_zero: bool = _flag("enforce_zero")
    palett_mode: Mode = attrs.field(default="dkm", converter=checked.palett_mode)
    palett_tau: float = _number(1e-4, "palett_tau", exclusive=True)
    palett_epsilon: float = _number(1e-4, "palett_epsilon")
    palett_lambda: float = _number(0.0, "palett_lambda")
    add_extra_centroid: bool = _flag("add_extra_centroid")
    palett_cluster_tol: float = _number(0.0, "palett_cluster_tol", maximum=1)
    palett_min_tsize: int = _integer(64 * 1024, "palett_min_tsize", minimum=0)
    palett_unique: bool = _flag("palett_unique")
    palett_shard: bool = _flag("palett_shard")
    palett_batch_mode: bool = _flag("palett_batch_mode")
    palett_dist: bool = _flag("palett_dist")
    per_channel_scaling_factor_scheme: ScaleScheme = attrs.field(
        default="min_max", converter=checked.scaling_factor_scheme
    )
    percentage_palett_enable: float = _number(
        1.0, "percentage_palett_enable", maximum=1, exclusive=True
    )
    kmeans_batch_threshold: int = _integer(4, "kmeans_batch_threshold", minimum=0)
    kmeans_n_init: int = _integer(10, "kmeans_n_init", minimum=1)
    zero_threshold: float = _number(1e-7, "zero_threshold", maximum=1)
    kmeans_error_bnd: float = _number(0.0, "kmeans_error_bnd")
    partition_size: int | None = _count("partition_size")
    cluster_dtype: str | None = attrs.field(default=None, converter=checked.cluster_dtype)
    implicit_gradient: bool = _flag("implicit_gradient")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._check_codes()
        if self.partition_size is not None and self.is_grouped:
            raise ConfigError(
                f"partition_size is the older way to ask for groups, got {self.partition_size} "
                f"as well as group_size={self.group_size}; leave partition_size out"
            )
        if self.cluster_dtype is not None:
            self._replace_cluster_dtype(self.cluster_dtype)
        if self.implicit_gradient and self.palett_mode == "gsm":
            raise ConfigError(
                "implicit_gradient needs tables that settle, got it with palett_mode='gsm', whose "
                "noise keeps them moving; use 'dkm', or leave implicit_gradient out"
            )

    def _check_codes(self) -> None:
        if self.dtype is torch.float32:
            if self.quantize_activations:
                raise ConfigError(
                    "quantize_activations needs a dtype with codes, got torch.float32; use "
                    "torch.qint8 or torch.quint8, or leave quantize_activations out"
                )
            return
        least, greatest = checked.code_range(self.dtype)
        if not least <= self.quant_min < self.quant_max <= greatest:
            raise ConfigError(
                f"quant_min must be less than quant_max, both codes of {_name(self.dtype)}, "
                f"{least} to {greatest}, got {self.quant_min} and {self.quant_max}; all its codes "
                f"are quant_min={least}, quant_max={greatest}"
            )

    def _replace_cluster_dtype(self, given: str) -> None:
        if given == checked.OUTPUT_CHANNELS_LAST:
            if self.cluster_permute is not None:
                raise ConfigError(
                    "cluster_dtype 'oc_last' stands for a cluster_permute, got it as well as "
                    f"{self.cluster_permute}; keep one"
                )
            return
        if self.lut_dtype not in ("f32", given):
            raise ConfigError(
                f"cluster_dtype is the older name of lut_dtype, got {given!r} as well as "
                f"lut_dtype={self.lut_dtype!r}; leave cluster_dtype out"
            )
        # This is the only way to give a frozen object one value under one name.
        object.__setattr__(self, "lut_dtype", given)
        object.__setattr__(self, "cluster_dtype", None)

    def nbits_for(self, module: nn.Module) -> int:
        """Bits per index in a module: `n_bits`, or the default for its class."""
        if self.n_bits is not None:
            return self.n_bits
        return LINEAR_N_BITS if is_linear(module) else OTHER_N_BITS

    def group_size_for(self, weight_shape: Sequence[int], axis: int = 0) -> int | Keep | None:
        """Channels of a weight that share a table; None: all.

        Keep, with a reason, if a `partition_size` is not a whole number of channels, or of vectors
        of them. Whether the groups divide the channels is not checked here.

        Parameters
        ----------
        weight_shape
            At least one axis, none of length 0.
        axis
            That of the output channels.
        """
        size = self.partition_size
        if size is None or size >= math.prod(weight_shape):
            return self.group_size
        elements = math.prod(weight_shape) // weight_shape[axis]
        channels, rest = divmod(size, elements)
        if rest:
            return Keep(
                f"partition_size {size} is not a multiple of the {elements} elements of a channel",
                "partition_size is not a number of channels",
            )
        if channels % self.vector_length:
            return Keep(
                f"cluster_dim {self.vector_length} does not divide the {channels} channels of "
                f"partition_size {size}",
                "cluster_dim does not divide the channels",
            )
        return channels

    def permutation_for(self, rank: int) -> tuple[int, ...] | None:
        """The order of the axes in which a weight with `rank` axes is divided; None: as it is."""
        if self.cluster_dtype == checked.OUTPUT_CHANNELS_LAST:
            return (*range(1, rank), 0)
        order = self.cluster_permute
        return order if order is not None and len(order) == rank else None

    @property
    def lut_dtype_name(self) -> LutDtype | None:
        """``"int8"`` or ``"uint8"`` for tables in 8 bits, else None."""
        names: dict[str, LutDtype] = {"i8": "int8", "u8": "uint8"}
        return names.get(self.lut_dtype)

    @property
    def summary(self) -> str:
        """The request in a few words, with every other value that is not the default."""
        bits = f"{OTHER_N_BITS}- or {LINEAR_N_BITS}-bit " if self.n_bits is None else ""
        form = PaletteForm(
            nbits=self.n_bits,
            group_size=self.group_size,
            cluster_dim=self.vector_length,
            has_scale=self.enable_per_channel_scale,
            lut_dtype=None if self.lut_dtype == "f32" else self.lut_dtype_name or self.lut_dtype,
        )
        words = form.words(f"{bits}differentiable kmeans")
        said = {field.name for field in attrs.fields(ModuleOptimizationConfig)}
        return ", ".join(
            [
                words,
                *(
                    f"{field.name} {_plain(getattr(self, field.name))}"
                    for field in attrs.fields(type(self))
                    if field.name not in said and getattr(self, field.name) != field.default
                ),
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """The parameters as plain values that :meth:`from_dict` reads back.

        `partition_size`, `cluster_dtype` and `implicit_gradient` are included only where they are
        given. Without them coremltools can read the dictionary too: it refuses two as outdated, and
        does not know the third.
        """
        values = super().as_dict() | {"lut_dtype": self.lut_dtype, "dtype": _name(self.dtype)}
        without = ("partition_size", "cluster_dtype", "implicit_gradient")
        return {name: value for name, value in values.items() if value or name not in without}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    return _name(value) if isinstance(value, torch.dtype) else value
