"""Starting a script on several processes of ``torch.distributed``, by torchrun as a user would."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_on_ranks(script: Path, folder: Path, *arguments: str, ranks: int, seconds: int) -> Path:
    """Run ``script folder *arguments`` on processes that talk by gloo; returns the folder.

    What takes longer than ``seconds`` is ended: a case that hangs leaves the files of it and of
    later ones out.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, f"--nproc_per_node={ranks}", str(script), str(folder), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its workers
        output, _ = process.communicate(timeout=40)
    print(output)
    return folder


def run_once_on_ranks(
    script: Path,
    factory: pytest.TempPathFactory,
    name: str,
    *arguments: str,
    ranks: int,
    seconds: int,
) -> Path:
    """As ``run_on_ranks`` in a folder of that name, once for all workers of a test run."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            run_on_ranks(script, folder, *arguments, ranks=ranks, seconds=seconds)
            done.touch()
    return folder
