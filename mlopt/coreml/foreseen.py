"""The bytes that palettized weights, and the package, will take: before anything is clustered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from mlopt.choices import Method
from mlopt.coreml.biases import BiasPlace, NewBias, bias_operation
from mlopt.coreml.calibrated import guides_of
from mlopt.coreml.config import OptimizationConfig, for_palettization
from mlopt.coreml.decisions import decide
from mlopt.coreml.emission import PaletteOperations
from mlopt.coreml.execution import compute
from mlopt.coreml.foreseen_palettes import ForeseenPalettes
from mlopt.coreml.joint import Clustered, strategy_of
from mlopt.coreml.models import ModelSource, TargetName
from mlopt.coreml.plans import Plan
from mlopt.coreml.replacement import Replacements
from mlopt.coreml.weights import Weight
from mlopt.mil.blob import ALIGNMENT, METADATA_BYTES
from mlopt.mil.dtypes import DType
from mlopt.mil.messages import Operation
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.sizing import PackageSizer, unknown
from mlopt.mil.targets import Target
from mlopt.mil.value_store import ValueStore
from mlopt.palette.value.spec import PaletteSpec
from mlopt.statistics.guidance import UNGUIDED, CalibrationSource, Guidance, Guides
from mlopt.threads import processors

_SOME_OFFSET = 1 << 24
"""A place in a weight file whose number takes four bytes in a message, as most of them do."""


def foreseen_package_bytes(
    source: ModelSource,
    config: OptimizationConfig,
    *,
    minimum_deployment_target: TargetName | None = None,
    joint_compression: bool = False,
    calibration: CalibrationSource | None = None,
    method: Method = "auto",
    correct_biases: bool = True,
    workers: int | None = None,
) -> int:
    """Return the bytes of all files of the package that ``palettize`` would write.

    Goes the way of :func:`mlopt.coreml.palettize` with palettes of unknown content, and writes
    nothing. ``unique``, ``custom``, ``uniform``, quantized weights and weights of few distinct
    values are carried out, since their sizes, or what they share with others, depend on the values.

    The number is exact unless parts of palettes of different weights turn out equal by chance: they
    are stored once then, and the package is so much smaller. That can happen to tables of 8-bit
    codes (``lut_dtype``) of weights that are distributed alike, and to the indices of a weight that
    is a multiple of another. It holds for :func:`mlopt.calibration.palettize_sequentially` too.

    Reads 4096 elements of each weight, and with a calibration all. Parameters and errors as for
    :func:`mlopt.coreml.palettize`.
    """
    config = for_palettization(config)
    package = open_package(source)
    plan = decide(
        package,
        config,
        minimum_deployment_target=minimum_deployment_target,
        joint_compression=joint_compression,
    )
    guides = guides_of(plan.decisions, calibration, method=method, correct_biases=correct_biases)
    return bytes_of_plan(package, plan, guides, workers=workers)


def bytes_of_plan(
    package: Package, plan: Plan, guides: Guides[BiasPlace], *, workers: int | None = None
) -> int:
    """Return the bytes of a package once a plan is carried out; the package is used up by it."""
    sizer = PackageSizer(package)
    replacements = Replacements(sizer, plan.raises)
    palettes = ForeseenPalettes(workers or processors())
    for decision in plan.decisions:
        weight, spec = decision.weight, decision.result
        if not isinstance(spec, PaletteSpec):
            continue
        guidance = guides.of(weight)
        palette = palettes.of(weight, spec, guidance)
        if palette is not None:
            replacements.replace(
                weight.program,
                weight.nodes,
                palette,
                file_name=weight.file_name,
                bias=_foreseen_bias(guidance),
            )
    replacements.apply()
    return sizer.finish()


def foreseen_nbytes(
    weight: Weight,
    spec: PaletteSpec | None,
    *,
    target: Target,
    guidance: Guidance[BiasPlace] = UNGUIDED,
) -> int:
    """Return what a package has more for a weight in a form than if there were no such weight.

    These are its blobs in the weight file, with their metadata and alignment, and the operations
    that define it in the program. Sums of them differ from sizes of packages by a constant, by a
    few bytes for each reference to a blob, and where weights share blobs.

    Parameters
    ----------
    spec
        The palette; None: the weight is stored as it is.
    target
        The target of the result, which decides how palettes are stored.
    guidance
        What a calibration says: whether a bias is added, or gets a blob of its own.
    """
    if spec is None:
        blobs = sum(_blob(constant.nbytes) for constant in weight.stored if constant.storage)
        return blobs + sum(_text(node.op) for node in weight.nodes)
    if spec.nbits is not None:
        palette = strategy_of(weight).foresee(weight, spec)
    else:
        made = compute(weight, spec, guidance=guidance)
        if not isinstance(made, Clustered):
            return foreseen_nbytes(weight, None, target=target)
        palette = made.palette
    store = _Sum()
    operations = PaletteOperations(palette, store, target=target, file_name=weight.file_name)
    texts = sum(_text(op) for node in weight.nodes for op in operations.replacing(node, str))
    bias = _foreseen_bias(guidance)
    if bias is not None:
        texts += _bias_text(bias, store, target=target)
    return store.nbytes + texts


def _foreseen_bias(guidance: Guidance[BiasPlace]) -> NewBias | None:
    """Return the bias that a weight leads to, of unknown content."""
    if guidance.bias is None or guidance.moments is None:
        return None
    matrices = guidance.moments.arrangement
    shape = (matrices.blocks * matrices.rows,)
    return NewBias(guidance.bias, unknown(shape, guidance.bias.dtype))


def _bias_text(bias: NewBias, store: _Sum, *, target: Target) -> int:
    """Store a bias, and return the bytes of its operation; both less those of one that it replaces.

    A bias that other operations read too stays.
    """
    place, old = bias.place, bias.place.bias
    op = bias_operation(f"{place.reader.name}_bias", place.element_type, bias.values.shape)
    version = target.specification_version
    value = store.add_value(bias.values, place.element_type, specification_version=version)
    op.attributes["val"].CopyFrom(value)
    if old is None or old.node is None or old.inline or len(old.consumers) > 1:
        return _text(op)
    store.nbytes -= _blob(old.nbytes) if old.storage else 0
    return _text(op) - _text(old.node.op)


@attrs.define(eq=False)
class _Sum(ValueStore):
    """Adds up what blobs take, each for itself."""

    nbytes: int = 0

    def _add(
        self,
        file_name: str,
        dtype: str | DType,
        data: Any,
        padding_bits: int,
        release: Callable[[int, int], None] | None = None,
    ) -> int:
        self.nbytes += _blob(data.nbytes)
        return _SOME_OFFSET


def _blob(nbytes: int) -> int:
    """Return what a blob takes with its metadata, up to where the next one begins."""
    return METADATA_BYTES + -(-nbytes // ALIGNMENT) * ALIGNMENT


def _text(op: Operation) -> int:
    """Return what an operation takes in the message of its block."""
    nbytes = int(op.ByteSize())
    return nbytes + 1 + -(-max(nbytes.bit_length(), 1) // 7)
