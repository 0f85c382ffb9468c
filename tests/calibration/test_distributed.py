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
def test_the_result_is_that_of_one_process(digits, tmp_path):
    """Three processes for two samples: one of them has none."""
    np.savez(tmp_path / "data.npz", image=IMAGES[:2])
    calibrate_command = ("-m", "mlopt", "calibrate", digits, "--data", "data.npz", "-o", "out")
    result = torchrun(tmp_path, *calibrate_command, processes=3)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 samples, hessian statistics") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.npz", "out"]
    alone = calibrate(digits, [{"image": image[None]} for image in IMAGES[:2]])
    assert_same(Calibration.load(tmp_path / "out"), alone)


SCRIPT = """
import sys
import numpy as np
from torch import distributed
from mlopt.calibration import calibrate
distributed.init_process_group("gloo")
rank, images = distributed.get_rank(), np.load("images.npy")
calibrate(sys.argv[1], [{"image": image[None]} for image in images]).save(f"{rank}.calibration")
if rank == 1:
    images[1] = np.nan
for kind, some in (("bad", images), ("none", [])):
    try:
        calibrate(sys.argv[1], [{"image": image[None]} for image in some])
    except Exception as error:
        with open(f"{kind}-{rank}.txt", "w") as file:
            file.write(f"{type(error).__name__}: {error}")
distributed.destroy_process_group()  # a process that ends before its threads do can be aborted
"""


@pytest.mark.long
def test_in_memory_and_with_errors(digits, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    np.save(tmp_path / "images.npy", IMAGES)
    result = torchrun(tmp_path, "script.py", digits)
    assert result.returncode == 0, result.stderr
    both = [Calibration.load(tmp_path / f"{rank}.calibration") for rank in range(2)]
    assert_same(*both, exactly=True)
    assert_same(both[0], calibrate(digits, [{"image": image[None]} for image in IMAGES]))
    bad = [(tmp_path / f"bad-{rank}.txt").read_text() for rank in range(2)]
    assert bad[0].startswith("RunError: process 1 failed: sample 1: an input of conv")
    assert bad[1].startswith("ConfigError: sample 1: an input of conv")
    none = [(tmp_path / f"none-{rank}.txt").read_text() for rank in range(2)]
    assert all("there are no samples" in error for error in none)


def test_without_other_processes_nothing_is_shared(digits):
    assert not torch.distributed.is_initialized()
    assert calibrate(digits, [{"image": IMAGES[:1]}]).samples == 1
