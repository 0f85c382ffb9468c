"""Independent judges of what mlopt writes: coremltools' own loader, and a comparison of messages.

``load_program`` and ``decompressed_constants`` go through coremltools alone, and
``messages_equal_except`` reads weight files by itself, so none of them can share a defect with the
library.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import coremltools as ct
import numpy as np
from coremltools.converters.mil.frontend.milproto import load as milproto
from coremltools.converters.mil.frontend.milproto.helper import proto_to_types
from coremltools.converters.mil.mil import types
from coremltools.models import MLModel
from coremltools.proto import MIL_pb2
from google.protobuf.message import Message

Source: TypeAlias = MLModel | str | PathLike[str]

# Parameters that an op gains when its function is raised to a later opset.
GAINED_INPUTS = {
    "gather": {"batch_dims", "validate_indices"},
    "gather_nd": {"batch_dims", "validate_indices"},
    "gather_along_axis": {"validate_indices"},
    "scatter": {"validate_indices"},
    "scatter_along_axis": {"validate_indices"},
    "scatter_nd": {"validate_indices"},
    "topk": {"sort", "return_indices", "output_indices_dtype"},
    "reduce_argmax": {"output_dtype"},
    "reduce_argmin": {"output_dtype"},
    "upsample_bilinear": {"half_pixel_centers"},
    "gru": {"reset_after", "input_bias"},
}


def package_bytes(package: str | PathLike[str]) -> int:
    """Return the size of all files of a package, in bytes."""
    return sum(path.stat().st_size for path in Path(package).rglob("*") if path.is_file())


def spec_and_weights(source: Source) -> tuple[Any, Path | None]:
    """Return the Model message of a model or package, and the folder of its weight files.

    The folder is None for a model without one. A model's message is its own, not a copy.
    """
    if isinstance(source, ct.models.MLModel):
        folder = source.weights_dir
        return source.get_spec(), Path(folder) if folder else None
    package = Path(source)
    spec = ct.utils.load_spec(str(package))
    folder = package / "Data" / "com.apple.CoreML" / "weights"
    return spec, folder if folder.is_dir() else None


def load_program(source: Source) -> Any:
    """Load a model or package with coremltools' own loader and return the pymil Program.

    Raises whatever coremltools raises where the operations do not type-check, and AssertionError
    where a constant or constexpr op's inferred type is not the one that the message declares
    (coremltools itself does not compare these), or where the model is not one ML program.
    """
    (program,) = load_programs(source)
    return program


def load_programs(source: Source) -> list[Any]:
    """Return what ``load_program`` does for each ML program of a pipeline, in order.

    Pipelines in it are gone through, stages of other kinds are passed over; a model that is no
    pipeline gives one.
    """
    spec, folder = spec_and_weights(source)
    return [_load(part, folder) for part in ml_programs(spec)]


def ml_programs(spec: Any) -> list[Any]:
    """Return the Model messages to be loaded: the stages of a pipeline that are ML programs.

    A model that is no pipeline is the only one, whatever it is.
    """
    kind = spec.WhichOneof("Type")
    if kind not in ("pipeline", "pipelineClassifier", "pipelineRegressor"):
        return [spec]
    pipeline = getattr(spec, kind)
    stages = pipeline.models if kind == "pipeline" else pipeline.pipeline.models
    found = [part for stage in stages for part in ml_programs(stage)]
    return [part for part in found if part.WhichOneof("Type") == "mlProgram"]


def _load(spec: Any, folder: Path | None) -> Any:
    assert spec.WhichOneof("Type") == "mlProgram", spec.WhichOneof("Type")
    program = milproto.load(spec, spec.specificationVersion, "" if folder is None else str(folder))
    for name, function in program.functions.items():
        declared = {
            output.name: proto_to_types(output.type)
            for operation in operations(spec.mlProgram.functions[name])
            for output in operation.outputs
        }
        for op in pymil_operations(function):
            if not _holds_constant(op) or op.outputs[0].name not in declared:
                continue
            var, wanted = op.outputs[0], declared[op.outputs[0].name]
            tensor = types.is_tensor(wanted)
            shape = tuple(wanted.get_shape()) if tensor else ()
            dtype = wanted.get_primitive() if tensor else wanted
            assert (tuple(var.shape), var.dtype) == (shape, dtype), (
                f"{name}/{var.name}: inferred {var.shape} {var.dtype}, declared {shape} {dtype}"
            )
    return program


def decompressed_constants(source: Source, function: str | None = None) -> dict[str, np.ndarray]:
    """Return every constant tensor by name, constexpr ops materialised by coremltools.

    ``function`` chooses one function; without it all are read, and where there are several, the
    names are ``function/name``; in a pipeline of several models ``0/name``, ``1/name``. Constants
    in nested blocks are included; of equal names, which separate blocks may have, the second is
    ``name#2``. A constexpr op that only feeds another constexpr op has its own
    entry as well, one for each output.
    """
    programs = load_programs(source)
    values = {}
    for index, program in enumerate(programs):
        functions = program.functions
        if function is not None:
            functions = {function: functions[function]}
        for function_name, body in functions.items():
            prefix = f"{index}/" if len(programs) > 1 else ""
            prefix += f"{function_name}/" if len(functions) > 1 else ""
            for op in pymil_operations(body):
                if not _holds_constant(op):
                    continue
                is_const = op.op_type == "const"
                found = (op.outputs[0].val,) if is_const else materialised(op)
                for var, value in zip(op.outputs, found, strict=True):
                    if not isinstance(value, np.ndarray | np.generic):
                        continue
                    key, number = prefix + var.name, 1
                    while key in values:
                        number += 1
                        key = f"{prefix}{var.name}#{number}"
                    values[key] = np.asarray(value)
    return values


def materialised(op: Any) -> tuple[np.ndarray, ...]:
    """Return the outputs of a constexpr operation of pymil, by coremltools' own formulas.

    Also for chains on which its ``materialized_val_inference`` fails: it wants most parameters as
    constants, which its pass that decompresses models sees to by replacing one after the other.
    """
    values = dict.fromkeys(op.input_spec.input_types)
    for name, var in op.inputs.items():
        values[name] = var.val
        if var.val is None:
            values[name] = materialised(var.op)[var.op.outputs.index(var)]
    result: Any
    if op.op_type == "constexpr_cast":
        result = np.float32(values["source_val"])
    else:
        result = type(op).decompress(**values)
    outputs = result if isinstance(result, tuple) else (result,)
    return tuple(np.asarray(output) for output in outputs)


def pymil_operations(block: Any) -> Iterator[Any]:
    """Yield the operations of a pymil function or block, those of nested blocks included."""
    for op in block.operations:
        yield op
        for nested in op.blocks:
            yield from pymil_operations(nested)


def operations(function: Any) -> Iterator[Any]:
    """Yield the Operation messages of a Function message, those of nested blocks included."""

    def walk(block: Any) -> Iterator[Any]:
        for operation in block.operations:
            yield operation
            for nested in operation.blocks:
                yield from walk(nested)

    for block in function.block_specializations.values():
        yield from walk(block)


def messages_equal_except(
    before: Source,
    after: Source,
    changed: Collection[str] = (),
    *,
    raised: bool = False,
) -> list[str]:
    """Compare two models message for message and return the differences, as sentences.

    Offsets into weight files are compared by the bytes that they lead to. Permitted, and therefore
    not listed:

    - the operation that writes a name in ``changed`` may turn from a const into a constexpr op (or
      back), with everything in it, but for its name and the name and type of its output;
    - const and constexpr ops that exist in one model only, if all their consumers are such ops;
    - a value bound to a parameter may have become a const op of equal value whose name is bound
      there, or one in ``changed``;
    - with ``raised``: a later specification version and opset, and the parameters that ops gain
      with it (``GAINED_INPUTS``), together with the constants that feed only these. Repairs of
      negative indices are listed: a test that raises past iOS16 has to expect them.

    ``changed`` applies to every function, nested blocks included, and to every model of a pipeline.
    A name in it that is not a changed constant anywhere is a difference too.
    """
    spec_before, folder_before = spec_and_weights(before)
    spec_after, folder_after = spec_and_weights(after)
    comparison = _Comparison(folder_before, folder_after, frozenset(changed), raised)
    comparison.message(spec_before, spec_after, "")
    for name in sorted(comparison.changed - comparison.seen):
        comparison.differences.append(f"{name}: expected to change, and did not")
    return comparison.differences


class _Comparison:
    def __init__(
        self, before: Path | None, after: Path | None, changed: frozenset[str], raised: bool
    ) -> None:
        self.folders = (before, after)
        self.changed = changed
        self.raised = raised
        self.seen: set[str] = set()
        self.added: dict[str, Any] = {}
        self.differences: list[str] = []

    def differ(self, where: str, before: object, after: object) -> None:
        shorten = 60
        a, b = (str(value).replace("\n", " ")[:shorten] for value in (before, after))
        self.differences.append(f"{where or 'model'}: {a!r} became {b!r}")

    def message(self, a: Message, b: Message, where: str) -> None:
        """Compare two messages of one type."""
        if isinstance(a, MIL_pb2.Block):
            self.block(a, b, where)
            return
        if isinstance(a, MIL_pb2.Argument.Binding) and a.HasField("value") and b.name in self.added:
            self.named(a.value, b.name, where)
            return
        stored = (isinstance(v, MIL_pb2.Value) and v.HasField("blobFileValue") for v in (a, b))
        if all(stored):
            self.blobs(a, b, where)
            return
        for field in a.DESCRIPTOR.fields:
            self.field(field, a, b, f"{where}.{field.name}" if where else field.name)
        # What this version of the messages has no field for is compared as bytes.
        if _unknown(a) != _unknown(b):
            self.differ(where, "unknown fields", "other unknown fields")

    def field(self, field: Any, a: Message, b: Message, where: str) -> None:
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.is_repeated:
            self.repeated(field, x, y, where)
        elif field.message_type is not None:
            if a.HasField(field.name) != b.HasField(field.name):
                self.differ(where, a.HasField(field.name), b.HasField(field.name))
            elif a.HasField(field.name):
                self.message(x, y, where)
        elif field.has_presence and a.HasField(field.name) != b.HasField(field.name):
            self.differ(where, a.HasField(field.name), b.HasField(field.name))
        elif not _same(x, y):
            if self.raised and field.name == "specificationVersion" and y > x:
                return
            if self.raised and field.full_name.endswith("Function.opset") and y > x:
                return
            self.differ(where, x, y)

    def repeated(self, field: Any, x: Any, y: Any, where: str) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            keys = dict.fromkeys([*x, *y])
            if field.name == "block_specializations" and self.raised and len(x) == len(y) == 1:
                (a,), (b,) = x.values(), y.values()
                self.message(a, b, where)
                return
            valued = field.message_type.fields_by_name["value"].message_type is not None
            for key in keys:
                place = f"{where}[{key}]"
                if key not in x or key not in y:
                    self.differ(place, key in x, key in y)
                elif valued:
                    self.message(x[key], y[key], place)
                elif not _same(x[key], y[key]):
                    self.differ(place, x[key], y[key])
        elif len(x) != len(y):
            self.differ(where, f"{len(x)} items", f"{len(y)} items")
        elif field.message_type is None:
            if not all(map(_same, x, y)):
                self.differ(where, list(x[:4]), list(y[:4]))
        else:
            for index, (a, b) in enumerate(zip(x, y, strict=True)):
                self.message(a, b, f"{where}[{index}]")

    def block(self, a: Any, b: Any, where: str) -> None:
        """Compare blocks: the operations by the name of what they write, in order."""
        for field in a.DESCRIPTOR.fields:
            if field.name != "operations":
                self.field(field, a, b, f"{where}.{field.name}")
        ops_a, ops_b = ({_writes(op): op for op in block.operations} for block in (a, b))
        self.added |= {
            name[0]: op for name, op in ops_b.items() if name not in ops_a and _is_constant(op)
        }
        for ops, others, verb in ((ops_a, ops_b, "removed"), (ops_b, ops_a, "added")):
            for name, op in ops.items():
                if verb == "added" and self.was_bound(name[0], ops_a, ops_b):
                    continue
                if name not in others and not self.dispensable(op, ops.values()):
                    self.differences.append(f"{where}: {op.type} {name[0]} was {verb}")
        common = [name for name in ops_a if name in ops_b]
        if common != [name for name in ops_b if name in ops_a]:
            self.differences.append(f"{where}: operations changed places")
        for name in common:
            self.operation(ops_a[name], ops_b[name], f"{where}/{name[0]}")

    def named(self, value: Any, name: str, where: str) -> None:
        """Compare a bound value with the constant that is bound by name in its place."""
        op = self.added[name]
        if name in self.changed and op.type != "const":
            self.seen.add(name)
        elif op.type == "const":
            self.message(value, op.attributes["val"], f"{where}/{name}.attributes[val]")
        else:
            self.differ(where, "a value", op.type)

    def was_bound(self, name: str, before: dict[Any, Any], after: dict[Any, Any]) -> bool:
        """Whether nothing reads a constant but ops that had values in that place."""
        uses = [
            (before.get(written), key, index)
            for written, op in after.items()
            for key, argument in op.inputs.items()
            for index, binding in enumerate(argument.arguments)
            if binding.name == name
        ]
        return bool(uses) and all(
            old is not None
            and key in old.inputs
            and index < len(old.inputs[key].arguments)
            and old.inputs[key].arguments[index].HasField("value")
            for old, key, index in uses
        )

    def operation(self, a: Any, b: Any, where: str) -> None:
        name = a.outputs[0].name if a.outputs else ""
        if (
            name in self.changed
            and a.type != b.type
            and {_is_constant(a), _is_constant(b)} == {True}
        ):
            self.seen.add(name)
            for index, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=True)):
                self.message(x, y, f"{where}.outputs[{index}]")
            # Indexing a map of messages would add what it lacks.
            x, y = a.attributes.get("name"), b.attributes.get("name")
            if x is None or y is None:
                if x is not y:
                    self.differ(f"{where}.attributes[name]", x, y)
            else:
                self.message(x, y, f"{where}.attributes[name]")
            return
        for field in a.DESCRIPTOR.fields:
            place = f"{where}.{field.name}"
            if field.name == "inputs" and self.raised:
                gained = GAINED_INPUTS.get(a.type, set())
                for key in dict.fromkeys([*a.inputs, *b.inputs]):
                    if key in a.inputs and key in b.inputs:
                        self.message(a.inputs[key], b.inputs[key], f"{place}[{key}]")
                    elif key in a.inputs or key not in gained:
                        self.differ(f"{place}[{key}]", key in a.inputs, key in b.inputs)
            else:
                self.field(field, a, b, place)

    def dispensable(self, op: Any, block: Collection[Any]) -> bool:
        """Return whether ``op`` is a constant that feeds only changed ops or gained parameters."""
        if not _is_constant(op):
            return False
        name = op.outputs[0].name
        for other in block:
            for key, argument in other.inputs.items():
                if not any(binding.name == name for binding in argument.arguments):
                    continue
                gained = self.raised and key in GAINED_INPUTS.get(other.type, set())
                feeds_changed = _is_constant(other) and (
                    other.outputs[0].name in self.changed or self.dispensable(other, block)
                )
                if not (gained or feeds_changed):
                    return False
        return not any(name in _reads(nested) for other in block for nested in other.blocks)

    def blobs(self, a: Any, b: Any, where: str) -> None:
        self.message(a.type, b.type, f"{where}.type")
        if a.docString != b.docString:
            self.differ(f"{where}.docString", a.docString, b.docString)
        if a.blobFileValue.fileName != b.blobFileValue.fileName:
            self.differ(where, a.blobFileValue.fileName, b.blobFileValue.fileName)
        x, y = (
            read_blob(folder, value.blobFileValue)
            for folder, value in zip(self.folders, (a, b), strict=True)
        )
        if x != y:
            self.differences.append(f"{where}: the blob's bytes differ")


def read_blob(folder: Path | None, value: Any) -> tuple[int, int, bytes]:
    """Return (dtype id, padding bits, data) of the blob that a BlobFileValue points to."""
    assert folder is not None, f"{value.fileName}: the model has no weight files"
    with (folder / Path(value.fileName).name).open("rb") as file:
        file.seek(value.offset)
        sentinel, dtype, size, start, padding = struct.unpack("<IIQQQ", file.read(32))
        assert sentinel == 0xDEADBEEF, f"{value.fileName}: no blob at {value.offset}"
        file.seek(start)
        data = file.read(size)
    assert len(data) == size, f"{value.fileName}: the blob at {value.offset} is cut off"
    return dtype, padding, data


def _is_constant(operation: Any) -> bool:
    return operation.type == "const" or operation.type.startswith("constexpr_")


def _holds_constant(op: Any) -> bool:
    return op.op_type == "const" or op.op_type.startswith("constexpr_")


def _writes(operation: Any) -> tuple[str, ...]:
    return tuple(output.name for output in operation.outputs) or (operation.type,)


def _reads(block: Any) -> set[str]:
    """Return the names that a block's operations and outputs use, nested blocks included."""
    names = set(block.outputs)
    for op in block.operations:
        for argument in op.inputs.values():
            names.update(binding.name for binding in argument.arguments)
        for nested in op.blocks:
            names |= _reads(nested)
    return names


def _same(a: object, b: object) -> bool:
    return a == b or (a != a and b != b)


def _unknown(message: Message) -> list[tuple[int, int, object]]:
    from google.protobuf.unknown_fields import UnknownFieldSet

    return [(f.field_number, f.wire_type, f.data) for f in UnknownFieldSet(message)]
