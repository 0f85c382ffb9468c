"""Strategies of palettization, and their result."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from mlopt.coreml.biases import BiasPlace, NewBias
from mlopt.coreml.constexpr.parameters import is_constexpr
from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.weights import Weight
from mlopt.palette.value.distortion import Distortion
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import Guidance
from mlopt.text.words import human_bytes


@attrs.frozen(eq=False)
class Clustered:
    """The palette of a weight, its distortion, and notes for the weight's row.

    The distortion is that of the plain weight; zeros of a sparse one stay zero. bias: the new bias
    of the operation that reads it, None for no change; output_snr_db: as in ``WeightRow``.
    """

    palette: PackedPalette
    distortion: Distortion
    notes: tuple[str, ...] = ()
    bias: NewBias | None = None
    output_snr_db: float | None = None


@attrs.frozen(eq=False)
class Strategy:
    """Palettization of weights of one form of storage.

    Attributes
    ----------
    palettize
        Clusters a weight in the given number of threads, as a calibration guides it. The spec is
        for the plain weight's shape. Raises ``NoPaletteError`` if there is no such palette; the
        message is the reason.
    foresee
        Returns the palette that ``palettize`` would, of its size and with unknown values, which
        take no memory: see :func:`mlopt.mil.sizing.unknown`. The spec has ``nbits``.
    check
        Checks without clustering that ``palettize`` has what it needs; raises the same error.
    has_scales
        Whether the weight brings scales for its tables, so that a spec has neither a scale nor a
        ``lut_dtype``.
    """

    palettize: Callable[[Weight, PaletteSpec, int, Guidance[BiasPlace]], Clustered]
    foresee: Callable[[Weight, PaletteSpec], PackedPalette]
    check: Callable[[Weight, PaletteSpec], None]
    has_scales: bool = False


def has_own_data(weight: Weight, parameter: str, dtypes: frozenset[str]) -> bool:
    """Whether a palette can replace the data that a compressed weight has as ``parameter``.

    That holds for single operations, since a chain of several is compressed twice already, and
    only if nothing else reads the constant or continues from the weight: it would have to stay.
    """
    if len(weight.chain) > 1 or any(
        is_constexpr(use.node)
        for node in weight.nodes
        for output in node.outputs
        for use in output.consumers
    ):
        return False
    constants = [node.constant_input(parameter) for node in weight.nodes]
    return all(
        constant is not None
        and constant.dtype in dtypes
        and len(constant.consumers) == 1
        and not constant.is_block_output
        for constant in constants
    )


def joint_notes(nbytes: int, plain_nbytes: int) -> tuple[str, ...]:
    """A warning if a compressed weight would be smaller when only palettized."""
    if nbytes <= plain_nbytes:
        return ()
    return (
        f"takes {human_bytes(nbytes)} like this, {human_bytes(plain_nbytes)} if the plain weight "
        "is palettized: decompress it first",
    )
