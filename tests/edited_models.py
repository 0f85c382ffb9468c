"""Kinds of models whose message or weight files are edited by hand: no converter writes them.

They are entered into ``tests.odd_models.KINDS``; this module has to be imported for that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.proto import MIL_pb2, Model_pb2

from tests import judges, models
from tests.models import Weights, build_program
from tests.odd_models import kind, linear, save

Message = Any

# Proto type: (id in blob storage, bits of an element).
_BLOB_TYPES = {
    "FLOAT16": (1, 16),
    "FLOAT32": (2, 32),
    "UINT8": (3, 8),
    "INT8": (4, 8),
    "BFLOAT16": (5, 16),
    "INT4": (8, 4),
    "UINT3": (12, 3),
    "FLOAT8E5M2": (17, 8),
}


def edit(model: Any, path: Path, change: Callable[[Message, Path], None]) -> None:
    """Save a model, let ``change(message, folder of the weight files)`` edit it, and write it."""
    save(model, path)
    inner = path / "Data" / "com.apple.CoreML"
    file = inner / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    change(spec, inner / "weights")
    file.write_bytes(spec.SerializeToString(deterministic=True))


def body_of(spec: Message, function: str = "main") -> Message:
    """The one block of a function."""
    (block,) = spec.mlProgram.functions[function].block_specializations.values()
    return block


def operation(spec: Message, name: str, function: str = "main") -> Message:
    """The operation that writes ``name``, nested blocks included."""
    ops = judges.operations(spec.mlProgram.functions[function])
    (found,) = [op for op in ops if any(output.name == name for output in op.outputs)]
    return found


def text(words: str | list[str]) -> Message:
    """A string, or a list of strings, as a Value."""
    value = MIL_pb2.Value()
    if isinstance(words, str):
        value.type.tensorType.dataType = MIL_pb2.STRING
        value.immediateValue.tensor.strings.values.append(words)
    else:
        value.type.listType.type.tensorType.dataType = MIL_pb2.STRING
        value.type.listType.length.constant.size = len(words)
        value.immediateValue.list.SetInParent()
        value.immediateValue.list.values.extend(text(word) for word in words)
    return value


def write_blobs(file: Path, blobs: list[tuple[int, int, bytes]]) -> list[int]:
    """Write a weight file of (dtype id, padding bits, data); returns the offsets of the blobs."""
    content = bytearray(struct.pack("<II56x", len(blobs), 2))
    offsets = []
    for dtype, padding, data in blobs:
        content.extend(b"\0" * (-len(content) % 64))
        start = len(content)
        offsets.append(start)
        content += struct.pack("<IIQQQ32x", 0xDEADBEEF, dtype, len(data), start + 64, padding)
        content += data
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return offsets


def stored_values(spec: Message) -> list[Message]:
    """The Values of const operations that lie in a weight file, in all functions."""
    return [
        op.attributes["val"]
        for function in spec.mlProgram.functions.values()
        for op in judges.operations(function)
        if op.type == "const" and op.attributes["val"].HasField("blobFileValue")
    ]


def add_unknown_field(message: Message, content: bytes) -> None:
    """Give a message the field 777, of bytes, which these messages do not have."""
    message.MergeFromString(b"\xca\x30" + bytes([len(content)]) + content)


def rename(message: Message, names: dict[str, str]) -> None:
    """Rename values and operations wherever a program says their names."""
    if isinstance(message, MIL_pb2.Block):
        outputs = [names.get(name, name) for name in message.outputs]
        message.outputs[:] = outputs
        for op in message.operations:
            strings = op.attributes["name"].immediateValue.tensor.strings.values
            strings[0] = names.get(strings[0], strings[0])
            for output in op.outputs:
                output.name = names.get(output.name, output.name)
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.WhichOneof("binding") == "name":
                        binding.name = names.get(binding.name, binding.name)
            for nested in op.blocks:
                rename(nested, names)


# --- operations -----------------------------------------------------------------------------------


@kind(loads=False)
def custom_layers(path: Path) -> None:
    """A custom_layer that reads a weight, and an operation of an unknown type with its own blocks.

    ``first``, ``second``, ``third`` [64, 64] are weights of linear operations at first; ``second``
    becomes that of a custom layer as coremltools writes them, ``third`` is read by the unknown
    operation and inside of its block.
    """
    weight = Weights(seed=41, precision="float16")

    def program(x: Any) -> Any:
        for name in ("first", "second", "third"):
            x = mb.linear(x=x, weight=mb.const(val=weight(64, 64), name=name), name=f"{name}_out")
        return mb.tanh(x=x)

    def change(spec: Message, _: Path) -> None:
        custom = operation(spec, "second_out")
        custom.type = "custom_layer"
        for key, value in {
            "class_name": text("MyLayer"),
            "input_order": text(["x"]),
            "parameters": text([]),
            "weights": text(["weight"]),
            "description": text("Multiplies.\nIn its own way."),
        }.items():
            custom.attributes[key].CopyFrom(value)
        strange = operation(spec, "third_out")
        strange.type = "vendor::teleport"
        strange.attributes["plan"].CopyFrom(text(["left", "right"]))
        block = strange.blocks.add(outputs=["inside"])
        block.inputs.add(name="item").type.CopyFrom(strange.outputs[0].type)
        block.attributes["colour"].CopyFrom(text("blue"))
        inner = block.operations.add(type="vendor::fold")
        inner.attributes["name"].CopyFrom(text("inside"))
        inner.inputs["x"].arguments.add(name="item")
        inner.inputs["weight"].arguments.add(name="third")
        inner.outputs.add(name="inside").type.CopyFrom(strange.outputs[0].type)

    edit(build_program(program, (1, 64), target="iOS15", precision="float16"), path, change)


@kind()
def twins(path: Path) -> None:
    """Two branches of a cond that have a constant of the same name and other numbers each."""
    weight = Weights(seed=42, precision="float16")
    values = {name: weight(64, 64) for name in ("twin", "other_twin")}

    def program(x: Any) -> Any:
        def branch(name: str) -> Callable[[], Any]:
            return lambda: mb.matmul(x=x, y=mb.const(val=values[name], name=name))

        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        sign = mb.greater(x=total, y=np.float16(0), name="sign")
        return mb.cond(pred=sign, _true_fn=branch("twin"), _false_fn=branch("other_twin"))

    def change(spec: Message, _: Path) -> None:
        rename(body_of(spec), {"other_twin": "twin"})

    edit(build_program(program, (1, 64), target="iOS15", precision="float16"), path, change)


@kind()
def shared_in_blocks(path: Path) -> None:
    """One blob behind constants outside of a cond and in both of its branches.

    ``inside`` and ``also_inside`` refer to the blob of ``outside``; a branch of a second cond
    returns ``returned``, which stands outside, by its name.
    """
    weight = Weights(seed=43, precision="float16")
    value, returned = weight(64, 64), weight(64, 64)

    def program(x: Any) -> Any:
        y = mb.matmul(x=x, y=mb.const(val=value, name="outside"))
        kept = mb.const(val=returned, name="returned")
        y = mb.matmul(x=y, y=kept)

        def branch(name: str) -> Callable[[], Any]:
            return lambda: mb.matmul(x=y, y=mb.const(val=weight(64, 64), name=name))

        total = mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)
        sign = mb.greater(x=total, y=np.float16(0), name="sign")
        z = mb.cond(pred=sign, _true_fn=branch("inside"), _false_fn=branch("also_inside"))
        chosen = mb.cond(
            pred=sign,
            _true_fn=lambda: mb.add(x=kept, y=total, name="to_be_dropped"),
            _false_fn=lambda: mb.mul(x=kept, y=total, name="product"),
        )
        return mb.matmul(x=z, y=chosen)

    def change(spec: Message, _: Path) -> None:
        offset = operation(spec, "outside").attributes["val"].blobFileValue.offset
        for name in ("inside", "also_inside"):
            operation(spec, name).attributes["val"].blobFileValue.offset = offset
        for op in body_of(spec).operations:
            for nested in op.blocks:
                if "to_be_dropped" in nested.outputs:
                    nested.outputs[:] = ["returned"]
                    nested.ClearField("operations")

    edit(build_program(program, (1, 64), target="iOS15", precision="float16"), path, change)


@kind(loads=False)
def every_dtype(path: Path) -> None:
    """Constants of all types, empty ones and scalars included, that an unknown operation reads."""
    shapes = {"large": (48, 64), "empty": (0, 64), "scalar": (), "row": (64,)}
    immediate = {
        "FLOAT64": "doubles", "INT64": "longInts", "UINT64": "longInts", "BOOL": "bools",
        "INT32": "ints", "INT16": "ints", "UINT16": "ints",
    }  # fmt: skip

    def change(spec: Message, weights: Path) -> None:
        generator = np.random.default_rng(44)
        block = body_of(spec)
        reader = block.operations.add(type="consume")
        reader.attributes["name"].CopyFrom(text("reader"))
        blobs, places, consts = [], [], []
        for dtype in (*_BLOB_TYPES, *immediate):
            for label, shape in shapes.items():
                size = int(np.prod(shape))
                const = MIL_pb2.Operation(type="const")
                name = f"{dtype.lower()}_{label}"
                const.attributes["name"].CopyFrom(text(name))
                value = const.attributes["val"]
                value.type.tensorType.dataType = MIL_pb2.DataType.Value(dtype)
                value.type.tensorType.rank = len(shape)
                for n in shape:
                    value.type.tensorType.dimensions.add().constant.size = n
                const.outputs.add(name=name).type.CopyFrom(value.type)
                consts.append(const)
                reader.inputs["values"].arguments.add(name=name)
                if dtype in immediate:
                    field = getattr(value.immediateValue.tensor, immediate[dtype])
                    field.SetInParent()
                    field.values.extend(generator.integers(0, 2, size).tolist())
                elif dtype == "FLOAT32" and size < 10:
                    value.immediateValue.tensor.floats.SetInParent()
                    value.immediateValue.tensor.floats.values.extend([0.5] * size)
                else:
                    number, bits = _BLOB_TYPES[dtype]
                    data = generator.integers(0, 60, -(-size * bits // 8), np.uint8).tobytes()
                    if size < 10:
                        value.immediateValue.tensor.bytes.values = data
                    else:
                        blobs.append((number, len(data) * 8 - size * bits, data))
                        places.append(const.attributes["val"])
        for const in reversed(consts):
            block.operations.insert(0, const)
        offsets = write_blobs(weights / "dtypes.bin", blobs)
        # Inserting copies: the places are looked up again.
        names = {id(v): c.outputs[0].name for c in consts for v in [c.attributes["val"]]}
        for value, offset in zip(places, offsets, strict=True):
            stored = operation(spec, names[id(value)]).attributes["val"].blobFileValue
            stored.fileName, stored.offset = "@model_path/weights/dtypes.bin", offset

    edit(linear(64, 48, target="iOS18", seed=45), path, change)


# --- what a message can carry beside operations ---------------------------------------------------


@kind(loads=False)
def decorated(path: Path) -> None:
    """Doc strings, build information, attributes and unknown fields at every level."""

    def change(spec: Message, _: Path) -> None:
        word = text("a word")
        word.docString = "what the word is for"
        program = spec.mlProgram
        function, block = program.functions["main"], body_of(spec)
        program.docString = "a program\nof two lines"
        program.attributes["buildInfo"].CopyFrom(word)
        levels = [spec, spec.description, spec.description.metadata, program, function, block]
        for holder in (function, block, *block.operations):
            holder.attributes["remark"].CopyFrom(word)
        for op in block.operations:
            if op.type == "const":
                op.attributes["val"].docString = f"the value of {op.outputs[0].name}"
                levels.append(op.attributes["val"])
            levels += [op, op.outputs[0], op.outputs[0].type]
        for number, level in enumerate(levels):
            add_unknown_field(level, bytes([number]))
        spec.isUpdatable = True

    edit(linear(64, 48, target="iOS15", seed=46), path, change)


STRANGE_NAMES = ("重み/層.0", "two\nlines\tand [bold]", "w[0]*?", "long" * 500, " ")


@kind()
def strange_names(path: Path) -> None:
    """Names with slashes, new lines, brackets, other alphabets, and of two thousand characters."""

    def program(x: Any) -> Any:
        weight = Weights(seed=47, precision="float16")
        for name in "abcde":
            x = mb.linear(x=x, weight=mb.const(val=weight(64, 64), name=name), name=f"{name}_out")
        return x

    def change(spec: Message, _: Path) -> None:
        rename(body_of(spec), dict(zip("abcde", STRANGE_NAMES, strict=True)))
        rename(body_of(spec), {"a_out": "out/put\n", "b_out": "ä" * 300})

    edit(build_program(program, (1, 64), target="iOS15", precision="float16"), path, change)


@kind()
def empty_functions(path: Path) -> None:
    """A function without operations, and one with bodies for two opsets, beside ``base``."""

    def change(spec: Message, _: Path) -> None:
        functions = spec.mlProgram.functions
        empty = functions["empty"]
        empty.CopyFrom(functions["base"])
        (body,) = empty.block_specializations.values()
        body.ClearField("operations")
        body.outputs[:] = [empty.inputs[0].name]
        both = functions["adapted"].block_specializations
        both["CoreML7"].CopyFrom(both["CoreML8"])
        spec.description.functions.add(name="empty")

    edit(models.multifunction(), path, change)


@kind()
def mixed_opsets(path: Path) -> None:
    """Functions of different opsets; two of them share two of their weights.

    ``base`` belongs to CoreML7 (iOS17), ``adapted`` to CoreML8 (iOS18). ``older``, of CoreML5
    (iOS15), has no weights.
    """

    def change(spec: Message, _: Path) -> None:
        functions = spec.mlProgram.functions
        for name, opset in (("base", "CoreML7"), ("older", "CoreML5")):
            function = functions[name]
            bodies = function.block_specializations
            if name == "older":
                function.CopyFrom(functions["base"])
                (body,) = bodies.values()
                del body.operations[:]
                op = body.operations.add(type="tanh")
                op.attributes["name"].CopyFrom(text("out"))
                op.inputs["x"].arguments.add(name="x")
                op.outputs.add(name="out").type.CopyFrom(function.inputs[0].type)
            (before,) = bodies
            bodies[opset].CopyFrom(bodies[before])
            del bodies[before]
            function.opset = opset
        spec.description.functions.add(name="older")

    edit(models.multifunction(), path, change)


# --- weight files ---------------------------------------------------------------------------------


@kind()
def two_weight_files(path: Path) -> None:
    """The blobs of a convolutional model spread over two weight files; one blob is in both."""

    def change(spec: Message, weights: Path) -> None:
        values = stored_values(spec)
        blobs = [judges.read_blob(weights, value.blobFileValue) for value in values]
        parts: dict[str, list[int]] = {"weight.bin": [], "second.bin": []}
        for index in range(len(values)):
            parts["weight.bin" if index % 2 else "second.bin"].append(index)
        for name, indices in parts.items():
            stored = [blobs[index] for index in indices]
            for index, offset in zip(indices, write_blobs(weights / name, stored), strict=True):
                values[index].blobFileValue.fileName = f"@model_path/weights/{name}"
                values[index].blobFileValue.offset = offset

    edit(models.convolutional("iOS15"), path, change)


@kind()
def two_spellings(path: Path) -> None:
    """Two functions that reach the weights they share under different spellings of one file."""

    def change(spec: Message, _: Path) -> None:
        for op in judges.operations(spec.mlProgram.functions["adapted"]):
            if op.type == "const" and op.attributes["val"].HasField("blobFileValue"):
                name = "@model_path/./weights//weight.bin"
                op.attributes["val"].blobFileValue.fileName = name

    edit(models.multifunction(), path, change)


@kind()
def weights_in_the_message(path: Path) -> None:
    """Large constants that are written into the message; there is no weight file."""

    def change(spec: Message, weights: Path) -> None:
        for value in stored_values(spec):
            data = judges.read_blob(weights, value.blobFileValue)[2]
            value.ClearField("blobFileValue")
            value.immediateValue.tensor.bytes.values = data
        (weights / "weight.bin").unlink()

    edit(linear(64, 48, target="iOS15", seed=48), path, change)


@kind(loads=False)
def weights_in_operations(path: Path) -> None:
    """A linear operation to which its weight in the weight file is bound without a const.

    ``out``'s own weight and the constant ``linear_weight_to_fp16``, which another one reads, share
    a blob.
    """

    def change(spec: Message, _: Path) -> None:
        block = body_of(spec)
        (first,) = [op for op in block.operations if op.type == "linear"]
        (const,) = [op for op in block.operations if op.outputs[0].name == "linear_weight_to_fp16"]
        second = block.operations.add()
        second.CopyFrom(first)
        second.attributes["name"].CopyFrom(text("own"))
        second.outputs[0].name = "own"
        bound = second.inputs["weight"].arguments[0]
        bound.ClearField("name")
        bound.value.CopyFrom(const.attributes["val"])

    edit(linear(64, 48, target="iOS15", seed=49), path, change)


def bind_values(spec: Message, weights: Path, *, stored: str) -> None:
    """Bind every constant to the operations that read it, as go-coreml does, and drop its const.

    Constants that blocks return stay. ``stored`` "inline" puts those of the weight file into the
    message, once for each operation; with "file" bindings share the blobs.
    """
    for part in judges.ml_programs(spec):
        for function in part.mlProgram.functions.values():
            for block in function.block_specializations.values():
                _bind_in(block, {}, weights, stored)


def _bind_in(block: Message, outer: dict[str, Message], weights: Path, stored: str) -> None:
    known = {
        op.outputs[0].name: op.attributes["val"]
        for op in block.operations
        if op.type == "const" and op.outputs[0].name not in _returned(block)
    }
    for name, value in known.items():
        if stored == "inline" and value.HasField("blobFileValue"):
            known[name] = _in_message(value, weights)
    names = outer | known
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name in names:
                    binding.value.CopyFrom(names[binding.name])
        for nested in op.blocks:
            _bind_in(nested, names, weights, stored)
    kept = [op for op in block.operations if op.type != "const" or op.outputs[0].name not in known]
    copies = [MIL_pb2.Operation.FromString(op.SerializeToString()) for op in kept]
    del block.operations[:]
    block.operations.extend(copies)


def _returned(block: Message) -> set[str]:
    inner = (_returned(nested) for op in block.operations for nested in op.blocks)
    return set(block.outputs).union(*inner)


def _in_message(value: Message, weights: Path) -> Message:
    inline = MIL_pb2.Value(type=value.type)
    data = judges.read_blob(weights, value.blobFileValue)[2]
    tensor = inline.immediateValue.tensor
    kind = value.type.tensorType.dataType
    if kind == MIL_pb2.FLOAT32:
        tensor.floats.values.extend(np.frombuffer(data, np.float32).tolist())
    elif kind in (MIL_pb2.INT16, MIL_pb2.UINT16, MIL_pb2.INT32):
        types = {MIL_pb2.INT16: np.int16, MIL_pb2.UINT16: np.uint16, MIL_pb2.INT32: np.int32}
        tensor.ints.values.extend(np.frombuffer(data, types[kind]).tolist())
    else:
        tensor.bytes.values = data
    return inline


# --- pipelines ------------------------------------------------------------------------------------


def _generalized_linear_model() -> Message:
    """A logistic regression of ``between`` (48 numbers) as a classifier."""
    spec = Model_pb2.Model(specificationVersion=1)
    spec.description.input.add(name="between").type.multiArrayType.shape.append(48)
    spec.description.output.add(name="label").type.stringType.SetInParent()
    spec.description.predictedFeatureName = "label"
    glm = spec.glmClassifier
    glm.weights.add(value=np.linspace(-1, 1, 48).tolist())
    glm.offset.append(0.25)
    glm.stringClassLabels.vector.extend(["no", "yes"])
    return spec


def _neural_network() -> Message:
    """An old neural network: an inner product of ``x`` (64 numbers)."""
    spec = Model_pb2.Model(specificationVersion=4)
    spec.description.input.add(name="raw").type.multiArrayType.shape.append(64)
    spec.description.output.add(name="x").type.multiArrayType.shape.append(64)
    layer = spec.neuralNetwork.layers.add(name="product", input=["raw"], output=["x"])
    layer.innerProduct.inputChannels = layer.innerProduct.outputChannels = 64
    layer.innerProduct.weights.floatValue.extend(np.linspace(-1, 1, 64 * 64).tolist())
    return spec


def _feature_vectorizer() -> Message:
    spec = Model_pb2.Model(specificationVersion=1)
    spec.description.input.add(name="numbers").type.multiArrayType.shape.append(64)
    spec.description.output.add(name="raw").type.multiArrayType.shape.append(64)
    spec.featureVectorizer.inputList.add(inputColumn="numbers", inputDimensions=64)
    return spec


@kind()
def mixed_pipeline(path: Path) -> None:
    """A pipelineClassifier of five stages, one of them a pipeline of two.

    Feature vectorizer, neural network, the pipeline ("inner" of an iOS15 and an iOS17 program with
    a weight file each), a program without a name, and a classifier that is no program.
    """
    between = linear(64, 64, names=("x", "middle"), target="iOS15", seed=51)
    newer = linear(64, 48, names=("middle", "last"), target="iOS17", seed=52)
    final = linear(48, 48, names=("last", "between"), target="iOS16", seed=53)
    joined = models.quietly(ct.utils.make_pipeline, between, newer, final)

    def change(spec: Message, _: Path) -> None:
        first, second, third = (
            Model_pb2.Model.FromString(m.SerializeToString()) for m in spec.pipeline.models
        )
        spec.ClearField("pipeline")
        outer = spec.pipelineClassifier.pipeline
        inner = Model_pb2.Model(specificationVersion=spec.specificationVersion)
        inner.pipeline.models.extend([first, second])
        inner.pipeline.names.extend(["old", "new"])
        stages = [_feature_vectorizer(), _neural_network(), inner, third]
        outer.models.extend([*stages, _generalized_linear_model()])
        outer.names.extend(["vectorizer", "network", "inner"])
        spec.description.predictedFeatureName = "label"
        add_unknown_field(outer.models[1], b"kept")

    edit(joined, path, change)


@kind()
def shared_pipeline(path: Path) -> None:
    """Two programs, for iOS16 and iOS18, in one pipeline; their weights share one weight file.

    The second program reads the blob of the first one's weight.
    """
    first = linear(64, 64, names=("x", "middle"), target="iOS16", seed=54)
    second = linear(64, 64, names=("middle", "out"), target="iOS18", seed=55)
    joined = models.quietly(ct.utils.make_pipeline, first, second)

    def change(spec: Message, weights: Path) -> None:
        values = []
        for inner in spec.pipeline.models:
            values += stored_values(inner)
        blobs = [judges.read_blob(weights, value.blobFileValue) for value in values]
        offsets = write_blobs(weights / "weight.bin", blobs)
        large = [i for i, value in enumerate(values) if len(blobs[i][2]) > 4096]
        assert len(large) == 2
        offsets[large[1]] = offsets[large[0]]
        for value, offset in zip(values, offsets, strict=True):
            value.blobFileValue.fileName = "@model_path/weights/weight.bin"
            value.blobFileValue.offset = offset
        for index in (0, 1):
            (weights / f"{index}-weight.bin").unlink()

    edit(joined, path, change)
