"""What stands in a package, read from its message and weight files.

Neither mlopt nor coremltools' loader takes part, so that this works on models which coremltools
does not load, and can judge what mlopt writes.
"""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from coremltools.proto import MIL_pb2

from tests import judges


@attrs.frozen
class Place:
    """A Value that an operation of a message holds; ``number`` counts those of the package."""

    number: int
    program: int
    function: str
    op: Any
    value: Any

    @property
    def name(self) -> str:
        """What the operation writes."""
        return str(self.op.outputs[0].name)

    @property
    def key(self) -> object:
        """Equal for values in one place of one weight file."""
        return place_of(self.value) or self.number

    @property
    def is_weight(self) -> bool:
        """Whether a report has to account for it."""
        kind = self.value.type.tensorType.dataType
        is_tensor = self.value.type.WhichOneof("type") == "tensorType"
        return is_tensor and kind != MIL_pb2.STRING and math.prod(shape_of(self.value)) >= 10


def operations_of(block: Any) -> Iterator[Any]:
    """The operations of a block, those of nested blocks included."""
    for op in block.operations:
        yield op
        for nested in op.blocks:
            yield from operations_of(nested)


def places(package: Path) -> Iterator[Place]:
    """Every Value that operations hold, in const operations and bound to others."""
    spec, _ = judges.spec_and_weights(package)
    number = 0
    for index, program in enumerate(judges.ml_programs(spec)):
        for name, function in program.mlProgram.functions.items():
            for op in operations_of(function.block_specializations[function.opset]):
                values = [value for key, value in op.attributes.items() if key != "name"]
                for argument in op.inputs.values():
                    values += [b.value for b in argument.arguments if b.HasField("value")]
                for value in values:
                    yield Place(number, index, name, op, value)
                    number += 1


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a tensor; () for what is none."""
    return tuple(d.constant.size for d in value.type.tensorType.dimensions)


def place_of(value: Any) -> tuple[str, int] | None:
    """Weight file, in one spelling of its name, and offset; None for a value in the message."""
    if not value.HasField("blobFileValue"):
        return None
    return posixpath.normpath(value.blobFileValue.fileName), value.blobFileValue.offset


def floats(value: Any, folder: Path | None) -> np.ndarray:
    """The elements of a float tensor, as they are stored."""
    kinds = {MIL_pb2.FLOAT16: np.float16, MIL_pb2.FLOAT32: np.float32}
    if value.HasField("blobFileValue"):
        data = judges.read_blob(folder, value.blobFileValue)[2]
    else:
        tensor = value.immediateValue.tensor
        data = tensor.bytes.values or np.array(tensor.floats.values, np.float32).tobytes()
    return np.frombuffer(data, kinds[value.type.tensorType.dataType]).reshape(shape_of(value))


def palette_of_message(op: Any, folder: Path | None) -> np.ndarray:
    """What a constexpr_lut_to_dense gives: 4 bits, scalars, groups on any one axis."""
    shape = tuple(d.constant.size for d in op.outputs[0].type.tensorType.dimensions)
    values = {key: a.arguments[0].value for key, a in op.inputs.items()} or dict(op.attributes)
    packed = np.frombuffer(judges.read_blob(folder, values["indices"].blobFileValue)[2], np.uint8)
    indices = np.column_stack([packed & 15, packed >> 4]).reshape(-1)[: math.prod(shape)]
    indices = indices.reshape(shape)
    table = floats(values["lut"], folder)
    table = table.reshape([1] * len(shape) + [16, 1]) if table.ndim == 1 else table
    assert table.shape[-2:] == (16, 1)
    for axis, groups in enumerate(table.shape[: len(shape)]):
        table = np.repeat(table, shape[axis] // groups, axis)
    return np.take_along_axis(table[..., 0], indices[..., None].astype(int), -1)[..., 0]


Key = tuple[int, str, str, int]
"""Program, function, name, and how often the function has had the name before."""


def bound_weights(op: Any) -> Iterator[Any]:
    """The weights that an ordinary operation has bound as values, as the const operations to be."""
    if op.type in ("const", "custom_layer") or op.type.startswith("constexpr_"):
        return
    for parameter, argument in sorted(op.inputs.items()):
        for index, binding in enumerate(argument.arguments):
            value = binding.value
            in_file = value.HasField("blobFileValue")
            if binding.HasField("value") and (in_file or math.prod(shape_of(value)) >= 10):
                const = MIL_pb2.Operation(type="const")
                const.outputs.add(name=f"{op.outputs[0].name}_{parameter}_{index}")
                const.outputs[0].type.CopyFrom(value.type)
                const.attributes["val"].CopyFrom(value)
                yield const


def constants(package: Path) -> dict[Key, Any]:
    """The const and constexpr operations of a package, and weights that are bound as values."""
    spec, _ = judges.spec_and_weights(package)
    found: dict[Key, Any] = {}
    for index, program in enumerate(judges.ml_programs(spec)):
        for name, function in program.mlProgram.functions.items():
            block = function.block_specializations[function.opset]
            seen: Counter[str] = Counter()
            for op in operations_of(block):
                is_constant = op.type == "const" or op.type.startswith("constexpr_")
                for const in [op] if is_constant else bound_weights(op):
                    written = const.outputs[0].name
                    found[(index, name, written, seen[written])] = const
                    seen[written] += 1
    return found


def elements(op: Any) -> Any:
    """The Value of a const, or of the indices of a palette."""
    if op.type == "const":
        return op.attributes["val"]
    return op.inputs["indices"].arguments[0].value if op.inputs else op.attributes["indices"]


def dense_weights(package: Path) -> dict[Key, np.ndarray]:
    """Float tensors of const and constexpr_lut_to_dense operations, read here."""
    _, folder = judges.spec_and_weights(package)
    found = {}
    for key, op in constants(package).items():
        kind = op.outputs[0].type.tensorType.dataType
        if kind not in (MIL_pb2.FLOAT16, MIL_pb2.FLOAT32):
            continue
        if op.type == "const":
            found[key] = floats(op.attributes["val"], folder)
        else:
            found[key] = palette_of_message(op, folder)
    return found


def tree(model: Any) -> list[Any]:
    """A model and all models in it, pipelines gone through."""
    kind = model.WhichOneof("Type")
    inner = getattr(model, kind)
    inner = getattr(inner, "pipeline", inner)
    stages = inner.models if kind.startswith("pipeline") else []
    return [model, *(found for stage in stages for found in tree(stage))]


def compressed(function: Any) -> bool:
    """Whether a function has a constexpr operation."""
    return any(op.type.startswith("constexpr_") for op in judges.operations(function))
