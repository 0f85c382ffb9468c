"""Opening packages, whole and damaged, and writing them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from mlopt.errors import DestinationError, MlOptError, ModelFormatError
from mlopt.mil import staging
from mlopt.mil import writer as writer_module
from mlopt.mil.blob import BlobReader
from mlopt.mil.messages import Model, ProgramMessage, Value
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.values import file_value, immediate_value, string_value, tensor_type
from mlopt.mil.walk import file_values
from mlopt.mil.writer import PackageWriter, check_destination
from tests.conftest import PackageOf
from tests.mil.memory import peak_memory

KINDS = [
    "convolutional",
    "transformer",
    "recurrent",
    "stateful",
    "multifunction",
    "control_flow",
    "classifier",
    "pipeline",
]
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
NEWEST = ("stateful", "multifunction")


@pytest.fixture
def source(package_of: PackageOf, tmp_path: Path) -> Path:
    """Return a copy of a small package that the test may damage."""
    path = tmp_path / "source.mlpackage"
    shutil.copytree(package_of("recurrent"), path)
    return path


def copy(source: Any, destination: Path) -> Path:
    with PackageWriter(open_package(source), destination) as writer:
        return writer.finish()


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_copy_is_the_same_model(package_of: PackageOf, tmp_path: Path, kind: str) -> None:
    from tests.judges import load_programs, messages_equal_except

    source = package_of(kind, "iOS18" if kind in NEWEST else "iOS15")
    output = copy(source, tmp_path / "out.mlpackage")
    assert messages_equal_except(source, output) == []
    load_programs(output)
    before, after = content(source), content(output)
    assert before.keys() == after.keys()
    assert before["Manifest.json"] == after["Manifest.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.mlpackage"]
    # Equal blobs are stored once, so a copy can only be smaller; a copy of the copy is the same.
    again = copy(output, tmp_path / "again.mlpackage")
    assert content(again) == after


def test_blobs_are_those_of_the_source(package_of: PackageOf, tmp_path: Path) -> None:
    source = package_of("multifunction", "iOS18")
    output = copy(source, tmp_path / "out.mlpackage")
    before, after = (
        [(c.function, c.name, c.storage) for c in open_package(p).programs[0].constants()]
        for p in (source, output)
    )
    shared = [len({s for *_, s in constants if s}) for constants in (before, after)]
    assert shared[0] >= shared[1]
    assert [item[:2] for item in before] == [item[:2] for item in after]


def test_model_in_memory_with_edits(ct: Any, package_of: PackageOf, tmp_path: Path) -> None:
    model = ct.models.MLModel(str(package_of("recurrent")), skip_model_load=True)
    model.user_defined_metadata["answer"] = "42"
    package = open_package(model)
    package.spec.description.metadata.author = "nobody"
    assert model.author != "nobody"
    with PackageWriter(package, tmp_path / "out") as writer:
        output = writer.finish()
    assert output == tmp_path / "out.mlpackage"
    again = ct.models.MLModel(str(output), skip_model_load=True)
    assert again.user_defined_metadata["answer"] == "42"
    assert again.author == "nobody"


def test_pipeline_has_several_programs(package_of: PackageOf) -> None:
    package = open_package(package_of("pipeline"))
    assert len(package.programs) > 1
    assert all(program.enclosing == (package.spec,) for program in package.programs)
    labels = [program.label for program in package.programs]
    assert len(set(labels)) == len(labels)
    assert len(package.weight_files) >= 1


def test_nested_pipelines() -> None:
    spec = Model(specificationVersion=6)
    inner = spec.pipelineClassifier.pipeline.models.add()
    inner.pipeline.models.add().mlProgram.version = 1
    inner.pipeline.models.add().neuralNetwork.SetInParent()
    spec.pipelineClassifier.pipeline.names.append("first")
    package = Package(Path("absent"), Path(MODEL), spec)
    (program,) = package.programs
    assert program.label == "first/model0"
    assert [model.WhichOneof("Type") for model in program.enclosing] == [
        "pipelineClassifier",
        "pipeline",
    ]


def test_other_files_and_unknown_fields_survive(source: Path, tmp_path: Path) -> None:
    (source / "notes" / "deep").mkdir(parents=True)
    (source / "notes" / "deep" / "a.json").write_text("{}")
    (source / "Data/com.apple.CoreML/weights/other.bin").write_bytes(b"other")
    model = Model.FromString((source / MODEL).read_bytes())
    block = next(iter(model.mlProgram.functions["main"].block_specializations.values()))
    op = block.operations.add(type="from_the_future")
    op.attributes["setting"].CopyFrom(string_value("x"))
    # Field 4000, of which this version of the messages knows nothing.
    unknown = b"\x82\xfa\x01\x03abc"
    (source / MODEL).write_bytes(model.SerializeToString() + unknown)
    output = copy(source, tmp_path / "out.mlpackage")
    found = content(output)
    assert found["notes/deep/a.json"] == b"{}"
    assert found["Data/com.apple.CoreML/weights/other.bin"] == b"other"
    assert unknown in found[MODEL]
    written = Model.FromString(found[MODEL])
    block = next(iter(written.mlProgram.functions["main"].block_specializations.values()))
    assert block.operations[-1].type == "from_the_future"


@pytest.mark.parametrize("place", ["inside", "in a download cache"])
def test_linked_files_are_followed(source: Path, tmp_path: Path, place: str) -> None:
    """Download caches keep a package's files elsewhere, and link to them."""
    blobs = source / "Data"
    if place == "in a download cache":
        blobs = tmp_path / "models--a--b" / "blobs"
        snapshot = tmp_path / "models--a--b" / "snapshots" / "0123" / "models"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        source = source.rename(snapshot / "source.mlpackage")
    before = content(source)
    for name in (WEIGHTS, MODEL, "Manifest.json"):
        target = blobs / f"blob-of-{Path(name).name}"
        (source / name).rename(target)
        (source / name).symlink_to(os.path.relpath(target, (source / name).parent))
    output = copy(source, tmp_path / "out.mlpackage")
    assert not any(path.is_symlink() for path in output.rglob("*"))
    after = content(output)
    assert after.keys() >= before.keys()
    assert after["Manifest.json"] == before["Manifest.json"]
    assert open_package(output).programs


def test_destination_is_the_source(source: Path) -> None:
    before = content(source)
    package = open_package(source)
    constant = next(c for c in package.programs[0].constants() if c.storage)
    view = constant.value()
    expected = view.copy()
    with PackageWriter(package, source) as writer:
        writer.finish()
    np.testing.assert_array_equal(view, expected)
    assert content(source)["Manifest.json"] == before["Manifest.json"]
    assert [p.name for p in source.parent.iterdir()] == [source.name]
    open_package(source)


def test_new_blobs_replace_old_ones(source: Path, tmp_path: Path) -> None:
    package = open_package(source)
    (program,) = package.programs
    constants = [c for c in program.constants() if c.storage]
    with PackageWriter(package, tmp_path / "out.mlpackage") as writer:
        for constant in constants[:2]:
            zeros = np.zeros(constant.shape, constant.numpy_dtype)
            constant.message.CopyFrom(writer.add_blob(constant.dtype, zeros, constant.shape))
            with pytest.raises(ValueError, match="has been moved"):
                constant.value()
            constant.release()
        writer.keep(constants[2].message)
        small = writer.add_value(np.zeros(3, np.float16), specification_version=6)
        assert small == immediate_value(np.zeros(3, np.float16))
        writer.keep(small)
        large = writer.add_value(np.zeros(30, np.float16), specification_version=6)
        assert large.WhichOneof("value") == "blobFileValue"
        writer.finish()
    written = {c.name: c for c in open_package(tmp_path / "out.mlpackage").programs[0].constants()}
    originals = {c.name: c for c in open_package(source).programs[0].constants()}
    assert written.keys() == originals.keys()
    for name, constant in written.items():
        expected = np.asarray(originals[name].value())
        if name in [c.name for c in constants[:2]]:
            expected = np.zeros_like(expected)
        np.testing.assert_array_equal(constant.value(), expected)


def test_weights_of_a_model_that_had_none(
    build: Callable[..., Any], mb: Any, ct: Any, tmp_path: Path
) -> None:
    model = build(lambda x: mb.add(x=x, y=np.float32(1)), (2, 2))
    package = open_package(model)
    assert package.weight_files == []
    constant = next(c for c in package.programs[0].constants() if c.dtype == "fp32")
    with PackageWriter(package, tmp_path / "out.mlpackage") as writer:
        array = np.arange(20, dtype=np.float32)
        constant.message.CopyFrom(writer.add_blob("fp32", array, (20,)))
        output = writer.finish()
    (value,) = file_values(open_package(output).programs[0].message)
    blob = BlobReader(output / WEIGHTS).read(value.blobFileValue.offset)
    np.testing.assert_array_equal(blob.array(), array)
    manifest = json.loads((output / "Manifest.json").read_text())
    paths = [entry["path"] for entry in manifest["itemInfoEntries"].values()]
    assert sorted(paths) == ["com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"]
    ct.models.MLModel(str(output), skip_model_load=True)


def test_wrong_blob_size(source: Path, tmp_path: Path) -> None:
    with PackageWriter(open_package(source), tmp_path / "out") as writer:
        with pytest.raises(ValueError, match="takes 8 bytes, got 6"):
            writer.add_blob("fp16", np.zeros(3, np.float16), (4,))
        with pytest.raises(ValueError, match="takes 2 bytes, got 3"):
            writer.add_blob("uint4", bytes(3), (4,))


def test_package_is_written_once(source: Path, tmp_path: Path) -> None:
    package = open_package(source)
    with PackageWriter(package, tmp_path / "a") as writer:
        writer.finish()
    with pytest.raises(ValueError, match="open its source again"):
        PackageWriter(package, tmp_path / "b")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["caller", "copying", "exchange", "first rename", "replace"])
def test_failure_leaves_everything_as_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type, step: str
) -> None:
    output = tmp_path / "out.mlpackage"
    shutil.copytree(source, output)
    (output / "mark").write_text("the earlier one")
    before, names = content(output), sorted(os.listdir(tmp_path))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("stop")

    rename = os.rename
    if step == "copying":
        monkeypatch.setattr(PackageWriter, "_copy_others", fail)
    elif step == "exchange":
        monkeypatch.setattr(staging, "exchange", fail)
    elif step in ("first rename", "replace"):
        monkeypatch.setattr(staging, "exchange", lambda a, b: False)
        # Only the second rename fails: the old output has been moved aside by then.
        failing = {"first rename": ".mlpackage", "replace": ".tmp"}[step]
        monkeypatch.setattr(
            os, "rename", lambda a, b: fail() if a.suffix == failing else rename(a, b)
        )

    def attempt() -> None:
        with PackageWriter(open_package(source), output) as writer:
            writer.add_blob("fp16", np.zeros(100, np.float16), (100,))
            if step == "caller":
                fail()
            writer.finish()

    with pytest.raises(error):
        attempt()
    assert content(output) == before
    assert sorted(os.listdir(tmp_path)) == names


def test_damage_found_while_writing_leaves_nothing(source: Path, tmp_path: Path) -> None:
    package = open_package(source)
    value = next(package.file_values())
    value.blobFileValue.offset += 64
    with (
        pytest.raises(ModelFormatError, match="offset"),
        PackageWriter(package, tmp_path / "o") as w,
    ):
        w.finish()
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_replacing_an_earlier_output(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mlpackage"
    shutil.copytree(source, output)
    (output / "mark").write_text("the earlier one")
    copy(source, output)
    assert not (output / "mark").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [output.name, source.name]


def test_destination_through_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.mlpackage"
    link.symlink_to(tmp_path / "real" / "out.mlpackage")
    assert copy(source, link) == tmp_path / "real" / "out.mlpackage"
    assert link.is_symlink()
    assert copy(source, link).is_dir()


def test_two_spellings_of_one_weight_file(source: Path, tmp_path: Path) -> None:
    from tests.judges import load_program

    model = Model.FromString((source / MODEL).read_bytes())
    for value in list(file_values(model.mlProgram))[::2]:
        value.blobFileValue.fileName = "@model_path/./weights//weight.bin"
    (source / MODEL).write_bytes(model.SerializeToString())
    output = copy(source, tmp_path / "out.mlpackage")
    load_program(output)
    pairs = zip(*(open_package(p).programs[0].constants() for p in (source, output)), strict=True)
    for before, after in pairs:
        np.testing.assert_array_equal(before.value(), after.value())
        # What shares a blob has one key.
        assert before.storage is None or before.storage[0] == "@model_path/weights/weight.bin"


def test_weight_file_that_nothing_refers_to_any_more(source: Path, tmp_path: Path) -> None:
    package = open_package(source)
    for constant in package.programs[0].constants():
        if constant.storage:
            constant.message.CopyFrom(immediate_value(np.asarray(constant.value())))
    with PackageWriter(package, tmp_path / "out.mlpackage") as writer:
        output = writer.finish()
    assert (output / WEIGHTS).stat().st_size == 64
    assert BlobReader(output / WEIGHTS).count == 0
    assert open_package(output).weight_files == []


def test_output_inside_its_source(source: Path) -> None:
    package = open_package(source)
    with pytest.raises(DestinationError, match="inside each other"):
        PackageWriter(package, source / "out.mlpackage")
    inner = source / "inner.mlpackage"
    shutil.copytree(source, inner)
    with pytest.raises(DestinationError, match="inside each other"):
        PackageWriter(open_package(inner), source)


def test_destinations_that_are_refused(tmp_path: Path) -> None:
    assert check_destination(str(tmp_path / "a")) == tmp_path / "a.mlpackage"
    assert check_destination(tmp_path / "a.b.mlpackage") == tmp_path / "a.b.mlpackage"
    with pytest.raises(DestinationError, match=r"end in \.mlpackage, not '\.mlmodel'"):
        check_destination(tmp_path / "a.mlmodel")
    with pytest.raises(DestinationError, match="does not exist; create it"):
        check_destination(tmp_path / "missing" / "a.mlpackage")
    (tmp_path / "file.mlpackage").write_text("")
    (tmp_path / "folder.mlpackage").mkdir()
    check_destination(tmp_path / "folder.mlpackage")
    (tmp_path / "folder.mlpackage" / "precious").write_text("")
    for name in ("file", "folder"):
        with pytest.raises(DestinationError, match="other than a model package is in the way"):
            check_destination(tmp_path / f"{name}.mlpackage")
    assert issubclass(DestinationError, MlOptError)


def break_manifest(path: Path, text: str) -> None:
    (path / "Manifest.json").write_text(text)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "missing; .* is not a model package"),
    "bad manifest": (lambda p: break_manifest(p, "{"), "manifest cannot be read"),
    "binary manifest": (lambda p: (p / "Manifest.json").write_bytes(b"\xff\0"), "cannot be read"),
    "no root": (lambda p: break_manifest(p, '{"itemInfoEntries": {}}'), "names no root model"),
    "list": (lambda p: break_manifest(p, "[]"), "names no root model"),
    "root leaves": (
        lambda p: break_manifest(
            p, '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../x"}}}'
        ),
        "leaves the package",
    ),
    "no model file": (lambda p: (p / MODEL).unlink(), "that the manifest names is missing"),
    "garbage": (lambda p: (p / MODEL).write_bytes(b"\xff" * 50), "not a readable model"),
    "truncated model": (
        lambda p: (p / MODEL).write_bytes((p / MODEL).read_bytes()[:-20]),
        "not a readable model",
    ),
    "empty model": (lambda p: (p / MODEL).write_bytes(b""), "holds no model"),
    "no weights": (
        lambda p: (p / WEIGHTS).unlink(),
        "weight.bin: the weight file cannot be opened",
    ),
    "empty weights": (lambda p: (p / WEIGHTS).write_bytes(b""), "weight.bin: .* truncated"),
    "truncated weights": (
        lambda p: os.truncate(p / WEIGHTS, (p / WEIGHTS).stat().st_size - 100),
        "weight.bin: blob at offset",
    ),
    "zeroed weights": (
        lambda p: (p / WEIGHTS).write_bytes(b"\2\0\0\0\2\0\0\0" + bytes(1 << 20)),
        "no blob begins there",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_packages(source: Path, damage: str) -> None:
    break_it, match = DAMAGES[damage]
    break_it(source)
    with pytest.raises(ModelFormatError, match=match) as caught:
        open_package(source)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["@model_path/../weights/weight.bin", "/etc/passwd", "weight.bin", "@model_path/", ""],
)
def test_weight_file_names_that_leave_the_package(source: Path, name: str) -> None:
    model = Model.FromString((source / MODEL).read_bytes())
    next(iter(file_values(model.mlProgram))).blobFileValue.fileName = name
    (source / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match="does not stay inside the package"):
        open_package(source)


def test_models_that_are_no_programs(tmp_path: Path, ct: Any, source: Path) -> None:
    model = Model(specificationVersion=4)
    model.neuralNetwork.SetInParent()
    (source / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match=r"type neuralNetwork; .*convert_to='mlprogram'"):
        open_package(source)

    class Loaded:
        package_path = None

        def get_spec(self) -> Any:
            return model

    with pytest.raises(ModelFormatError, match="type neuralNetwork"):
        open_package(Loaded())
    with pytest.raises(ModelFormatError, match="does not exist"):
        open_package(tmp_path / "absent.mlpackage")
    (tmp_path / "file.mlmodel").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="a model in one file, of type none"):
        open_package(str(tmp_path / "file.mlmodel"))
    with pytest.raises(TypeError, match="got int"):
        open_package(3)


def every_file_value(message: Message) -> Iterator[Any]:
    """Yield what ``file_values`` should, by walking over every field there is."""
    if isinstance(message, Value) and message.WhichOneof("value") == "blobFileValue":
        yield message
    for field, content in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for item in content.values():
                    yield from every_file_value(item)
        elif field.is_repeated:
            for item in content:
                yield from every_file_value(item)
        else:
            yield from every_file_value(content)


def test_walk_finds_values_wherever_they_can_be() -> None:
    """One value in each place that a message of the program can hold one."""
    program = ProgramMessage()
    count = 0

    def place(value: Any) -> None:
        nonlocal count
        count += 1
        value.CopyFrom(file_value(f"@model_path/{count}", count, "fp16", [4]))

    def place_in_type(value_type: Any) -> None:
        dimension = value_type.tensorType.attributes
        place(dimension["attribute"])

    def place_in_everything(value: Any) -> None:
        place_in_type(value.type)
        place(value.immediateValue.list.values.add())
        inner = value.immediateValue.list.values.add()
        place(inner.immediateValue.tuple.values.add())
        pair = inner.immediateValue.tuple.values.add().immediateValue.dictionary.values.add()
        place(pair.key)
        place(pair.value)

    place(program.attributes["a"])
    place_in_everything(program.attributes["b"])
    for name in ("main", "other"):
        function = program.functions[name]
        place_in_everything(function.attributes["a"])
        place_in_type(function.inputs.add().type)
        place_in_type(function.inputs.add().type.listType.type)
        place_in_type(function.inputs.add().type.tupleType.types.add())
        dictionary = function.inputs.add().type.dictionaryType
        place_in_type(dictionary.keyType)
        place_in_type(dictionary.valueType)
        place_in_type(function.inputs.add().type.stateType.wrappedType)
        for opset in ("CoreML5", "CoreML6"):
            block = function.block_specializations[opset]
            for _ in range(2):
                place_in_everything(block.attributes["a"])
                place_in_type(block.inputs.add().type)
                op = block.operations.add()
                place_in_everything(op.attributes["a"])
                place_in_everything(op.inputs["x"].arguments.add().value)
                place(op.inputs["x"].arguments.add().value)
                place_in_type(op.outputs.add().type)
                block = op.blocks.add()
    found = [value.blobFileValue.offset for value in file_values(program)]
    assert sorted(found) == list(range(1, count + 1))
    assert sorted(v.blobFileValue.offset for v in every_file_value(program)) == sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_walk_finds_what_reflection_finds(package_of: PackageOf, kind: str) -> None:
    package = open_package(package_of(kind, "iOS18"))
    found, expected = list(package.file_values()), list(every_file_value(package.spec))
    assert sorted(map(id, found)) == sorted(map(id, expected))


def test_memory_follows_the_largest_weight(tmp_path: Path) -> None:
    """A package of 256 MB is copied with a small peak, in a process of its own."""
    source = tmp_path / "large.mlpackage"
    make_large(source, count=8, nbytes=32 << 20)
    imports = (
        "from mlopt.mil.opening import open_package\nfrom mlopt.mil.writer import PackageWriter"
    )
    code = (
        "with PackageWriter(open_package(sys.argv[1]), sys.argv[2]) as writer:\n    writer.finish()"
    )
    assert peak_memory(imports, code, source, tmp_path / "out") < 64 << 20
    assert content(tmp_path / "out.mlpackage").keys() == content(source).keys()
    size = (source / WEIGHTS).stat().st_size
    assert (tmp_path / "out.mlpackage" / WEIGHTS).stat().st_size == size


def make_large(path: Path, *, count: int, nbytes: int) -> None:
    """Write a package of ``count`` constants of ``nbytes`` bytes each, with our own tools."""
    spec = Model(specificationVersion=7)
    function = spec.mlProgram.functions["main"]
    function.opset = "CoreML6"
    block = function.block_specializations["CoreML6"]
    (path / WEIGHTS).parent.mkdir(parents=True)
    with open(path / WEIGHTS, "w+b") as file, writer_module.BlobWriter(file) as blobs:  # type: ignore[attr-defined]
        for index in range(count):
            data = np.random.default_rng(index).integers(0, 256, nbytes, np.uint8)
            offset = blobs.add("fp16", data)
            op = block.operations.add(type="const")
            op.attributes["name"].CopyFrom(string_value(f"w{index}"))
            op.attributes["val"].CopyFrom(
                file_value("@model_path/weights/weight.bin", offset, "fp16", [nbytes // 2])
            )
            op.outputs.add(name=f"w{index}").type.CopyFrom(tensor_type("fp16", [nbytes // 2]))
    (path / MODEL).write_bytes(spec.SerializeToString())
    entry = {"path": "com.apple.CoreML/model.mlmodel"}
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": entry}}
    (path / "Manifest.json").write_text(json.dumps(manifest))
