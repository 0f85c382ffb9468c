"""How well tables keep the answers: fitted to the weights alone, or with a calibration.

    python -m benchmarks.answers [--models NAME ...] [--forms NAME ...] [--methods NAME ...]
        [--references [NAME ...]] [--json FILE] [--picture FILE.svg]
    python -m benchmarks.answers --read FILE ... [--json FILE] [--picture FILE.svg]

Models with trained weights are palettized without and with the statistics of their inputs, and
asked about samples that the calibration has not seen. Packages of one form take the same bytes.

- minilm: the signal-to-noise ratio of sentence embeddings in dB, for held-out text of the manual
  that calibrated, and for other text (descriptions and licences of packages).
- smollm2: perplexity on the same texts; less is better.
- efficientnet-lite0: the signal-to-noise ratio of the logits in dB, and the share of crops that
  keep their first class; other photographs than those of the calibration, and their negatives.
- digits: the signal-to-noise ratio of the logits in dB, for held-out digits and for these upside
  down, and the share of held-out digits that are classified rightly.

With --references, minilm is also compressed by coremltools with the same samples, and smollm2
rounded to formats of GGML. The second command joins results that are stored.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import answers_picture, child
from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.output import megabytes, number, print_table, write_json
from benchmarks.lib.packages import missing, package
from benchmarks.lib.progress import say
from benchmarks.lib.sizes import bits_per_weight, weight_bytes
from benchmarks.tasks.answer_forms import TRIALS
from benchmarks.tasks.answer_references import REFERENCES, Compressed, Reference
from benchmarks.tasks.answer_trials import Ask, Sample
from mlopt.choices import Statistics

SUBJECT = "answers of palettized models"
METHODS = ("plain", "diagonal", "hessian", "guided", "sequential", "tuned")
SEQUENTIAL = ("sequential", "tuned")
"""Methods that palettize in sequence on the samples; ``tuned``: gradient steps follow."""
MEASURES = ("held-out", "other", "top-1")
COLUMNS = ("model", "form", "method", *MEASURES, "bits", "bytes", "seconds", "peak, MB")
DIGITS = Path(__file__).resolve().parents[1] / "fixtures" / "digits.mlpackage"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 unless something raised."""
    options = _options(argv)
    rows: list[dict[str, Any]] = []
    if options.read:
        rows = arranged(json.loads(file.read_text())["rows"] for file in options.read)
        write_json(options.json, SUBJECT, rows)
    for model in () if options.read else options.models:
        rows += _rows(model, options)
        write_json(options.json, SUBJECT, rows)  # each time: a later model may fail
    print_table(SUBJECT, COLUMNS, map(_line, rows))
    if options.picture is not None:
        answers_picture.draw(rows, options.picture)
    failures = [row for row in rows if "error" in row]
    for row in failures:
        print(f"failed: {row['model']}, {row['form']}, {row['method']}: {row['error']}")
    return 1 if failures else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.answers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--forms", nargs="+", help="names of forms; default: all")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="no name: none"
    )
    parser.add_argument(
        "--references",
        nargs="*",
        metavar="NAME",
        help="also what other tools make of a model; no name: all of them",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the rows of MiniLM, SVG")
    parser.add_argument(
        "--read", nargs="+", type=Path, metavar="FILE", help="what --json wrote: measure nothing"
    )
    return parser.parse_args(argv)


def _rows(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a model, each measured in a process of its own; none where it is missing."""
    reason = _missing(model)
    if reason is not None:
        print(f"{model} is skipped: {reason}")
        return []
    path = str(DIGITS if model == "digits" else package(model))
    forms = [name for name in TRIALS[model].forms if name in (options.forms or [name])]
    rows = []
    if forms and options.methods:
        asked = {"model": model, "path": path, "forms": forms, "methods": options.methods}
        rows += child.call("benchmarks.answers:measure", **asked)
    for reference in () if options.references is None else REFERENCES.get(model, ()):
        is_asked = reference.method in (options.references or [reference.method])
        if is_asked and reference.form in (options.forms or [reference.form]):
            rows.append(_referred(model, path, reference))
            say(str(rows[-1]))
    return rows


def _referred(model: str, path: str, reference: Reference) -> dict[str, Any]:
    """The row of a reference, which has an ``error`` where it failed."""
    row = _row(model, reference.form, reference.method)
    try:
        found: dict[str, Any] = child.call("benchmarks.answers:refer", path=path, **row)
    except child.ChildError as error:
        print(error, file=sys.stderr)
        return row | {"error": str(error).strip().splitlines()[-1]}
    return found


def arranged(results: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several results by model and form; of equal names the last."""
    found = {(row["model"], row["form"], row["method"]): row for rows in results for row in rows}
    models = list(TRIALS)
    forms = ["float", *(form for trial in TRIALS.values() for form in trial.forms)]

    def place(row: dict[str, Any]) -> tuple[int, int]:
        form = row["form"]
        return models.index(row["model"]), forms.index(form) if form in forms else len(forms)

    return sorted(found.values(), key=place)


def _line(row: dict[str, Any]) -> list[str]:
    return [
        *(row[name] for name in ("model", "form", "method")),
        *(number(row.get(name)) for name in (*MEASURES, "bits")),
        f"{row['bytes']:,}" if "bytes" in row else "failed",
        number(row.get("seconds"), 3),
        megabytes(row.get("peak_bytes")),
    ]


def measure(
    model: str, path: str, forms: Sequence[str], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each form and method, and one for each calibration (runs in a child).

    The seconds and the peak of memory of these are those of calibrating, those of the others of
    palettizing. One calibration is held at a time.
    """
    from mlopt.calibration import calibrate

    trial = TRIALS[model]
    samples, ask = trial.judge(path)
    rows = []
    for statistics in dict.fromkeys(statistics_of(model, method) for method in methods):
        calibration = None
        if statistics is not None:
            row = _row(model, "float", f"calibrating: {statistics}")
            with _measuring(row):
                calibration = calibrate(path, samples, statistics=statistics)
            rows.append(row | _judged(path, ask))
            say(str(rows[-1]))
        for form, method in itertools.product(trial.forms, methods):
            if form in forms and statistics_of(model, method) == statistics:
                rows.append(_palettized(_row(model, form, method), path, calibration, samples, ask))
                say(str(rows[-1]))
    order = ["float", *trial.forms]
    return sorted(rows, key=lambda row: order.index(row["form"]))


def statistics_of(model: str, method: str) -> Statistics | None:
    """The statistics that a method has for a model; None: it has no calibration."""
    known: dict[str, Statistics] = {
        "diagonal": "hessian",  # which has the diagonal
        "hessian": "hessian",
        "guided": "guided",
    }
    return TRIALS[model].statistics if method in SEQUENTIAL else known.get(method)


def refer(model: str, path: str, form: str, method: str) -> dict[str, Any]:
    """The row of a reference (runs in a child)."""
    row = _row(model, form, method)
    (reference,) = (r for r in REFERENCES[model] if (r.form, r.method) == (form, method))
    samples, ask = TRIALS[model].judge(path)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "reference.mlpackage"
        with _measuring(row):
            compressed = reference.compress(samples, output)
        row |= _judged(str(output), ask)
    return row | sizes(compressed, row["bytes"], weight_bytes(path))


def sizes(compressed: Compressed, stored: int, original: int) -> dict[str, float]:
    """The bytes of all weights and the bits of the compressed ones.

    ``stored`` and ``original``: bytes of all weights in the package of the reference, and of the
    float model; the former count only where the package has the compressed form.
    """
    if compressed.bytes is not None:
        stored = round(original - 2 * compressed.elements + compressed.bytes)
    return {"bytes": stored, "bits": bits_per_weight(stored, original, compressed.elements)}


def _missing(model: str) -> str | None:
    from benchmarks.tasks import photographs

    lacking = missing(model)
    return photographs.missing() if model == "efficientnet-lite0" and not lacking else lacking


def _row(model: str, form: str, method: str) -> dict[str, Any]:
    return {"model": model, "form": form, "method": method}


@contextlib.contextmanager
def _measuring(row: dict[str, Any]) -> Iterator[None]:
    """The seconds, and the peak of the memory that the whole process has meanwhile."""
    memory, began = PeakMemory(), time.perf_counter()
    yield
    row["seconds"] = time.perf_counter() - began
    row["peak_bytes"] = memory.start_bytes + memory.above_start_bytes()


def _judged(path: str, ask: Ask) -> dict[str, Any]:
    return {"bytes": weight_bytes(path), **ask(path)}


def _palettized(
    row: dict[str, Any], path: str, calibration: Any, samples: Sequence[Sample], ask: Ask
) -> dict[str, Any]:
    """The row of a form and a method: ``path`` palettized, and asked."""
    from mlopt.calibration import palettize_sequentially, tune
    from mlopt.coreml import OpPalettizerConfig, OptimizationConfig, palettize

    trial = TRIALS[row["model"]]
    form, method = trial.forms[row["form"]], row["method"]
    config = OptimizationConfig(global_config=OpPalettizerConfig(**form.options))
    if form.layers_only:
        config.set_op_type("gather", None)
        config.set_op_type("add", None)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "palettized.mlpackage"
        given: dict[str, Any] = {"output": output, "calibration": calibration}
        with _measuring(row):
            if method in SEQUENTIAL:
                result = palettize_sequentially(path, config, samples, **given)
            else:
                result = palettize(path, config, **given, method=method)
            if method == "tuned":
                tune(output, path, samples, output=output, loss=trial.loss)
        row |= _judged(str(output), ask)
    elements = sum(math.prod(weight.shape) for weight in result.report.palettized)
    return row | {"bits": bits_per_weight(row["bytes"], weight_bytes(path), elements)}


if __name__ == "__main__":
    sys.exit(main())
