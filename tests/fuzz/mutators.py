"""Damage to the files of a package, from single bits to whole operations. All of it by ``rng``."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, EncodeError

from mlopt.mil.messages import Model
from tests.fuzz.seeds import MODEL, Files

NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 63, 64, 65, 127, 128, 255, 256, 1000, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
WORDS = (
    *(
        "",
        ".",
        "..",
        "/",
        "\0",
        "main",
        "x",
        "name",
        "val",
        "const",
        "nowhere",
        "ü" * 40,
        "a" * 300,
    ),
    *("constexpr_lut_to_dense", "constexpr_blockwise_shift_scale", "constexpr_sparse_to_dense"),
    *("constexpr_affine_dequantize", "constexpr_lut_to_sparse", "constexpr_cast"),
    *("constexpr_sparse_blockwise_shift_scale", "conv", "linear", "gather", "matmul", "cond"),
    *("CoreML4", "CoreML5", "CoreML6", "CoreML7", "CoreML8", "CoreML9", "CoreML10"),
    *("@model_path/weights/weight.bin", "@model_path/model.mlmodel", "@model_path/../x"),
    *("@model_path/weights", "@model_path//weights/./weight.bin", "/dev/zero"),
)

Mutator = Callable[[Files, random.Random], None]


def mutate(files: Files, rng: random.Random) -> tuple[Files, list[str]]:
    """Return the files with one to four kinds of damage, and the names of these."""
    damaged = dict(files)
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    chosen = rng.choices(_MUTATORS, _WEIGHTS, k=count)
    for mutator in chosen:
        mutator(damaged, rng)
    return damaged, [mutator.__name__ for mutator in chosen]


# --- bytes ----------------------------------------------------------------------------------------


def _damage_bytes(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    kind = rng.randrange(6)
    if kind == 0 and data:
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 4, 16, 64, 300)))
    if kind == 1:
        del data[start:end]
    elif kind == 2:
        data[start:end] = rng.randbytes(end - start)
    elif kind == 3:
        data[start:start] = data[start:end]
    elif kind == 4:
        del data[start:]
    else:
        data[start:end] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (end - start)
    return bytes(data)


def _weight_file(files: Files, rng: random.Random) -> str | None:
    names = [name for name in sorted(files) if name.endswith(".bin")]
    return rng.choice(names) if names else None


def weight_bytes(files: Files, rng: random.Random) -> None:
    name = _weight_file(files, rng)
    if name:
        files[name] = _damage_bytes(files[name], rng)


def metadata(files: Files, rng: random.Random) -> None:
    """A field of a blob's metadata, or of the header, has another value."""
    name = _weight_file(files, rng)
    if not name or len(files[name]) < 128:
        return
    raw = bytearray(files[name])
    begins = [at for at in range(64, len(raw) - 63, 64) if raw[at : at + 4] == b"\xef\xbe\xad\xde"]
    if rng.random() < 0.1 or not begins:
        struct.pack_into("<I", raw, rng.choice((0, 4)), rng.choice(NUMBERS) % 2**32)
    else:
        at = rng.choice(begins)
        position, size = rng.choice(((0, 4), (4, 4), (8, 8), (8, 8), (16, 8), (16, 8), (24, 8)))
        old = int.from_bytes(raw[at + position : at + position + size], "little")
        others = (*NUMBERS, old + 1, old - 1, old * 2, old // 2, old + 64, old - 64, len(raw) - old)
        new = rng.choice((rng.choice(others), rng.randrange(20), rng.choice(begins)))
        raw[at + position : at + position + size] = (new % 256**size).to_bytes(size, "little")
    files[name] = bytes(raw)


def elements(files: Files, rng: random.Random) -> None:
    """Data becomes what arithmetic trips over: infinities, NaNs, zeros, the largest numbers."""
    name = _weight_file(files, rng)
    if not name or len(files[name]) < 256:
        return
    raw = bytearray(files[name])
    pattern = rng.choice(
        (b"\0\x7c", b"\0\xfc", b"\xff\x7f", b"\0\0", b"\xff\x7b", b"\1\0", b"\xff")
    )
    start = rng.randrange(128, len(raw))
    end = min(len(raw), start + rng.choice((2, 4, 64, 1000, 10_000)))
    raw[start:end] = (pattern * (end - start))[: end - start]
    files[name] = bytes(raw)


def model_bytes(files: Files, rng: random.Random) -> None:
    if MODEL in files:
        files[MODEL] = _damage_bytes(files[MODEL], rng)


# --- the message ----------------------------------------------------------------------------------


def message(files: Files, rng: random.Random) -> None:
    """Fields anywhere in the model are set, cleared, repeated, removed, moved."""
    _edit(files, rng, _change_anything)


def structure(files: Files, rng: random.Random) -> None:
    """What is known to matter: shapes, types, references, names, operations, opsets, versions."""
    _edit(files, rng, lambda model, rng: rng.choice(_STRUCTURE)(model, rng))


def _edit(files: Files, rng: random.Random, change: Callable[[Any, random.Random], None]) -> None:
    # Damaged already, or nested too deep to be copied or written.
    with contextlib.suppress(DecodeError, EncodeError):
        model = Model.FromString(files.get(MODEL, b""))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            change(model, rng)
        files[MODEL] = model.SerializeToString()


def _change_anything(model: Any, rng: random.Random) -> None:
    path = [model]
    while len(path) < 60:
        children = _children(path[-1], rng)
        if not children:
            break
        path.append(children)
    # The deeper ones rather: that is where the program is.
    _change_message(path[max(rng.randrange(len(path)), rng.randrange(len(path)))], rng)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _children(node: Any, rng: random.Random) -> Any:
    """A message in ``node``, by chance; None where it has none."""
    fields = [(f, v) for f, v in node.ListFields() if f.message_type is not None]
    rng.shuffle(fields)
    for field, value in fields:
        if _is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None and len(value):
                return value[rng.choice(sorted(value))]
        elif field.is_repeated:
            if len(value):
                return value[rng.randrange(len(value))]
        else:
            return value
    return None


def _change_message(node: Any, rng: random.Random) -> None:
    present = [field for field, _ in node.ListFields()]
    fields = present if present and rng.random() < 0.8 else list(node.DESCRIPTOR.fields)
    if not fields:
        return
    field = rng.choice(fields)
    if rng.random() < 0.15:
        node.ClearField(field.name)
    elif _is_map(field):
        _change_map(getattr(node, field.name), field, rng)
    elif field.is_repeated:
        _change_repeated(getattr(node, field.name), field, rng)
    elif field.message_type is not None:
        getattr(node, field.name).SetInParent()
    else:
        _try(lambda: setattr(node, field.name, _scalar(field, getattr(node, field.name), rng)))


def _change_map(entries: Any, field: Any, rng: random.Random) -> None:
    keys = sorted(entries)
    if not keys or field.message_type.fields_by_name["value"].message_type is None:
        return
    first, second = rng.choice(keys), rng.choice([*keys, *map(str, WORDS)])
    kind = rng.randrange(3)
    if not isinstance(first, str) or kind == 0:
        del entries[first]
    elif kind == 1:  # under another name, or in the place of another
        moved = type(entries[first])()
        moved.CopyFrom(entries[first])
        del entries[first]
        entries[second].CopyFrom(moved)
    else:
        copied = type(entries[first])()
        copied.CopyFrom(entries[first])
        entries[second].CopyFrom(copied)


def _change_repeated(values: Any, field: Any, rng: random.Random) -> None:
    if not len(values):
        if field.message_type is not None:
            values.add()
        else:
            _try(lambda: values.append(_scalar(field, 0, rng)))
        return
    index, other = rng.randrange(len(values)), rng.randrange(len(values))
    kind = rng.randrange(4)
    if kind == 0:
        del values[index]
    elif field.message_type is not None:
        copied = type(values[index])()
        copied.CopyFrom(values[index])
        if kind == 1:
            values.insert(other, copied)
        else:
            values[other].CopyFrom(copied)
    elif kind == 1:
        values.append(values[index])
    else:
        _try(lambda: values.__setitem__(index, _scalar(field, values[index], rng)))


def _scalar(field: Any, old: Any, rng: random.Random) -> Any:
    """Another value for a field that is no message; it may be out of its range."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING and field.type == field.TYPE_BYTES:
        return _damage_bytes(bytes(old or b""), rng)
    if kind == field.CPPTYPE_STRING:
        return rng.choice(WORDS)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan")))
    if kind == field.CPPTYPE_BOOL:
        return not old
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([*field.enum_type.values_by_number, 77])
    number = int(old or 0)
    return rng.choice((rng.choice(NUMBERS), -1, number + 1, number - 1, number * 2, number // 2))


def _try(change: Callable[[], Any]) -> None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # the field cannot hold it
        change()


def _program(model: Any, rng: random.Random) -> Any:
    while model.WhichOneof("Type") == "pipeline" and len(model.pipeline.models):
        model = rng.choice(model.pipeline.models)
    return model.mlProgram


def _block(model: Any, rng: random.Random) -> Any:
    functions = _program(model, rng).functions
    names = sorted(functions)
    if not names:
        return None
    bodies = functions[rng.choice(names)].block_specializations
    if not len(bodies):
        return None
    block = bodies[rng.choice(sorted(bodies))]
    while rng.random() < 0.5:
        inner = [nested for op in block.operations for nested in op.blocks]
        if not inner:
            break
        block = rng.choice(inner)
    return block


def _op(model: Any, rng: random.Random) -> Any:
    block = _block(model, rng)
    if block is None or not len(block.operations):
        return None
    ops = list(block.operations)
    if rng.random() < 0.5:
        ops = [op for op in ops if op.type.startswith("constexpr")] or ops
    return rng.choice(ops)


def _value(model: Any, rng: random.Random) -> Any:
    op = _op(model, rng)
    if op is None:
        return None
    values = [op.attributes[key] for key in sorted(op.attributes)]
    for key in sorted(op.inputs):
        values += [b.value for b in op.inputs[key].arguments if b.WhichOneof("binding") == "value"]
    return rng.choice(values) if values else None


def _shape(model: Any, rng: random.Random) -> None:
    owner = _value(model, rng) if rng.random() < 0.6 else None
    kind = owner.type if owner is not None else None
    if kind is None:
        op = _op(model, rng)
        if op is None or not len(op.outputs):
            return
        kind = rng.choice(op.outputs).type
    tensor = kind.tensorType
    what = rng.randrange(6)
    if what == 0 or not len(tensor.dimensions):
        tensor.dimensions.add().constant.size = rng.choice(NUMBERS)
    elif what == 1:
        del tensor.dimensions[rng.randrange(len(tensor.dimensions))]
    elif what == 2:
        tensor.dimensions.add().unknown.SetInParent()
    elif what == 3:
        sizes = [d.constant.size for d in tensor.dimensions]
        rng.shuffle(sizes)
        for dimension, size in zip(tensor.dimensions, sizes, strict=True):
            dimension.constant.size = size
    elif what == 4:
        dimension = rng.choice(tensor.dimensions)
        dimension.constant.size = rng.choice(NUMBERS)
    else:
        tensor.dataType = rng.choice([*range(0, 50), 11, 10, 31])


def _reference(model: Any, rng: random.Random) -> None:
    value, other = _value(model, rng), _value(model, rng)
    if value is None or other is None:
        return
    if value.WhichOneof("value") == "blobFileValue":
        reference = value.blobFileValue
        if rng.random() < 0.3:
            reference.fileName = rng.choice(WORDS)
        elif rng.random() < 0.5:
            reference.offset = rng.choice(NUMBERS)
        else:
            reference.offset = (reference.offset + rng.choice((-64, -1, 1, 64, 128))) % 2**64
    elif rng.random() < 0.5:
        value.CopyFrom(other)
    else:
        value.blobFileValue.fileName = "@model_path/weights/weight.bin"
        value.blobFileValue.offset = rng.choice((64, *NUMBERS))


def _swap_values(model: Any, rng: random.Random) -> None:
    first, second = _value(model, rng), _value(model, rng)
    if first is not None and second is not None:
        held = type(first)()
        held.CopyFrom(first)
        first.CopyFrom(second)
        second.CopyFrom(held)


def _operations(model: Any, rng: random.Random) -> None:
    block = _block(model, rng)
    if block is None or not len(block.operations):
        return
    index, other = (rng.randrange(len(block.operations)) for _ in range(2))
    copied = type(block.operations[index])()
    copied.CopyFrom(block.operations[index])
    kind = rng.randrange(4)
    if kind == 0:
        del block.operations[index]
    elif kind == 1:
        block.operations.insert(other, copied)
    elif kind == 2:
        del block.operations[index]
        block.operations.insert(other, copied)
    else:
        inner = block.operations[other].blocks.add()
        inner.operations.add().CopyFrom(copied)


def _rename(model: Any, rng: random.Random) -> None:
    """A name that is bound, defined or returned becomes another one, of the block or not."""
    block = _block(model, rng)
    if block is None:
        return
    defined = [output.name for op in block.operations for output in op.outputs]
    name = rng.choice([*defined, *WORDS])
    op = rng.choice(block.operations) if len(block.operations) else None
    kind = rng.randrange(4)
    if kind == 0 and len(block.outputs):
        block.outputs[rng.randrange(len(block.outputs))] = name
    elif kind == 1:
        block.outputs.append(name)
    elif op is not None and kind == 2 and len(op.outputs):
        rng.choice(op.outputs).name = name
    elif op is not None and len(op.inputs):
        argument = op.inputs[rng.choice(sorted(op.inputs))]
        if len(argument.arguments):
            rng.choice(argument.arguments).name = name
        else:
            argument.arguments.add().name = name


def _parameters(model: Any, rng: random.Random) -> None:
    """A parameter goes, comes from another operation, or takes another's name."""
    op, other = _op(model, rng), _op(model, rng)
    if op is None or other is None:
        return
    for source, target in ((other.inputs, op.inputs), (other.attributes, op.attributes)):
        if len(source) and rng.random() < 0.5:
            key = rng.choice(sorted(source))
            copied = type(source[key])()
            copied.CopyFrom(source[key])
            target[rng.choice([key, *sorted(target), *sorted(source)])].CopyFrom(copied)
        elif len(target) and rng.random() < 0.5:
            del target[rng.choice(sorted(target))]


def _kind_of_op(model: Any, rng: random.Random) -> None:
    op = _op(model, rng)
    if op is not None:
        op.type = rng.choice(WORDS)


def _nest(model: Any, rng: random.Random) -> None:
    block = _block(model, rng)
    depth = rng.choice((1, 5, 20, 40, 60, 200))
    if block is not None and rng.random() < 0.5:
        for _ in range(depth):
            block = block.operations.add(type="cond").blocks.add()
    value = _value(model, rng)
    if value is not None and rng.random() < 0.5:
        for _ in range(depth):
            value = value.immediateValue.list.values.add()


def _versions(model: Any, rng: random.Random) -> None:
    if rng.random() < 0.3:
        model.specificationVersion = rng.choice((0, 1, 5, 6, 7, 8, 9, 10, 11, 99, 2**31 - 1))
        return
    functions = _program(model, rng).functions
    if not len(functions):
        return
    function = functions[rng.choice(sorted(functions))]
    name = rng.choice(WORDS[-13:-6])
    if rng.random() < 0.7 and function.opset in function.block_specializations:
        body = function.block_specializations[function.opset]
        function.block_specializations[name].CopyFrom(body)
    if rng.random() < 0.8:
        function.opset = name


def _functions(model: Any, rng: random.Random) -> None:
    functions = _program(model, rng).functions
    if not len(functions):
        return
    name = rng.choice(sorted(functions))
    copied = type(functions[name])()
    copied.CopyFrom(functions[name])
    if rng.random() < 0.5:
        del functions[name]
    functions[rng.choice(WORDS)].CopyFrom(copied)


_STRUCTURE = (
    *(_shape, _shape, _shape, _reference, _reference, _swap_values, _swap_values, _operations),
    *(_operations, _rename, _rename, _parameters, _parameters, _kind_of_op, _nest, _versions),
    _functions,
)

# --- the folder -----------------------------------------------------------------------------------


def manifest(files: Files, rng: random.Random) -> None:
    raw = files.get("Manifest.json")
    if raw is None:
        return
    try:
        content = json.loads(raw)
        entries = content["itemInfoEntries"]
        keys = sorted(entries)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    if not isinstance(entries, dict):
        return
    junk: Any = rng.choice((None, 0, [], {}, "", "x", "../x", "/x", "\0", "\ud800", [[]], 1e999))
    kind = rng.randrange(6)
    if kind == 0 or not keys:
        files["Manifest.json"] = _damage_bytes(raw, rng)
        return
    if kind == 1:
        content[rng.choice((*sorted(content), "itemInfoEntries"))] = junk
    elif kind == 2:
        entries[rng.choice(keys)] = junk
    elif kind == 3 and isinstance(entries[keys[0]], dict):
        entries[keys[0]]["path"] = junk
    elif kind == 4:
        entries[str(junk)] = entries[keys[0]]
    else:
        del entries[rng.choice(keys)]
    files["Manifest.json"] = json.dumps(content).encode()


def folder(files: Files, rng: random.Random) -> None:
    """A file goes, comes, or is called otherwise."""
    name = rng.choice(sorted(files))
    kind = rng.randrange(4)
    if kind == 0:
        del files[name]
    elif kind == 1:
        files[f"{name}/inside"] = files.pop(name)
    elif kind == 2:
        files["Data/extra"] = b"extra"
    else:
        files[f"{name}.old"] = files[name]


_MUTATORS: tuple[Mutator, ...] = (
    *(weight_bytes, metadata, elements, model_bytes, message, structure, manifest, folder),
)
_WEIGHTS = (4, 10, 6, 6, 25, 40, 3, 2)
