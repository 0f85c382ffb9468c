"""``mlopt calibrate``: data in every form, parts, and what is refused."""

import numpy as np
import pytest

from mlopt.calibration import Calibration
from tests.cli.commands import invoke, run

IMAGES = np.random.default_rng(0).uniform(size=(9, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, image=IMAGES)
    return path


def same(one, other):
    return all(
        np.array_equal(one.moments[key].second, other.moments[key].second) for key in one.moments
    )


def test_a_file_of_samples(digits, data, tmp_path):
    output = tmp_path / "digits.calibration"
    result = invoke("calibrate", digits, "--data", data, "-o", output)
    assert result.exit_code == 0, result.output
    first, *others = result.stdout.splitlines()
    assert first.startswith("9 samples, hessian statistics of 4 weights: ")
    assert any(line.startswith("Note: fewer positions than columns") for line in others)
    assert "Without statistics: 4 weights." in others
    assert Calibration.load(output).samples == 9


def test_guided_statistics(digits, data, tmp_path):
    output = tmp_path / "digits.calibration"
    result = invoke("calibrate", digits, "--data", data, "-o", output, "--statistics", "guided")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("9 samples, guided statistics of 4 weights: ")
    assert "gradient" not in result.stdout
    assert Calibration.load(output).statistics == "guided"


def test_a_folder_of_samples_and_a_number_of_them(digits, data, tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, image in enumerate(IMAGES):
        np.savez(folder / f"{number}.npz", image=image[None])
    (folder / "readme.txt").write_text("not a sample")
    options = ("--samples", 4, "--quiet", "-o")
    for given, output in ((data, "a"), (folder, "b")):
        result = invoke("calibrate", digits, "--data", given, *options, tmp_path / output)
        assert result.exit_code == 0, result.output
        assert result.output == ""
    one, other = (Calibration.load(tmp_path / name) for name in "ab")
    assert one.samples == other.samples == 4
    assert same(one, other)


def test_a_function_of_samples(digits, tmp_path, monkeypatch):
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\n"
        "def few():\n"
        "    for i in range(3):\n"
        "        yield {'image': np.full((1, 1, 8, 8), i, np.float32)}\n"
        "wrong = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("--statistics", "diagonal", "-o", "a")
    result = invoke("calibrate", digits, "--data", "my_samples:few", *options)
    assert result.exit_code == 0, result.output
    calibration = Calibration.load("a")
    assert (calibration.samples, calibration.statistics) == (3, "diagonal")
    for given, words in {
        "my_samples:wrong": "has no function 'wrong'",
        "no_such_module:few": "cannot be imported",
    }.items():
        result = invoke("calibrate", digits, "--data", given, "-o", "b")
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())


def test_parts_are_merged(digits, data, tmp_path):
    parts = [tmp_path / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        result = invoke("calibrate", digits, "--data", data, "--part", f"{number}/2", "-o", part)
        assert result.exit_code == 0, result.output
    result = invoke("calibrate", "--merge", *parts, "-o", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("9 samples")
    assert Calibration.load(tmp_path / "merged").samples == 9


def test_an_existing_output_is_kept(digits, data, tmp_path):
    output = tmp_path / "a"
    output.write_text("mine")
    result = invoke("calibrate", digits, "--data", data, "-o", output)
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert output.read_text() == "mine"
    result = invoke("calibrate", digits, "--data", data, "-o", output, "--overwrite")
    assert result.exit_code == 0, result.output
    assert Calibration.load(output).samples == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "it is needed"),
        (("--data", "missing.npz"), "missing.npz does not exist"),
        (("--data", "."), "has no files with samples"),
        (("--data", "notes.txt"), "cannot be read as arrays"),
        (("--data", "other.npz"), "the model has no input 'x'"),
        (("--data", "nan.npz"), "sample 1: an input of conv"),
        (("--data", "data.npz", "--part", "3/2"), "'3/2' is not I/N"),
        (("--data", "data.npz", "--function", "f"), "no function 'f'"),
        (("--data", "data.npz", "--merge"), "leave --data out"),
        (("--merge",), "the calibration cannot be read"),
    ],
)
def test_wrong_options(digits, data, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    np.savez(tmp_path / "other.npz", x=IMAGES)
    wrong = IMAGES.copy()
    wrong[1] = np.nan
    np.savez(tmp_path / "nan.npz", image=wrong)
    if options == ("--data", "."):
        options = ("--data", "empty")
    result = invoke("calibrate", digits, *options, "-o", "a")
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "a").exists()


def test_a_missing_model(data, tmp_path):
    result = invoke("calibrate", tmp_path / "no.mlpackage", "--data", data, "-o", tmp_path / "a")
    assert result.exit_code == 4


def test_in_a_process_of_its_own(digits, data, tmp_path):
    result = run("calibrate", digits, "--data", data, "-o", tmp_path / "a")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
