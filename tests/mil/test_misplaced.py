"""What is given, or lies, in the place of a package: the message says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlopt.errors import ModelFormatError
from mlopt.mil.messages import Model
from mlopt.mil.opening import open_package
from tests.conftest import PackageOf

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 82364416\n"
)


@pytest.fixture
def source(package_of: PackageOf, tmp_path: Path) -> Path:
    """Return a copy of a small package that the test may damage."""
    return Path(shutil.copytree(package_of("recurrent"), tmp_path / "source.mlpackage"))


def message(path: Path) -> str:
    with pytest.raises(ModelFormatError) as caught:
        open_package(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, MODEL, "Manifest.json"])
def test_git_lfs_pointers(source: Path, name: str) -> None:
    (source / name).write_bytes(POINTER)
    said = message(source)
    assert f"{name}: it is a Git LFS pointer in place of a file of 82364416 bytes" in said
    assert "`git lfs pull`" in said
    # Of an early version, without a size.
    (source / name).write_bytes(POINTER.replace(b"git-lfs", b"hawser")[:-16])
    assert "it is a Git LFS pointer in place of the file, which" in message(source)


def test_a_pointer_in_place_of_what_is_given(tmp_path: Path) -> None:
    for name in ("a.mlpackage.zip", "a.mlmodel", "a.mlpackage"):
        (tmp_path / name).write_bytes(POINTER)
        assert "`git lfs pull`" in message(tmp_path / name)


def test_a_file_that_begins_like_a_pointer(source: Path) -> None:
    """A pointer is short: a long one is whatever it is."""
    (source / WEIGHTS).write_bytes(POINTER + bytes(2000))
    assert "blob storage version" in message(source)


@pytest.mark.parametrize("name", [WEIGHTS, MODEL, "Manifest.json"])
def test_a_file_of_a_package(source: Path, name: str) -> None:
    said = message(source / name)
    assert said.endswith(f"it is a file of a package; give the package: {source}")


def test_a_folder_of_a_package(source: Path) -> None:
    for name in ("Data", "Data/com.apple.CoreML", "Data/com.apple.CoreML/weights"):
        assert message(source / name).endswith(f"give the package: {source}")
    assert message(source / "Data/absent").endswith(f"give the package itself: {source}")


@pytest.mark.parametrize("name", ["a.zip", "a.mlpackage.zip", "a.mlpackage"])
def test_zip_archives(source: Path, tmp_path: Path, name: str) -> None:
    made = shutil.make_archive(str(tmp_path / "made"), "zip", source.parent, source.name)
    Path(made).rename(tmp_path / name)
    assert "it is a zip archive, and a model package is a folder" in message(tmp_path / name)


def test_models_in_one_file(source: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(source / MODEL, tmp_path / "model.mlmodel"))
    assert "give the .mlpackage folder that it was taken from" in message(alone)
    network = Model(specificationVersion=4)
    network.neuralNetwork.SetInParent()
    alone.write_bytes(network.SerializeToString())
    said = message(alone)
    assert "a model in one file, of type neuralNetwork" in said
    assert "convert_to='mlprogram'" in said
    alone.write_bytes(b"\xff" * 100)
    assert "a model in one file, which cannot hold an ML program" in message(alone)


def test_compiled_models(tmp_path: Path) -> None:
    path = tmp_path / "a.mlmodelc"
    path.mkdir()
    (path / "coremldata.bin").write_bytes(b"")
    assert "the .mlpackage that it was compiled from" in message(path)


def test_a_folder_of_packages(source: Path, tmp_path: Path) -> None:
    assert f"it is not a model package, but holds one; give {source}" in message(tmp_path)
    for index in range(7):
        (tmp_path / f"a{index}.mlpackage").mkdir()
    said = message(tmp_path)
    assert f"holds some; give {tmp_path / 'a0.mlpackage'} or " in said
    assert said.endswith("another of its 8 packages")


def test_other_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert "it is a file; a model package is a folder named *.mlpackage" in message(
        tmp_path / "a.txt"
    )
    (tmp_path / "empty.mlpackage").mkdir()
    assert "Manifest.json: the file is missing" in message(tmp_path / "empty.mlpackage")
    assert "it does not exist; a model package is a folder" in message(tmp_path / "absent")
