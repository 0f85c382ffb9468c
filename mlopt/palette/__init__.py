"""Arrays in, palettes out: distinct values, exact k-means, tables, and what they cost in accuracy.

:func:`palettize` is the one way from a weight to its palette. The rest are its parts, for those who
want one of them alone; :func:`assign` is for tables that were made elsewhere. Nothing here knows of
Core ML or torch.

No input takes forever
----------------------
What each scalar path does at most, with ``n`` weights of a row (a group, or the whole weight),
``k`` entries, and ``U`` distinct values (at most 65,536 for float16, bfloat16 and 8-bit integers).
"Passes" go over all weights in order.

=========================  ==================================================  =====================
path                       work                                                memory, beside weight
=========================  ==================================================  =====================
distinct values, 16 bits   1 pass                                              2 MB
distinct values, floats    1 sort of n                                         16 n (32 n weighted)
k-means of distinct        P runs of O(U log U), P <= ``MOST_PASSES``          60 U
 (kmeans1d.solve)          (1 to 3 but for rare inputs)
storable centres           1 run backwards, ``MOST_VISITS`` segments           80 U, ``MOST_STATES``
 (stored)                  or ``VISITS_PER_VALUE`` U, the fewer                x 16
zooming (zoom), n of       1 + 1 + ``SHARE_ENOUGH`` + ``MOST_STUCK`` + 2       ``MOST_CELLS`` x 60,
 floats, one table         passes; a sort of m <= n values left, as a rule     100 m
                           n / 64; k-means of these, and of the cells in
                           each level
tables of 8 bits (lattice) 2 m log U + k m**2 / 2 of m <= 256 points; for      0.5 MB, and 10 U
                           large weights 1 pass of O(log m) a weight
uniform                    1 pass for the range, 1 of O(log k) a weight        --
unique                     1 pass; a row ends at the 257th distinct value      4 n
labels                     1 pass, O(log k) a weight                           n
=========================  ==================================================  =====================

Where a bound is reached the best table that was found stands, and ``Distortion.within`` says how
far from the least error it is at most: weak duality bounds the error of every table from below.
"""

from mlopt.palette.assignment import assign
from mlopt.palette.layout import Layout
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
    "Distortion",
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
