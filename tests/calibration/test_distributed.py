"""Calibration by several processes that torch.distributed joins."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mlopt.calibration import Calibration, calibrate
from tests.calibration.comparisons import assert_same

IMAGES = np.random.default_rng(0).uniform(size=(5, 1, 8, 8)).astype(np.float32)


def torchrun(folder, *arguments, processes=2):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 6])  # 6: one has no sample
def test_the_result_is_that_of_one_process(digits, tmp_path, processes):
    np.savez(tmp_path / "data.npz", image=IMAGES)
    calibrate_command = ("-m", "mlopt", "calibrate", digits, "--data", "data.npz", "-o", "out")
    result = torchrun(tmp_path, *calibrate_command, processes=processes)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("5 samples, hessian statistics") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.npz", "out"]
    alone = calibrate(digits, [{"image": image[None]} for image in IMAGES])
    assert_same(Calibration.load(tmp_path / "out"), alone)


SCRIPT = """
import sys
import numpy as np
from torch import distributed
from mlopt.calibration import calibrate
distributed.init_process_group("gloo")
images = np.load("images.npy")
if sys.argv[2] == "bad" and distributed.get_rank() == 1:
    images[1] = np.nan
samples = [] if sys.argv[2] == "none" else [{"image": image[None]} for image in images]
try:
    made = calibrate(sys.argv[1], samples)
    made.save(f"{distributed.get_rank()}.calibration")
except Exception as error:
    with open(f"{distributed.get_rank()}.txt", "w") as file:
        file.write(f"{type(error).__name__}: {error}")
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["good", "bad", "none"])
def test_in_memory(digits, tmp_path, kind):
    (tmp_path / "script.py").write_text(SCRIPT)
    np.save(tmp_path / "images.npy", IMAGES)
    result = torchrun(tmp_path, "script.py", digits, kind)
    assert result.returncode == 0, result.stderr
    if kind == "good":
        both = [Calibration.load(tmp_path / f"{rank}.calibration") for rank in range(2)]
        assert_same(*both, exactly=True)
        assert_same(both[0], calibrate(digits, [{"image": image[None]} for image in IMAGES]))
        return
    errors = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    if kind == "none":
        assert all("there are no samples" in error for error in errors)
    else:
        assert errors[0].startswith("RunError: process 1 failed: sample 1: an input of conv")
        assert errors[1].startswith("ConfigError: sample 1: an input of conv")


def test_without_other_processes_nothing_is_shared(digits):
    assert not torch.distributed.is_initialized()
    assert calibrate(digits, [{"image": IMAGES[:1]}]).samples == 1
