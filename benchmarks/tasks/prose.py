"""English prose that every Python installation has: the reference manual inside ``pydoc``.

It differs a little from one version of Python to the next.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pydoc_data.topics import topics

_ASCII = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "-"})
WORDS = range(6, 41)
"""How many words a sentence has."""
PROSE_SHARE = 0.8
"""The least share of letters and spaces in a paragraph, so that tables and code are none."""


def neighbours() -> list[tuple[str, str]]:
    """Pairs of a sentence and the next: the first two of each paragraph, in a fixed order.

    The topics quote each other; each sentence occurs in one pair only.
    """
    seen: set[str] = set()
    pairs = []
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic].translate(_ASCII)):
            text = " ".join(paragraph.split()).lstrip("* ")
            for pair in pairwise(sentences(text) if is_prose(text) else []):
                if not seen.intersection(pair):
                    pairs.append(pair)
                    seen.update(pair)
                    break
    return pairs


def is_prose(text: str) -> bool:
    """Whether ``text`` is ASCII, and mostly letters and spaces."""
    plain = sum(letter.isalpha() or letter == " " for letter in text)
    return text.isascii() and plain >= PROSE_SHARE * len(text) > 0


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` up to the first that is too short or too long."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
        if len(sentence.split()) not in WORDS:
            break
        found.append(sentence)
    return found
