"""Options of a weight's clustering in training: the request for it in internal terms."""

from __future__ import annotations

import math

import attrs

from mlopt.errors import ConfigError
from mlopt.palette.layout import Layout
from mlopt.palette.value.spec import PaletteSpec
from mlopt.torch.palettization.dkm_config import ModuleDKMPalettizerConfig
from mlopt.torch.palettization.dkm_values import ScaleScheme, ShortLutDtype
from mlopt.torch.soft_kmeans import SoftOptions
from mlopt.torch.soft_kmeans.implicit import check_implicit_size

_MOST_ENTRIES = 256


@attrs.frozen(kw_only=True)
class FakePalettizeOptions(SoftOptions):
    """Options of ``FakePalettize`` and all below it; soft k-means reads the part it inherits.

    The public names are those of ``ModuleDKMPalettizerConfig``, which says what each does. Each has
    one internal name:

    ================================= ====================== ======================================
    public                            inside                 meaning
    ================================= ====================== ======================================
    kmeans_max_iter                   iterations             the most soft iterations in a pass
    palett_mode                       mode                   how weights attend to entries
    implicit_gradient                 implicit               gradient of a fixed point
    zero_threshold                    lost_size              size up to which an entry is lost
    palett_unique                     coded                  weights are rounded to 16 bits (1)
    palett_max_mem                    memory_share           share of the usual memory
    palett_tau                        temperature_factor     times the first temperature (2)
    palett_epsilon                    relative_epsilon       moves that end iterations (3)
    palett_lambda                     outlier_weight         how much less outliers count
    enforce_zero                      enforce_zero           zeros stay, and an entry is zero
    prune_threshold                   prune_threshold        magnitudes that count as zero
    palett_cluster_tol                duplicates_tolerance   share of entries that may coincide
    percentage_palett_enable          soft_groups            number of soft groups, the first ones
    palett_dist, palett_shard         in_shares              ranks divide the assignment
    palett_batch_mode                 by_groups              they take whole groups (4)
    kmeans_batch_threshold            initial_in_shares_from groups from which they share the start
    n_bits, add_extra_centroid        entries                in a table
    group_size, cluster_dim           layout                 the points of the weight
    enable_per_channel_scale          scale_axis             of the scale; None for none
    per_channel_scaling_factor_scheme scale_scheme           what channels are divided by
    lut_dtype                         lut_dtype              how entries are stored
    ================================= ====================== ======================================

    (1) Also with ``palett_max_mem`` below 1, for more elements than ``palett_min_tsize``.
    (2) In units of 1e-4: 1 stands for the default.
    (3) Over the root mean square of the weights.
    (4) Where there is at least one for each.

    `name`: the weight's, for messages.
    """

    name: str
    layout: Layout
    entries: int
    soft_groups: int
    scale_axis: int | None = None
    scale_scheme: ScaleScheme = "min_max"
    lut_dtype: ShortLutDtype = "f32"
    relative_epsilon: float = 1e-4
    temperature_factor: float = 1.0
    outlier_weight: float = 0.0
    enforce_zero: bool = False
    prune_threshold: float = 0.0
    duplicates_tolerance: float = 0.0
    in_shares: bool = False
    by_groups: bool = False
    initial_in_shares_from: int = 4


def options_for(
    name: str, shape: tuple[int, ...], config: ModuleDKMPalettizerConfig, spec: PaletteSpec
) -> FakePalettizeOptions:
    """Return the options for a weight of this name and shape.

    ``config``: the request for its module; ``spec``: the layout that was decided for the weight.

    Raises
    ------
    ConfigError
        The table would have too many entries, or the implicit gradient too large a system.
    """
    assert spec.nbits is not None
    if config.add_extra_centroid and 1 << spec.nbits == _MOST_ENTRIES:
        raise ConfigError(
            f"add_extra_centroid needs a table of more than {_MOST_ENTRIES} entries with n_bits="
            f"{spec.nbits} for {name}; use fewer bits, or leave it False"
        )
    layout = Layout.of(spec, shape)
    entries = (1 << spec.nbits) + config.add_extra_centroid
    soft_groups = max(1, int(config.percentage_palett_enable * layout.groups))
    if config.implicit_gradient and config.palett_mode != "hard":
        try:
            check_implicit_size((soft_groups, entries, spec.cluster_dim))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    is_large = math.prod(shape) > config.palett_min_tsize
    has_lut_dtype = config.lut_dtype_name == spec.lut_dtype
    return FakePalettizeOptions(
        name=name,
        layout=layout,
        entries=entries,
        scale_axis=spec.scale_axis,
        scale_scheme=config.per_channel_scaling_factor_scheme,
        lut_dtype=config.lut_dtype if has_lut_dtype else "f32",
        mode=config.palett_mode,
        iterations=config.kmeans_max_iter,
        relative_epsilon=config.palett_epsilon,
        temperature_factor=config.palett_tau / 1e-4,
        implicit=config.implicit_gradient,
        outlier_weight=config.palett_lambda,
        lost_size=config.zero_threshold,
        enforce_zero=config.enforce_zero,
        prune_threshold=config.prune_threshold,
        duplicates_tolerance=config.palett_cluster_tol,
        soft_groups=soft_groups,
        coded=config.palett_unique or (config.palett_max_mem < 1 and is_large),
        memory_share=config.palett_max_mem,
        in_shares=config.palett_shard or config.palett_dist,
        by_groups=config.palett_batch_mode,
        initial_in_shares_from=config.kmeans_batch_threshold,
    )
