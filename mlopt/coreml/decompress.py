"""Putting plain weights back in the place of palettes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from mlopt.coreml.models import as_mlmodel, temporary_package
from mlopt.errors import ModelFormatError
from mlopt.mil.edits import Edits
from mlopt.mil.messages import Operation
from mlopt.mil.package import open_package
from mlopt.mil.program import Constant, Node, Variable
from mlopt.mil.writer import PackageWriter, check_destination
from mlopt.palette.bits import unpack_bits
from mlopt.palette.palettized import Palettized

_LUT = "constexpr_lut_to_dense"
_SCALE = "constexpr_blockwise_shift_scale"


def decompress_weights(mlmodel: Any) -> Any:
    """Replace palettized weights by plain ones; a drop-in for coremltools' function of that name.

    Parameters
    ----------
    mlmodel
        An ``MLModel`` of type ``mlprogram``. It is not changed.

    Returns
    -------
    A new ``MLModel`` with constants in the place of ``constexpr_lut_to_dense`` operations and of
    per-channel scales after them.

    Raises
    ------
    ModelFormatError
        The model is damaged, or holds compressed weights of another form; all are listed.
    """
    with contextlib.ExitStack() as cleanup:
        path = temporary_package(cleanup)
        path = decompress(mlmodel, path)
        cleanup.pop_all()
    return as_mlmodel(path, like=mlmodel, is_temporary=True)


def decompress(source: Any, output: str | os.PathLike[str]) -> Path:
    """Write a package with plain weights in the place of palettes, from file to file.

    Parameters
    ----------
    source
        The path of an ``.mlpackage``, or an ``MLModel``. It is not changed.
    output
        The package to write; it appears complete or not at all.

    Returns
    -------
    The path of what was written.

    Raises
    ------
    ModelFormatError
        As :func:`decompress_weights`.
    """
    check_destination(output)
    package = open_package(source)
    nodes = [node for program in package.programs for node in program.nodes()]
    compressed = [node for node in nodes if node.op_type.startswith("constexpr_")]
    foreign = [node for node in compressed if not _is_ours(node)]
    if foreign:
        listed = ", ".join(f"{node.op_type}({node.name})" for node in foreign[:8])
        more = f" and {len(foreign) - 8} more" if len(foreign) > 8 else ""
        raise ModelFormatError(
            f"{package.path}: only palettized weights (constexpr_lut_to_dense, and per-channel "
            f"scales after it) can be decompressed so far, got {listed}{more}"
        )
    scaled = {id(node.inputs["data"][0]) for node in compressed if node.op_type == _SCALE}
    with PackageWriter(package, output) as writer:
        edits = Edits()
        stored: dict[object, Any] = {}
        for node in compressed:
            if id(node.outputs[0]) in scaled:
                # Only the scale that follows reads it, and that has its own output.
                if _has_other_uses(node.outputs[0]):
                    edits.replace(node.block, node.op, [_const(node, writer, stored)])
                else:
                    edits.replace(node.block, node.op, [])
                continue
            edits.replace(node.block, node.op, [_const(node, writer, stored)])
        edits.apply()
        return writer.finish()


def palette_of(node: Node) -> Palettized:
    """The palette that a ``constexpr_lut_to_dense`` holds, with the scale if ``node`` is one.

    ``node``: either operation of the forms that :mod:`mlopt.coreml.emission` writes.
    """
    scale = None
    if node.op_type == _SCALE:
        scale = _value(node, "scale")
        data = node.inputs["data"][0]
        assert isinstance(data, Variable) and data.node is not None
        node = data.node
    table = _value(node, "lut")
    packed = _value(node, "indices")
    indices = node.constant_input("indices")
    assert indices is not None
    if "shape" in node.inputs:
        shape = tuple(int(n) for n in _value(node, "shape"))
        entries = table.size
        nbits = max(entries.bit_length() - 1, 0)
        if 1 << nbits != entries:
            raise ModelFormatError(f"{node!r}: a lut has 2**nbits entries, got {entries}")
        flat = unpack_bits(packed.reshape(-1), nbits, int(np.prod(shape, dtype=np.int64)))
        return Palettized(table.reshape([1] * len(shape) + [entries, 1]), flat.reshape(shape))
    vector_axis = node.scalar("vector_axis") if table.shape[-1] > 1 else None
    nbits = int(indices.dtype.removeprefix("uint"))
    unpacked = packed if nbits == 8 else unpack_bits(packed, nbits, indices.size)
    return Palettized(
        table, np.ascontiguousarray(unpacked).reshape(indices.shape), vector_axis, scale
    )


def _is_ours(node: Node) -> bool:
    """Whether a constexpr operation is one of the forms that mlopt writes."""
    if node.op_type == _LUT:
        lut = node.constant_input("lut")
        return lut is not None and lut.dtype in ("fp16", "fp32")
    if node.op_type != _SCALE or "offset" in node.inputs:
        return False
    data, scale = node.inputs["data"][0], node.constant_input("scale")
    if scale is None or sum(n > 1 for n in scale.shape) > 1:
        return False
    if not isinstance(data, Variable) or data.node is None or data.node.op_type != _LUT:
        return False
    shape = tuple(d.constant.size for d in data.type.tensorType.dimensions)
    return all(s in (1, n) for s, n in zip(scale.shape, shape, strict=True)) and (
        scale.size > 1 or 1 in shape
    )


def _value(node: Node, parameter: str) -> Any:
    constant = node.constant_input(parameter)
    if constant is None:
        raise ModelFormatError(f"{node!r}: the parameter {parameter!r} is missing or no constant")
    return constant.value()


def _has_other_uses(variable: Variable) -> bool:
    return variable.is_block_output or any(u.op_type != _SCALE for u in variable.consumers)


def _const(node: Node, writer: PackageWriter, stored: dict[object, Any]) -> Any:
    """The const operation in the place of ``node``; equal storage is decompressed once."""
    keys: list[object] = []
    files = []
    for holder in _holders(node):
        for bindings in holder.inputs.values():
            for bound in bindings:
                if isinstance(bound, Constant):
                    # Of equal bytes only one blob is stored, whatever the shapes.
                    key = (bound.storage, bound.shape)
                    keys.append(key if bound.storage else bound.message.SerializeToString())
                    files.append(bound.storage)
    whole = tuple(keys)
    if whole not in stored:
        weight = palette_of(node).dequantize()
        stored[whole] = writer.add_value(
            weight,
            specification_version=writer.package.programs[0].specification_version,
            file_name=next((storage[0] for storage in files if storage), None),
        )
    const = Operation()
    const.CopyFrom(node.op)
    const.type = "const"
    const.ClearField("inputs")
    for name in list(const.attributes):
        if name in ("indices", "lut", "shape"):
            del const.attributes[name]
    const.attributes["val"].CopyFrom(stored[whole])
    return const


def _holders(node: Node) -> list[Node]:
    """The operations whose parameters make up the weight that ``node`` gives."""
    if node.op_type != _SCALE:
        return [node]
    data = node.inputs["data"][0]
    assert isinstance(data, Variable) and data.node is not None
    return [node, data.node]
