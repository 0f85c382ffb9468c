"""The last complete run of all benchmarks on this machine, for the next one to be compared with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib.cache import cache_folder


def kept_run() -> Path:
    """Where it is kept, whether or not there is one yet: in the cache folder of this machine."""
    return cache_folder() / "last-run.json"


def keep_run(results: Mapping[str, Any]) -> Path:
    """Keep these results instead; either file is whole at any time."""
    path = kept_run()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(results, indent=2) + "\n")
    fresh.replace(path)
    return path
