"""Three texts for calibrating a model and for judging it: none shares a paragraph with another."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.tasks.prose import is_prose

Text = Literal["calibration", "held-out", "other"]

# Some that mlopt and its benchmarks need, so that the other text does not change with what else
# an environment has.
_DISTRIBUTIONS = (
    "coremltools",
    "matplotlib",
    "numpy",
    "pillow",
    "scikit-learn",
    "scipy",
    "sympy",
    "threadpoolctl",
    "torch",
    "tqdm",
)


def paragraphs(text: Text) -> list[str]:
    """The paragraphs of a text, in a fixed order.

    calibration and held-out: every other topic of the manual inside ``pydoc``; a paragraph that
    several topics quote belongs to the first. other: the descriptions and licences of ten
    distributions, of another kind and by other authors; PackageNotFoundError where one is missing.
    """
    if text == "other":
        sources = _distributions()
        return _prose(sources, seen=set())
    seen: set[str] = set()
    halves: dict[bool, list[str]] = {True: [], False: []}
    for index, topic in enumerate(sorted(topics)):
        halves[index % 2 == 0] += _prose([topics[topic]], seen)
    return halves[text == "calibration"]


def _prose(sources: list[str], seen: set[str]) -> list[str]:
    kept = []
    for source in sources:
        for paragraph in re.split(r"\n\s*\n", source):
            line = " ".join(paragraph.split())
            if line not in seen and len(line) > 40 and is_prose(line):
                seen.add(line)
                kept.append(line)
    return kept


def _distributions() -> list[str]:
    sources: list[str] = []
    for name in _DISTRIBUTIONS:
        found = metadata.distribution(name)
        sources.append(found.read_text("METADATA") or "")
        for file in found.files or ():
            if "license" in file.name.lower() and file.suffix in ("", ".txt", ".md"):
                path = Path(str(file.locate()))
                sources.append(path.read_text(errors="replace") if path.is_file() else "")
    return sources


def token_windows(encode: Any, text: Text, count: int, tokens: int) -> npt.NDArray[np.int32]:
    """Pieces of ``tokens`` tokens [count, tokens], spread evenly; ``encode``: text to ids."""
    ids = encode("\n".join(paragraphs(text)))
    pieces = np.array(ids[: len(ids) // tokens * tokens], np.int32).reshape(-1, tokens)
    if len(pieces) < count:
        raise ValueError(f"the {text} text has {len(pieces)} pieces of {tokens}, not {count}")
    return pieces[np.arange(count) * len(pieces) // count]
