"""How much the error of a channel should count where each channel has a scale of its own.

    python -m benchmarks.scale_importance [--models NAME ...] [--json FILE]

Divided by its scale ``s``, a weight's error stands for ``s**2`` times that of the weight itself. So
importance ``s**2`` makes the error of the weights least; importance 1 that of the quotients, which
treats a row of small weights like one of large ones; ``s`` is half way. Which of them keeps the
answers is asked of models with trained weights: MiniLM's sentence embeddings (signal to noise), and
SmolLM2's perplexity. Their embeddings of words stay as they are, being gathered and not scaled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.lib import child
from benchmarks.lib.output import number, print_table, write_json
from benchmarks.lib.packages import missing, package

SUBJECT = "importance of channels under a per-channel scale"
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
FORMS: dict[str, dict[str, Any]] = {
    "3 bits": {"nbits": 3},
    "4 bits": {"nbits": 4},
    "6 bits": {"nbits": 6},
    "4 bits, groups of 16": {"nbits": 4, **GROUPS},
}
POWERS = (2, 1, 0)
SENTENCES = 48
WINDOWS = 8


def main(argv: list[str] | None = None) -> int:
    """Run; 0 unless something raised."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale_importance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=list(_TRIALS), default=list(_TRIALS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    rows = []
    for model in options.models:
        reason = missing(model)
        if reason is not None:
            print(f"{model} is skipped: {reason}")
            continue
        path = package(model)
        rows += child.call("benchmarks.scale_importance:measure", model=model, path=str(path))
    columns = ["model", "form", "no scale", *(f"s**{power}" for power in POWERS)]
    lines = [
        [row["model"], row["form"], *(number(row[c]) for c in ("no scale", *map(str, POWERS)))]
        for row in rows
    ]
    print_table(SUBJECT, columns, lines)
    write_json(options.json, SUBJECT, rows)
    return 0


def measure(model: str, path: str) -> list[dict[str, Any]]:
    """A row for each form (runs in a child): the answers' measure for each importance."""
    ask = _TRIALS[model](path)
    rows = []
    for form, options in FORMS.items():
        row: dict[str, Any] = {"model": model, "form": form, "float": ask(path)}
        row["no scale"] = _answers(path, options, ask)
        for power in POWERS:
            with _importance(power):
                scaled = {**options, "enable_per_channel_scale": True}
                row[str(power)] = _answers(path, scaled, ask)
        rows.append(row)
    return rows


def _answers(path: str, options: dict[str, Any], ask: Callable[[str], float]) -> float:
    from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize

    config = OptimizationConfig(global_config=OpPalettizerConfig(**options))
    config.set_op_type("gather", None)
    config.set_op_name("*words*", None)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "palettized.mlpackage"
        palettize(path, config, output=output)
        return ask(str(output))


def _importance(power: int) -> Any:
    """While entered, channels count with their scale to a power, and those of zeros not at all."""
    import mlopt.palette  # noqa: F401  loads the module, whose name a function has there

    def powers(scale: Any, shape: Any, importance: Any = None) -> Any:
        assert importance is None
        wide = scale.astype(np.float64)
        factors = np.ldexp(wide, -int(np.frexp(wide.max())[1])) ** power * (wide > 0)
        return np.broadcast_to(factors, shape)

    return mock.patch.object(sys.modules["mlopt.palette.palettize"], "scaled_importance", powers)


def _sentences(path: str) -> Callable[[str], float]:
    """The signal-to-noise ratio of MiniLM's embeddings of sentences, in dB."""
    from benchmarks.models.minilm import TOKENS
    from benchmarks.models.minilm_weights import model_folder
    from benchmarks.models.wordpiece import WordPiece
    from benchmarks.tasks.prose import neighbours
    from mlopt import runtime

    tokenizer = WordPiece(model_folder() / "vocab.txt")
    pairs = neighbours()
    samples = []
    for sentence, _ in pairs[:: len(pairs) // SENTENCES][:SENTENCES]:
        ids, mask = (np.array([part], np.int32) for part in tokenizer.encode(sentence, TOKENS))
        samples.append({"input_ids": ids, "attention_mask": mask})
    reference = runtime.load(path, keep_weights=True)

    def ask(candidate: str) -> float:
        program = runtime.load(candidate, keep_weights=True)
        (row,) = runtime.compare(reference, program, samples).outputs
        return float(row.distance.snr_db)

    return ask


def _perplexity(path: str) -> Callable[[str], float]:
    """SmolLM2's perplexity; the less the better."""
    from benchmarks.models.smollm2 import TOKENS
    from benchmarks.models.smollm2_weights import model_file, tokenizer
    from benchmarks.tasks.language_model import perplexity, windows
    from mlopt import runtime

    pieces = windows(tokenizer(model_file()), WINDOWS, TOKENS)
    return lambda candidate: perplexity(runtime.load(candidate, keep_weights=True), pieces)


_TRIALS: dict[str, Callable[[str], Callable[[str], float]]] = {
    "minilm": _sentences,
    "smollm2": _perplexity,
}

if __name__ == "__main__":
    sys.exit(main())
