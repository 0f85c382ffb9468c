"""Arrays in, palettes out: distinct values, exact k-means, tables, and what they cost in accuracy.

:func:`palettize` is the one way from a weight to its palette. The rest are its parts, for those who
want one of them alone. Nothing here knows of Core ML or torch.
"""

from mlopt.palette.bits import pack_bits, unpack_bits
from mlopt.palette.distinct import distinct_values
from mlopt.palette.distortion import Distortion, measure_distortion
from mlopt.palette.kmeans1d import kmeans1d, kmeans1d_curve
from mlopt.palette.palettize import NoPaletteError, can_quantize_table, palettize
from mlopt.palette.palettized import Palettized
from mlopt.palette.quantized import QuantizedTable
from mlopt.palette.spec import PaletteSpec
from mlopt.palette.vectors import cluster_vectors

__all__ = [
    "Distortion",
    "NoPaletteError",
    "PaletteSpec",
    "Palettized",
    "QuantizedTable",
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
