"""Starting a script on several processes of ``torch.distributed``, by torchrun as a user would."""

import os
import subprocess
import sys
from pathlib import Path

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
