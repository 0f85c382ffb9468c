"""How well tables keep the answers: fitted to the weights alone, or with a calibration.

    python -m benchmarks.answers [--models NAME ...] [--forms NAME ...] [--json FILE]

Models with trained weights are palettized without and with the statistics of their inputs, and
asked about samples that the calibration has not seen. Packages of one form take the same bytes.

- minilm: the signal-to-noise ratio of sentence embeddings in dB, for held-out text of the manual
  that calibrated, and for other text (descriptions and licences of packages).
- smollm2: perplexity on the same texts; less is better.
- efficientnet-lite0: the signal-to-noise ratio of the logits in dB, and the share of crops that
  keep their first class; other photographs than those of the calibration.
- digits: the share of held-out digits that are classified rightly.
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

from benchmarks.lib import child
from benchmarks.lib.output import number, print_table, write_json
from benchmarks.lib.packages import missing, package
from benchmarks.lib.progress import say
from benchmarks.tasks import answer_trials
from mlopt.choices import Statistics

SUBJECT = "answers of palettized models"
METHODS = ("plain", "diagonal", "hessian", "guided")
STATISTICS: tuple[Statistics, ...] = ("hessian", "guided")
MEASURES = ("held-out", "other", "top-1")
DIGITS = Path(__file__).resolve().parents[1] / "fixtures" / "digits.mlpackage"


@attrs.frozen
class Form:
    """A request: the options of all weights; layers_only: embeddings stay as they are."""

    options: dict[str, Any]
    layers_only: bool = False


@attrs.frozen
class Trial:
    """A model: who asks it, and its forms."""

    judge: Callable[[str], tuple[list[answer_trials.Sample], answer_trials.Ask]]
    forms: dict[str, Form]


def _groups(size: int) -> dict[str, Any]:
    return {"granularity": "per_grouped_channel", "group_size": size}


TRIALS = {
    "minilm": Trial(
        answer_trials.sentences,
        {
            "layers, 2 bits": Form({"nbits": 2}, layers_only=True),
            "layers, 3 bits": Form({"nbits": 3}, layers_only=True),
            "layers, 4 bits": Form({"nbits": 4}, layers_only=True),
            "3 bits": Form({"nbits": 3}),
            "3 bits, groups of 16": Form({"nbits": 3, **_groups(16)}),
        },
    ),
    "smollm2": Trial(
        answer_trials.language,
        {
            "4 bits": Form({"nbits": 4}),
            "4 bits, groups of 8": Form({"nbits": 4, **_groups(8)}),
            "3 bits, groups of 8": Form({"nbits": 3, **_groups(8)}),
        },
    ),
    "efficientnet-lite0": Trial(
        answer_trials.photographs,
        {
            "4 bits": Form({"nbits": 4}),
            "4 bits, scales": Form({"nbits": 4, "enable_per_channel_scale": True}),
            "6 bits": Form({"nbits": 6}),
        },
    ),
    "digits": Trial(
        answer_trials.digits,
        {
            "1 bit": Form({"nbits": 1, "weight_threshold": 0}),
            "2 bits": Form({"nbits": 2, "weight_threshold": 0}),
        },
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
        reason = _missing(model)
        if reason is not None:
            print(f"{model} is skipped: {reason}")
            continue
        path = str(DIGITS if model == "digits" else package(model))
        forms = options.forms or list(TRIALS[model].forms)
        rows += child.call("benchmarks.answers:measure", model=model, path=path, forms=forms)
    columns = ["model", "form", "method", *MEASURES, "bytes", "seconds"]
    lines = [
        [
            *(row[name] for name in ("model", "form", "method")),
            *(number(row.get(measure)) for measure in MEASURES),
            f"{row['bytes']:,}",
            number(row["seconds"], 3),
        ]
        for row in rows
    ]
    print_table(SUBJECT, columns, lines)
    write_json(options.json, SUBJECT, rows)
    return 0


def measure(model: str, path: str, forms: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each form and method, after some for the float model (runs in a child).

    The seconds of these are those of the calibrations, those of the others of palettizing.
    """
    from mlopt.calibration import calibrate

    trial = TRIALS[model]
    samples, ask = trial.judge(path)
    calibrations, rows = {}, []
    for statistics in STATISTICS:
        began = time.perf_counter()
        calibrations[statistics] = calibrate(path, samples, statistics=statistics)
        seconds = time.perf_counter() - began
        rows.append(_row(model, "float", f"calibrating: {statistics}", path, ask, seconds))
        say(f"{model}: {rows[-1]}")
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(trial.forms.__contains__, forms):
            for method in METHODS:
                output = Path(folder) / "palettized.mlpackage"
                began = time.perf_counter()
                calibration = calibrations["guided" if method == "guided" else "hessian"]
                _palettize(path, trial.forms[name], output, calibration, method)
                seconds = time.perf_counter() - began
                rows.append(_row(model, name, method, str(output), ask, seconds))
                say(f"{model}: {rows[-1]}")
    return rows


def _missing(model: str) -> str | None:
    from benchmarks.tasks import photographs

    lacking = missing(model)
    return photographs.missing() if model == "efficientnet-lite0" and not lacking else lacking


def _row(
    model: str, form: str, method: str, path: str, ask: answer_trials.Ask, seconds: float
) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in Path(path).rglob("weight.bin"))
    row = {"model": model, "form": form, "method": method, "bytes": size, "seconds": seconds}
    return row | ask(path)


def _palettize(path: str, form: Form, output: Path, calibration: Any, method: str) -> None:
    from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize

    config = OptimizationConfig(global_config=OpPalettizerConfig(**form.options))
    if form.layers_only:
        config.set_op_type("gather", None)
        config.set_op_type("add", None)
    given = None if method == "plain" else calibration
    palettize(path, config, output=output, calibration=given, method=method)


if __name__ == "__main__":
    sys.exit(main())
