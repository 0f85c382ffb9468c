"""Decompression: plain constants instead of ``constexpr`` operations, whichever tool wrote them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from mlopt.coreml.constexpr import CompressedForm, is_constexpr, parameter_names
from mlopt.coreml.links import link_notes
from mlopt.coreml.models import ModelSource, rewritten_mlmodel
from mlopt.coreml.progress import Progress
from mlopt.coreml.weights import Instance, Weight, is_part, node_of, weights_of
from mlopt.mil.dtypes import dtype_named
from mlopt.mil.edits import Edits
from mlopt.mil.messages import Operation, Value
from mlopt.mil.opening import open_package
from mlopt.mil.program import Node
from mlopt.mil.values import string_value
from mlopt.mil.writer import PackageWriter, check_destination
from mlopt.palette.value.bits import pack_bits
from mlopt.threads import done_ahead, processors

if TYPE_CHECKING:
    from coremltools.models import MLModel


@attrs.frozen(kw_only=True)
class DecompressedWeight:
    """One weight that was compressed.

    Parameters
    ----------
    name
        Of the plain weight: that of the ``constexpr`` operation that computed it.
    functions
        The functions that use it, in program order.
    shape, dtype
        Of the plain weight; dtype by the format's name (``"fp16"``).
    compression
        How it was compressed.
    nbytes
        Bytes of the plain weight.
    """

    name: str
    functions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    compression: CompressedForm
    nbytes: int


@attrs.frozen
class DecompressionResult(os.PathLike[str]):
    """The package that was written, and its decompressed weights. Usable as a path to the package.

    Parameters
    ----------
    path
        The package.
    weights
        The weights that were compressed in the source, in program order, each stored weight once.
    notes
        Further remarks: files of the source that are links to outside of its package.
    """

    path: Path
    weights: tuple[DecompressedWeight, ...]
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)


def decompress_weights(mlmodel: MLModel) -> MLModel:
    """Replace compressed weights by plain ones; a drop-in for coremltools' function of that name.

    Parameters
    ----------
    mlmodel
        An ``MLModel`` of type ``mlprogram``, or a pipeline of such. It is not changed.

    Returns
    -------
    A new ``MLModel`` with constants instead of ``constexpr`` operations.

    Raises
    ------
    ModelFormatError
        The model is damaged.
    """
    return rewritten_mlmodel(lambda path: decompress(mlmodel, path).path, like=mlmodel)


def decompress(
    source: ModelSource, output: str | os.PathLike[str], *, progress: Progress | None = None
) -> DecompressionResult:
    """Write a package with plain weights instead of compressed ones, from file to file.

    Every form and chain of ``constexpr`` operations is decompressed, to the same values as in
    coremltools. Names and types do not change. A weight that is stored once is decompressed once,
    and stays shared. Three large weights are in memory at a time, or more where they are small.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel``. It is not changed.
    output
        The package to write; it appears complete or not at all.
    progress
        Called as ``progress(elements_done, elements_in_all, weight_name)`` after each weight.

    Raises
    ------
    ModelFormatError
        The source is damaged or is not an ML program.
    """
    check_destination(output)
    package = open_package(source)
    every_weight, nodes_of_programs = weights_of(package, smallest=0)
    weights = [weight for weight in every_weight if weight.is_compressed]
    # Refuse a damaged source before any work.
    rows = [_row(weight) for weight in weights]
    total, done = sum(weight.size * len(weight.instances) for weight in weights), 0

    # Where a value is stored depends on the version of its program.
    keys = [(weight.content, weight.program.specification_version) for weight in weights]
    values = done_ahead(_jobs(weights, keys), processors(), ahead_of_use=1)
    with PackageWriter(package, output) as writer, contextlib.closing(values):
        edits = Edits()
        stored: dict[object, Value] = {}
        decompressed: dict[object, DecompressedWeight] = {}
        constants: dict[int, list[Operation]] = {}
        for weight, key, row, value in zip(weights, keys, rows, values, strict=True):
            if value is not None:
                stored[key] = _stored(weight, value, writer)
            decompressed[key] = _merged(decompressed.get(key, row), row)
            for instance in weight.instances:
                made = constants.setdefault(id(instance.node), [])
                made.append(_const(instance, stored[key]))
                done += weight.size
                if progress is not None:
                    progress(done, total, weight.name)
        for nodes in nodes_of_programs:
            _replace(nodes, constants, edits)
        edits.apply()
        path = writer.finish()
        return DecompressionResult(path, tuple(decompressed.values()), link_notes(package))


def _replace(nodes: Iterable[Node], constants: dict[int, list[Operation]], edits: Edits) -> None:
    """Replace each constexpr operation by its constants, and remove what it alone read."""
    for node in nodes:
        if is_constexpr(node):
            edits.replace(node.block, node.op, constants.get(id(node), []))
        elif node.op_type == "const" and node.outputs:
            constant = node.outputs[0].constant
            if constant is not None and is_part(constant):
                edits.replace(node.block, node.op, [])


def _jobs(
    weights: Sequence[Weight], keys: Sequence[object]
) -> Iterator[tuple[int, Callable[[], npt.NDArray[Any]]] | None]:
    """Yield what decompresses each weight; None for those that have the key of an earlier one."""
    seen = set()
    for weight, key in zip(weights, keys, strict=True):
        yield None if key in seen else (weight.size, partial(_plain, weight))
        seen.add(key)


def _plain(weight: Weight) -> npt.NDArray[Any]:
    return _packed(weight.value(), weight.element_type)


def _stored(weight: Weight, plain: npt.NDArray[Any], writer: PackageWriter) -> Value:
    """Store the plain weight and release the compressed one; return the stored value."""
    value = writer.add_value(
        plain,
        weight.element_type,
        weight.shape,
        specification_version=weight.program.specification_version,
        file_name=weight.file_name,
    )
    weight.release()
    return value


def _packed(value: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return the elements as stored: as one bit stream if they are narrower than a byte."""
    kind = dtype_named(dtype)
    if not kind.packed:
        return value
    return pack_bits(value.view(np.uint8) & np.uint8((1 << kind.bits) - 1), kind.bits)


def _const(instance: Instance, value: Value) -> Operation:
    """Return the const operation with the name and the output of a compressed weight."""
    node = node_of(instance)
    const = Operation()
    const.CopyFrom(node.op)
    const.type = "const"
    const.ClearField("inputs")
    for name in parameter_names(node) & set(const.attributes):
        del const.attributes[name]
    if len(const.outputs) > 1:
        output = next(item for item in node.op.outputs if item.name == instance.name)
        const.ClearField("outputs")
        const.outputs.add().CopyFrom(output)
        const.attributes["name"].CopyFrom(string_value(output.name))
    const.attributes["val"].CopyFrom(value)
    return const


def _row(weight: Weight) -> DecompressedWeight:
    assert weight.compression is not None
    return DecompressedWeight(
        name=weight.name,
        functions=weight.functions,
        shape=weight.shape,
        dtype=weight.element_type,
        compression=weight.compression,
        nbytes=weight.plain_nbytes,
    )


def _merged(row: DecompressedWeight, other: DecompressedWeight) -> DecompressedWeight:
    """Return the row of a weight that two programs share."""
    return attrs.evolve(row, functions=tuple(dict.fromkeys([*row.functions, *other.functions])))
