"""What can be chosen: the closed sets of options and the defaults that several rooms share.

The command line offers these before the library is loaded; this module loads nothing.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

TableMode: TypeAlias = Literal["kmeans", "uniform", "unique"]
"""The ways to make a table without a function of one's own."""

Mode: TypeAlias = Literal["kmeans", "uniform", "unique", "custom"]
"""The ways to make a table."""

GranularityName: TypeAlias = Literal["per_tensor", "per_grouped_channel"]
"""How much of a weight shares one lookup table."""

OnIndivisible: TypeAlias = Literal["skip", "divisor", "per_tensor"]
"""What to do where the group size does not divide the channels."""

Nbits: TypeAlias = Literal[1, 2, 3, 4, 6, 8]
"""Bits that an index of a palette can have."""

LutDtype: TypeAlias = Literal["int8", "uint8"]
"""Dtypes of a lookup table that is stored in 8 bits."""

Method: TypeAlias = Literal["auto", "guided", "hessian", "diagonal", "plain"]
"""What tables are fitted to: answers as far as a calibration tells, or the values of weights."""

Precision: TypeAlias = Literal["float32", "as_declared"]
"""In what numbers a model is run."""

Statistics: TypeAlias = Literal["diagonal", "hessian", "guided"]
"""What a calibration knows of the inputs of weights: mean squares, all second moments, or these
weighted by how much the outputs of the model depend on each position."""

LossName: TypeAlias = Literal["squared", "kl"]
"""What errors of a model's outputs cost: their squares, or the divergence of classes."""

Tuned: TypeAlias = Literal["tables", "scales", "biases", "norms"]
"""What gradient steps can change: lookup tables, scales of weights, biases, and the factors and
offsets of normalizations."""

Costs: TypeAlias = Literal["measured", "near", "predicted"]
"""Which forms of weights a plan runs the model with: all of them, those that are chosen, or one of
each weight."""

Device: TypeAlias = Literal["neural-engine"]
"""Devices of which it is known what runs on them."""

SortKey: TypeAlias = Literal["order", "name", "size", "bytes", "distinct", "sparsity"]
"""What the rows of an inventory can be sorted by."""

MODES: tuple[Mode, ...] = get_args(Mode)
ON_INDIVISIBLE: tuple[OnIndivisible, ...] = get_args(OnIndivisible)
LUT_DTYPES: tuple[LutDtype, ...] = get_args(LutDtype)
METHODS: tuple[Method, ...] = get_args(Method)
NBITS: tuple[Nbits, ...] = get_args(Nbits)
STATISTICS: tuple[Statistics, ...] = get_args(Statistics)
LOSSES: tuple[LossName, ...] = get_args(LossName)
TUNED: tuple[Tuned, ...] = get_args(Tuned)
COSTS: tuple[Costs, ...] = get_args(Costs)
DEVICES: tuple[Device, ...] = get_args(Device)
SORT_KEYS: tuple[SortKey, ...] = get_args(SortKey)


DEFAULT_GROUP_SIZE = 32
DEFAULT_WEIGHT_THRESHOLD = 2048
