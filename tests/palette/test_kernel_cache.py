"""A folder of compiled kernels serves the next installation too, as the guide promises."""

import os
import shutil
import subprocess
import sys

import pytest

from mlopt.palette.value import half_kernel

CALL = """
import numpy as np
from half_kernel import fill_float16_codes
codes = np.empty(1, np.uint16)
fill_float16_codes(np.ones(1, np.float32), codes)
assert codes.view(np.float16) == 1
print(sum(fill_float16_codes.stats.cache_hits.values()))
"""


def cache_hits(folder, cache):
    result = subprocess.run(
        [sys.executable, "-c", CALL],
        cwd=folder,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return int(result.stdout)


@pytest.mark.long
def test_kernels_are_not_compiled_again_for_an_installation_at_another_time(tmp_path):
    installed, cache = tmp_path / "site", tmp_path / "kernels"
    installed.mkdir()
    source = installed / "half_kernel.py"
    shutil.copy(half_kernel.__file__, source)
    assert cache_hits(installed, cache) == 0
    os.utime(source, (0, 0))
    assert cache_hits(installed, cache) == 1
