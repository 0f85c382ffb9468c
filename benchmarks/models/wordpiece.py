"""BERT's uncased tokenizer for plain ASCII English: enough to check that an encoder is sane."""

from __future__ import annotations

import re
from pathlib import Path


class WordPiece:
    """Greedy longest-match word pieces over a ``vocab.txt`` (one piece a line, id = line)."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self._ids = {piece: index for index, piece in enumerate(lines)}

    def encode(self, text: str, length: int) -> tuple[list[int], list[int]]:
        """``(ids, mask)``, both padded to ``length``: [CLS] pieces [SEP] [PAD] ..."""
        pieces = ["[CLS]"]
        for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
            pieces += self._pieces(word)
        pieces = [*pieces[: length - 1], "[SEP]"]
        padding = length - len(pieces)
        ids = [self._ids[piece] for piece in pieces] + [self._ids["[PAD]"]] * padding
        return ids, [1] * len(pieces) + [0] * padding

    def _pieces(self, word: str) -> list[str]:
        pieces: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self._ids:
                    pieces.append(prefix + word[start:end])
                    start = end
                    break
            else:
                return ["[UNK]"]
        return pieces
