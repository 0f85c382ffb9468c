"""How well tables keep the answers: fitted to the weights alone, or with a calibration.

    python -m benchmarks.answers [--models NAME ...] [--forms NAME ...] [--json FILE]

Models with trained weights are palettized without and with the statistics of their inputs, and
asked about text that the calibration has not seen: held-out text of the same manual, and other text
(descriptions and licences of packages). MiniLM is judged by the signal-to-noise ratio of its
sentence embeddings (dB, more is better), SmolLM2 by perplexity (less is better). Both forms of a
row take the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from benchmarks.lib import child
from benchmarks.lib.output import number, print_table, write_json
from benchmarks.lib.packages import missing, package
from benchmarks.lib.progress import say
from benchmarks.tasks.texts import Text

SUBJECT = "answers of palettized models"
METHODS = ("plain", "diagonal", "hessian")
ASKED: tuple[Text, ...] = ("held-out", "other")


@attrs.frozen
class Form:
    """A request: the options of all weights, and rules for operations by type."""

    options: dict[str, Any]
    layers_only: bool = False


def _groups(size: int) -> dict[str, Any]:
    return {"granularity": "per_grouped_channel", "group_size": size}


@attrs.frozen
class Trial:
    """A model: its forms, how many pieces of text calibrate and judge it, and by what."""

    forms: dict[str, Form]
    calibration: int
    asked: int
    measure: str


TRIALS = {
    "minilm": Trial(
        {
            "layers, 2 bits": Form({"nbits": 2}, layers_only=True),
            "layers, 3 bits": Form({"nbits": 3}, layers_only=True),
            "layers, 4 bits": Form({"nbits": 4}, layers_only=True),
            "3 bits": Form({"nbits": 3}),
            "3 bits, groups of 16": Form({"nbits": 3, **_groups(16)}),
        },
        calibration=256,
        asked=64,
        measure="dB",
    ),
    "smollm2": Trial(
        {
            "4 bits": Form({"nbits": 4}),
            "4 bits, groups of 8": Form({"nbits": 4, **_groups(8)}),
            "3 bits, groups of 8": Form({"nbits": 3, **_groups(8)}),
        },
        calibration=24,
        asked=8,
        measure="perplexity",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 unless something raised."""
    parser = argparse.ArgumentParser(prog="benchmarks.answers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--forms", nargs="+", help="names of forms; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    rows = []
    for model in options.models:
        reason = missing(model)
        if reason is not None:
            print(f"{model} is skipped: {reason}")
            continue
        path = str(package(model))
        forms = options.forms or list(TRIALS[model].forms)
        rows += child.call("benchmarks.answers:measure", model=model, path=path, forms=forms)
    columns = ["model", "form", "method", *(f"{t} text" for t in ASKED), "bytes", "seconds"]
    lines = [
        [
            *(r[name] for name in ("model", "form", "method")),
            *(number(r[text]) for text in ASKED),
            f"{r['bytes']:,}",
            number(r["seconds"], 3),
        ]
        for r in rows
    ]
    print_table(SUBJECT, columns, lines)
    write_json(options.json, SUBJECT, rows)
    return 0


def measure(model: str, path: str, forms: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each form and method (runs in a child)."""
    from mlopt.calibration import calibrate

    trial = TRIALS[model]
    samples, ask = _JUDGES[model](path, trial)
    began = time.perf_counter()
    calibration = calibrate(path, samples)
    say(f"{model}: calibrated in {time.perf_counter() - began:.1f} s")
    rows = [_row(model, "float", "", path, ask, time.perf_counter() - began)]
    with tempfile.TemporaryDirectory() as folder:
        for name in forms:
            if name not in trial.forms:
                continue
            for method in METHODS:
                output = Path(folder) / "palettized.mlpackage"
                began = time.perf_counter()
                _palettize(path, trial.forms[name], output, calibration, method)
                seconds = time.perf_counter() - began
                rows.append(_row(model, name, method, str(output), ask, seconds))
                say(f"{model}, {name}, {method}: {rows[-1]}")
    return rows


def _row(
    model: str, form: str, method: str, path: str, ask: Callable[[str, Text], float], seconds: float
) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in Path(path).rglob("weight.bin"))
    answers = {text: ask(path, text) for text in ASKED}
    common = {"model": model, "form": form, "method": method}
    return {**common, **answers, "bytes": size, "seconds": seconds}


def _palettize(path: str, form: Form, output: Path, calibration: Any, method: str) -> None:
    from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize

    config = OptimizationConfig(global_config=OpPalettizerConfig(**form.options))
    if form.layers_only:
        config.set_op_type("gather", None)
        config.set_op_type("add", None)
    given = None if method == "plain" else calibration
    palettize(path, config, output=output, calibration=given, method=method)


def _sentences(
    path: str, trial: Trial
) -> tuple[list[dict[str, Any]], Callable[[str, Text], float]]:
    """Samples of MiniLM, and the signal-to-noise ratio of its sentence embeddings, in dB."""
    from benchmarks.models.minilm import TOKENS
    from benchmarks.models.minilm_weights import model_folder
    from benchmarks.models.wordpiece import WordPiece
    from benchmarks.tasks.texts import paragraphs
    from mlopt import runtime

    tokenizer = WordPiece(model_folder() / "vocab.txt")

    def samples(text: Text, count: int) -> list[dict[str, Any]]:
        words = " ".join(paragraphs(text)).split()
        made = []
        for start in np.arange(count) * (len(words) - TOKENS) // count:
            # A word has a token at least, so that a passage fills the model's whole length.
            ids, mask = tokenizer.encode(" ".join(words[start : start + TOKENS]), TOKENS)
            made.append(
                {
                    "input_ids": np.array([ids], np.int32),
                    "attention_mask": np.array([mask], np.int32),
                }
            )
        return made

    reference = runtime.load(path, keep_weights=True)
    asked = {text: samples(text, trial.asked) for text in ASKED}
    wanted = {text: _answers(reference, asked[text]) for text in ASKED}

    def ask(candidate: str, text: Text) -> float:
        given = _answers(runtime.load(candidate, keep_weights=True), asked[text])
        noise = float(((given - wanted[text]) ** 2).sum())
        return float(10 * np.log10((wanted[text] ** 2).sum() / noise)) if noise else float("inf")

    return samples("calibration", trial.calibration), ask


def _answers(program: Any, samples: list[dict[str, Any]]) -> Any:
    outputs = [next(iter(program.predict(sample).values())) for sample in samples]
    return np.concatenate([np.asarray(output, np.float64) for output in outputs])


def _language(path: str, trial: Trial) -> tuple[list[dict[str, Any]], Callable[[str, Text], float]]:
    """Samples of SmolLM2, and its perplexity."""
    from benchmarks.models.smollm2 import TOKENS
    from benchmarks.models.smollm2_weights import model_file, tokenizer
    from benchmarks.tasks.language_model import perplexity
    from benchmarks.tasks.texts import token_windows
    from mlopt import runtime

    made = tokenizer(model_file())

    def windows(text: Text, count: int) -> Any:
        return token_windows(lambda t: made.encode(t).ids, text, count, TOKENS)

    samples = [{"input_ids": piece[None]} for piece in windows("calibration", trial.calibration)]
    asked = {text: windows(text, trial.asked) for text in ASKED}
    return samples, lambda candidate, text: perplexity(
        runtime.load(candidate, keep_weights=True), asked[text]
    )


_JUDGES: dict[str, Any] = {"minilm": _sentences, "smollm2": _language}

if __name__ == "__main__":
    sys.exit(main())
