"""Palettes of arrays: distinct values, exact k-means, tables, and what they cost in accuracy.

:func:`palettize` is the one way from a weight to its palette. The rest are its parts, for callers
that need only one of them; :func:`assign` is for tables that were made elsewhere. With
:class:`InputMoments`, tables keep the outputs of a weight. Nothing here depends on Core ML or
torch.

Work is bounded for every input: docs/algorithms.md ("Bounded work") has the most work and memory of
every path. Where a bound is reached, the best table so far is returned, and ``Distortion.within``
says how far it is from the least error at most: weak duality bounds every table's error from below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopt.on_demand import offer_on_demand

if TYPE_CHECKING:
    from mlopt.palette.assignment import assign
    from mlopt.palette.layout import Layout
    from mlopt.palette.moments import Arrangement, InputMoments
    from mlopt.palette.palettize import NoPaletteError, can_quantize_table, palettize
    from mlopt.palette.scalar.distinct import distinct_values
    from mlopt.palette.scalar.kmeans1d import kmeans1d, kmeans1d_curve
    from mlopt.palette.value.bits import pack_bits, unpack_bits
    from mlopt.palette.value.distortion import Distortion, measure_distortion
    from mlopt.palette.value.palettized import Palettized
    from mlopt.palette.value.quantized import QuantizedTable
    from mlopt.palette.value.spec import PaletteSpec
    from mlopt.palette.vector.clustering import cluster_vectors

__all__ = [
    "Arrangement",
    "Distortion",
    "InputMoments",
    "Layout",
    "NoPaletteError",
    "PaletteSpec",
    "Palettized",
    "QuantizedTable",
    "assign",
    "can_quantize_table",
    "cluster_vectors",
    "distinct_values",
    "kmeans1d",
    "kmeans1d_curve",
    "measure_distortion",
    "pack_bits",
    "palettize",
    "unpack_bits",
]

__getattr__ = offer_on_demand(
    __name__,
    {
        ".assignment": ("assign",),
        ".layout": ("Layout",),
        ".moments": ("Arrangement", "InputMoments"),
        ".palettize": ("NoPaletteError", "can_quantize_table", "palettize"),
        ".scalar.distinct": ("distinct_values",),
        ".scalar.kmeans1d": ("kmeans1d", "kmeans1d_curve"),
        ".value.bits": ("pack_bits", "unpack_bits"),
        ".value.distortion": ("Distortion", "measure_distortion"),
        ".value.palettized": ("Palettized",),
        ".value.quantized": ("QuantizedTable",),
        ".value.spec": ("PaletteSpec",),
        ".vector.clustering": ("cluster_vectors",),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
