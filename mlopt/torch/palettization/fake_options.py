"""How a weight is clustered while it is trained, as ``FakePalettize`` takes it."""

from __future__ import annotations

import attrs

from mlopt.palette.layout import Layout
from mlopt.torch.soft_kmeans import Mode


@attrs.frozen(kw_only=True)
class FakePalettizeOptions:
    """See ``ModuleDKMPalettizerConfig`` for what each does.

    name: of the weight, for messages; entries: in a table; scale_axis, scale_scheme: of the
    per-channel scale, None for none; lut_dtype: ``"f32"``, ``"f16"``, ``"bf16"``, ``"i8"`` or
    ``"u8"``; soft_groups: how many of the groups, the first ones, have soft assignment;
    temperature: a factor, 1 by default; in_shares: whether the ranks of ``torch.distributed``
    divide the soft assignment among them, by_groups whole groups if there is one for each rank;
    initial_in_shares_from: from so many groups on the first clustering too.
    """

    name: str
    grouping: Layout
    entries: int
    scale_axis: int | None = None
    scale_scheme: str = "min_max"
    lut_dtype: str = "f32"
    mode: Mode = "dkm"
    iterations: int = 3
    epsilon: float = 1e-4
    temperature: float = 1.0
    implicit: bool = False
    outlier_weight: float = 0.0
    lost_size: float = 0.0
    enforce_zero: bool = False
    prune_threshold: float = 0.0
    duplicates_tolerance: float = 0.0
    soft_groups: int | None = None
    coded: bool = False
    memory_share: float = 1.0
    in_shares: bool = False
    by_groups: bool = False
    initial_in_shares_from: int = 4
