"""Whether sensitive k-means lowers the loss that it is given: SKMPalettizer beside plain k-means.

    python -m benchmarks.torch_sensitivity [--models NAME ...] [--bits N ...] [--seeds N] [--json F]

Two trained networks, every layer palettized per tensor, by mlopt and by coremltools. The seed
chooses the calibration samples; the loss is measured on those, and on samples held out, which no
seed can draw. Plain k-means sees no samples, so its loss on those held out has no spread.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.options import choose
from benchmarks.lib.output import print_table, write_json
from benchmarks.lib.packages import missing
from benchmarks.lib.progress import say
from benchmarks.lib.row import PROJECT, REFERENCE
from benchmarks.lib.sensitivity_table import COLUMNS, table_lines

SUBJECT = "the loss after sensitive k-means"


@dataclass(frozen=True)
class Model:
    """``trial``: the function that builds it; ``measure``: what it measures besides the loss.

    ``seeds`` are those of mlopt, ``reference_seeds`` those of coremltools. ``on_request``: only
    where it is named.
    """

    name: str
    title: str
    trial: str
    measure: str
    seeds: int
    reference_seeds: int
    on_request: bool = False


MODELS = {
    model.name: model
    for model in (
        Model(
            "digits",
            "Digits, cross entropy",
            "benchmarks.tasks.digits_trial:trial",
            measure="accuracy",
            seeds=5,
            reference_seeds=5,
        ),
        Model(
            "minilm",
            "MiniLM, contrastive loss of neighbouring sentences",
            "benchmarks.tasks.minilm_trial:trial",
            measure="cosine to float",
            seeds=3,
            reference_seeds=1,  # takes minutes
        ),
        Model(
            "minilm-own",
            "MiniLM, contrastive loss of its own choice of neighbours",
            "benchmarks.tasks.minilm_trial:own_trial",
            measure="cosine to float",
            seeds=3,
            reference_seeds=1,
            on_request=True,
        ),
    )
}

Attempt = tuple[str, int | None, Sequence[int], Callable[[], Any]]
"""Method, bits, the seeds of the samples to evaluate on, and what makes the module."""


def measure(model: str, tool: str, bits: list[int], seeds: int) -> list[dict[str, Any]]:
    """A row for each palettized network and each seed (runs in a child process).

    ``method`` is float, k-means or SKM; ``seed`` that of the calibration samples. A row has
    ``loss`` (held out), ``calibration_loss`` and ``measure``, or ``error`` where the method failed.
    """
    from benchmarks.tasks.trial import mean_loss

    module_name, _, function = MODELS[model].trial.partition(":")
    trial = getattr(importlib.import_module(module_name), function)()
    samples = [trial.draw(seed) for seed in range(seeds)]
    rows = []
    for method, nbits, chosen, palettize in _attempts(tool, trial, bits, samples):
        say(f"{model}: {tool}, {method}" + (f", {nbits} bits, seed {chosen[0]}" if nbits else ""))
        named = {"model": model, "tool": tool, "method": method, "bits": nbits}
        try:
            module = palettize()
            loss, value = trial.evaluate(module)
        except Exception:
            rows.append({**named, "seed": chosen[0], "error": traceback.format_exc()})
            continue
        for seed in chosen:
            own = {"seed": seed, "calibration_loss": mean_loss(module, samples[seed], trial.loss)}
            rows.append({**named, **own, "loss": loss, "measure": value})
    return rows


def _attempts(
    tool: str, trial: Any, bits: list[int], samples: Sequence[tuple[Any, ...]]
) -> Iterator[Attempt]:
    from benchmarks.lib.torch_perform import palettizers, post_training, sensitive

    api, module, every = palettizers(tool), trial.module, range(len(samples))
    yield "float", None, every, lambda: module
    for nbits in bits:
        settings = {"n_bits": nbits}
        yield "k-means", nbits, every, partial(post_training, api, module, settings)
        for seed, drawn in enumerate(samples):
            job = partial(sensitive, api, module, settings, drawn, trial.loss)
            yield "SKM", nbits, [seed], job


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.torch_sensitivity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these, in this order")
    parser.add_argument("--list", action="store_true", help="print the models and stop")
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4], metavar="N")
    parser.add_argument("--seeds", type=int, metavar="N", help="sets of calibration samples")
    parser.add_argument(
        "--reference-seeds", type=int, metavar="N", help="the same for coremltools, of those"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    left_out = parser.add_mutually_exclusive_group()
    left_out.add_argument("--skip-reference", action="store_true", help="run mlopt only")
    left_out.add_argument("--only-reference", action="store_true", help="run coremltools only")
    return parser.parse_args(argv)


def _tools(model: Model, options: argparse.Namespace) -> dict[str, int]:
    """The number of seeds by the tools that are to run."""
    ours = options.seeds or model.seeds
    theirs = min(ours, options.reference_seeds or model.reference_seeds)
    tools = {} if options.only_reference else {PROJECT: ours}
    return tools if options.skip_reference else {**tools, REFERENCE: theirs}


def main(argv: list[str] | None = None) -> int:
    """Run the chosen models; 1 where anything raised, else 0."""
    options = _options(argv)
    if options.list:
        for model in MODELS.values():
            print(f"{model.name:26} {model.title}{' (on request)' if model.on_request else ''}")
        return 0
    rows: list[dict[str, Any]] = []
    default = [model.name for model in MODELS.values() if not model.on_request]
    for model in choose(MODELS, options.models or default):
        lacking = missing(model.name)
        if lacking is not None:
            print(f"skipped: {model.name}: {lacking}", file=sys.stderr)
            continue
        for tool, seeds in _tools(model, options).items():
            arguments = {"model": model.name, "tool": tool, "bits": options.bits, "seeds": seeds}
            try:
                rows += child.call("benchmarks.torch_sensitivity:measure", **arguments)
            except child.ChildError as error:
                rows.append({"model": model.name, "tool": tool, "error": str(error)})
            write_json(options.json, SUBJECT, rows)
        own = [row for row in rows if row["model"] == model.name and "error" not in row]
        print_table(model.title, (*COLUMNS, model.measure), table_lines(own))
    write_json(options.json, SUBJECT, rows)
    failures = [row for row in rows if "error" in row]
    for row in failures:
        what = ", ".join(str(row[key]) for key in ("model", "tool", "method", "bits") if key in row)
        print(f"\nfailed: {what}\n{row['error']}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
