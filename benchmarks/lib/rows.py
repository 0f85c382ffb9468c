"""Every row that runs in child processes, which know it by its name."""

from __future__ import annotations

from benchmarks.lib.compressed_rows import COMPRESSED_ROWS
from benchmarks.lib.job_rows import JOB_ROWS
from benchmarks.lib.torch_rows import TORCH_ROWS

BY_NAME = {row.name: row for row in (*JOB_ROWS, *COMPRESSED_ROWS, *TORCH_ROWS)}
