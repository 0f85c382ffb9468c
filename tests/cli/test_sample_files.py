"""Samples in files and folders: which input they are for, their order, and what is refused."""

import warnings

import numpy as np
import pytest
import typer
from PIL import Image

from mlopt.cli.calibration_data import samples_of
from mlopt.cli.sample_files import samples_in
from mlopt.errors import InputError
from mlopt.runtime import load
from tests.cli.commands import invoke

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pictured(image_model):
    return load(image_model)


@pytest.fixture(scope="module")
def two_inputs(numbers):
    return load(numbers)


@pytest.fixture(scope="module")
def plain(digits):
    return load(digits)


def photo(path, *, width=10, height=12, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)


def given(folder, files):
    """Write arrays to files of a folder, by their names."""
    for name, array in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(array, np.float32))


def test_images_are_read_in_order_and_one_by_one(pictured, tmp_path, monkeypatch):
    names = ["b.png", "c.bmp", "a.JPG", "d.webp", "e.tiff", "f.jpeg"]
    for name in names:
        photo(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("")
    opened = []
    plain_open = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path.name) or plain_open(path))
    samples = samples_in(tmp_path, pictured, "'--data'")
    assert samples.left_out == ("labels.txt",)
    assert (len(samples), len(samples.first(2)), opened) == (6, 2, [])
    first = next(iter(samples))
    assert opened == ["a.JPG"]
    assert first["image"].shape == (1, 3, 6, 5)
    assert len(list(samples)) == 6
    assert opened[1:] == sorted(names)


def test_an_array_of_a_model_with_one_input(plain, tmp_path):
    images = rng.uniform(size=(5, 1, 8, 8)).astype(np.float32)
    # a whole sample, one without its first axis, and several
    given(tmp_path, {"0.npy": images[:1], "1.npy": images[1], "2.npy": images[2:]})
    samples = [sample["image"] for sample in samples_in(tmp_path, plain, "'--data'")]
    np.testing.assert_array_equal(np.concatenate(samples), images)
    (sample,) = samples_in(tmp_path / "0.npy", plain, "'--data'")
    np.testing.assert_array_equal(sample["image"], images[:1])


def test_a_folder_for_each_input(two_inputs, tmp_path):
    given(tmp_path, {f"x/{n}.npy": [n] for n in range(3)})
    given(tmp_path, {f"row/{n}.npy": np.full((1, 3), -n) for n in range(3)})
    samples = list(samples_in(tmp_path, two_inputs, "'--data'"))
    assert [float(sample["x"][0]) for sample in samples] == [0, 1, 2]
    assert [float(sample["row"][0, 2]) for sample in samples] == [0, -1, -2]
    # both files hold several, but not equally many
    given(tmp_path, {"x/3.npy": [[1], [2]], "row/3.npy": np.ones((3, 1, 3))})
    with pytest.raises(InputError, match=r"3\.npy, .*3\.npy: they hold different numbers .*2, 3"):
        list(samples_in(tmp_path, two_inputs, "'--data'"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"the folder .* has no files with samples \(\.npz, \.npy or images .*\), but nothing"),
        ({"a.npy": [1], "b.npz": [1]}, r"archives .*b\.npz|arrays .*a\.npy and archives"),
        ({"a.npy": [1]}, r"a\.npy does not tell which input .* 'x', 'row'; give a folder with"),
        ({"y/a.npy": [1], "x/a.npy": [1]}, r"no input 'y'; its inputs are 'x', 'row'"),
        ({"x/a.npy": [1]}, r"no folder for the input 'row'"),
        ({"x/a.npy": [1], "b.npy": [1]}, r"files with samples \(b\.npy\), and folders .* inputs"),
        ({"x/a.npy": [1], "row/b.npy": [1]}, r"a\.npy has no file of that name in .* 'row'"),
        ({"x/a.npy": [1], "row/a.csv": [1]}, r"a\.csv is neither an array"),
    ],
)
def test_folders_that_are_refused(two_inputs, tmp_path, files, words):
    for name, array in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.asarray(array, np.float32))
    with pytest.raises(typer.BadParameter, match=words):
        samples_in(tmp_path, two_inputs, "'--data'")


def test_images_of_equal_names_and_an_empty_folder(pictured, tmp_path):
    (tmp_path / "image").mkdir()
    with pytest.raises(typer.BadParameter, match="image is empty"):
        samples_in(tmp_path, pictured, "'--data'")
    photo(tmp_path / "image" / "a.png")
    photo(tmp_path / "image" / "a.jpg")
    with pytest.raises(typer.BadParameter, match=r"a\.png and a\.jpg have equal names"):
        samples_in(tmp_path, pictured, "'--data'")
    (tmp_path / "image" / "a.jpg").unlink()
    assert len(samples_in(tmp_path, pictured, "'--data'")) == 1


@pytest.mark.parametrize("is_named", [False, True])
def test_images_for_an_array_are_refused(plain, tmp_path, is_named):
    folder = tmp_path / "image" if is_named else tmp_path
    folder.mkdir(exist_ok=True)
    photo(folder / "a.png", mode="L")
    words = r"'image' is an array \[1, 1, 8, 8\], which does not tell their scale .*give arrays"
    with pytest.raises(typer.BadParameter, match=words):
        samples_in(tmp_path, plain, "'--data'")


def test_errors_while_reading_name_the_file(plain, pictured, tmp_path):
    given(tmp_path, {"0.npy": np.zeros((1, 1, 8, 8)), "1.npy": np.zeros((1, 1, 9, 8))})
    (tmp_path / "2.npy").write_bytes((tmp_path / "0.npy").read_bytes()[:200])
    samples = iter(samples_in(tmp_path, plain, "'--data'"))
    next(samples)
    with pytest.raises(InputError, match=r"1\.npy: input 'image' has shape \[1, 1, 9, 8\]"):
        next(samples)
    (tmp_path / "1.npy").unlink()
    with pytest.raises(typer.BadParameter, match=r"2\.npy cannot be read as arrays"):
        list(samples_in(tmp_path, plain, "'--data'"))
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(typer.BadParameter, match=r"a\.png cannot be read as an image"):
        list(samples_in(folder, pictured, "'--data'"))
    (folder / "a.png").unlink()
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(folder / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: .*8 bits per channel.*scale it"):
        list(samples_in(folder, pictured, "'--data'"))


def test_calibrate_with_a_folder_of_arrays(digits, tmp_path):
    images = rng.uniform(size=(3, 1, 8, 8)).astype(np.float32)
    folder = tmp_path / "arrays"
    given(folder, {f"{n}.npy": image for n, image in enumerate(images)})
    (folder / "readme.txt").write_text("")
    options = ("--statistics", "diagonal", "-o")
    result = invoke("calibrate", digits, "--data", folder, *options, tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Left out, no samples: 'readme.txt'.\n"
    np.savez(tmp_path / "data.npz", image=images)
    result = invoke("calibrate", digits, "--data", tmp_path / "data.npz", *options, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_number_of_samples_is_known_and_cut(pictured, plain, tmp_path):
    for number in range(3):
        photo(tmp_path / f"{number}.png")
    assert len(samples_of(str(tmp_path), pictured, count=2)) == 2
    given(tmp_path, {"images.npy": rng.uniform(size=(5, 1, 8, 8))})
    assert len(samples_of(str(tmp_path / "images.npy"), plain)) == 5
    assert len(samples_of(str(tmp_path / "images.npy"), plain, count=4)) == 4


def test_compare_takes_a_folder_of_images(image_model, tmp_path):
    for number in range(3):
        photo(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = invoke("compare", image_model, image_model, "--inputs", tmp_path)
    assert result.exit_code == 0, result.output
    assert "3 samples" in result.stdout
    assert result.stderr == "Left out, no samples: 'notes.txt'.\n"
    result = invoke("compare", image_model, image_model, "--inputs", tmp_path, "--labels", "y")
    assert result.exit_code == 2
    assert "names an array of the file of --inputs" in " ".join(result.output.split())
