"""How good a network is that was palettized while it was trained: DKM beside the other palettizers.

    python -m benchmarks.dkm_accuracy [--bits N ...] [--seeds N] [--reference-seeds N] [--json FILE]

The trained digit network, every weight matrix at the same number of bits with one table; accuracy
and loss on the digits held out. DKM fine-tunes the network for some epochs, with both tools alike;
``float, tuned`` is the same without palettes. A mean accuracy at 2 bits of more than one percentage
point below the float network's is a failure of the script.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.accuracy_table import COLUMNS, missed, table_lines
from benchmarks.lib.output import print_table, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.row import PROJECT, REFERENCE

SUBJECT = "the digit network after palettization"

Attempt = tuple[str, int, Callable[[], Any]]
"""Method, seed, and what makes the network."""


def measure(tool: str, bits: int | None, seeds: int) -> list[dict[str, Any]]:
    """A row for each method and each seed, at so many bits; None: of the float network.

    Runs in a child process. A row has ``accuracy`` and ``loss`` (held out) and ``seconds``, or
    ``error`` where the method failed. What does not depend on a seed is measured once.
    """
    import torch

    from benchmarks.tasks.digits_trial import trial

    torch.set_num_threads(1)  # sums then have one order, and so small a network is no slower
    attempts = _of_float(seeds) if bits is None else _palettized(tool, bits, seeds)
    evaluate = trial().evaluate
    rows = []
    for method, seed, make in attempts:
        named = {"tool": tool, "method": method, "bits": bits, "seed": seed}
        say(f"{tool}: {method}" + (f", {bits} bits" if bits else "") + f", seed {seed}")
        start = time.perf_counter()
        try:
            network = make()
            took = time.perf_counter() - start
            _require_few_values(network, bits)
            loss, right = evaluate(network)
        except Exception:
            rows.append({**named, "error": traceback.format_exc()})
            continue
        rows.append({**named, "accuracy": right, "loss": loss, "seconds": took})
    return rows


def _of_float(seeds: int) -> Iterator[Attempt]:
    from benchmarks.tasks.digits_tuning import tune
    from fixtures.digits import load_trained

    def tuned(seed: int) -> Any:
        network, _ = load_trained()
        tune(network, seed)
        return network

    yield "float", 0, lambda: load_trained()[0]
    for seed in range(seeds):
        yield "float, tuned", seed, partial(tuned, seed)


def _palettized(tool: str, bits: int, seeds: int) -> Iterator[Attempt]:
    from benchmarks.lib.torch_perform import palettizers, post_training, sensitive
    from benchmarks.tasks.digits_trial import trial
    from benchmarks.tasks.digits_tuning import tune_palettized
    from fixtures.digits import load_trained

    api, given = palettizers(tool), trial()
    settings = {"n_bits": bits}  # these two have no threshold
    if tool == PROJECT:
        yield "k-means", 0, partial(post_training, api, given.module, settings)
        for seed in range(seeds):
            samples = given.draw(seed)
            job = partial(sensitive, api, given.module, settings, samples, given.loss)
            yield "SKM", seed, job
    for seed in range(seeds):
        yield "DKM", seed, partial(tune_palettized, load_trained()[0], bits, seed, api)


def _require_few_values(network: Any, bits: int | None) -> None:
    """RuntimeError where a weight matrix has more values than a table of so many bits."""
    from benchmarks.tasks.task import matrices

    for name, weight in matrices(network) if bits else ():
        values = weight.unique().numel()
        if values > 2**bits:
            raise RuntimeError(f"{name}: {values} values under a table of {bits} bits")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.dkm_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[1, 2, 3, 4], metavar="N")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of mlopt (default 5)")
    parser.add_argument(
        "--reference-seeds", type=int, default=5, metavar="N", help="of coremltools (default 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    left_out = parser.add_mutually_exclusive_group()
    left_out.add_argument("--skip-reference", action="store_true", help="run mlopt only")
    left_out.add_argument("--only-reference", action="store_true", help="run coremltools only")
    return parser.parse_args(argv)


def _jobs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The arguments of each call of ``measure``: first what is quick."""
    yield {"tool": PROJECT, "bits": None, "seeds": options.seeds}
    for tool, seeds in ((PROJECT, options.seeds), (REFERENCE, options.reference_seeds)):
        if (options.skip_reference and tool == REFERENCE) or (
            options.only_reference and tool == PROJECT
        ):
            continue
        for bits in options.bits:
            yield {"tool": tool, "bits": bits, "seeds": seeds}


def main(argv: list[str] | None = None) -> int:
    """Run everything; 1 where anything raised or the aim was missed, else 0."""
    options = _options(argv)
    rows: list[dict[str, Any]] = []
    for arguments in _jobs(options):
        try:
            rows += child.call("benchmarks.dkm_accuracy:measure", **arguments)
        except child.ChildError as error:
            rows.append({**arguments, "error": str(error)})
        write_json(options.json, SUBJECT, rows)
    measured = [row for row in rows if "error" not in row]
    print_table("Digits held out, every weight palettized", COLUMNS, table_lines(measured))
    failures = [row for row in rows if "error" in row]
    for row in failures:
        keys = ("tool", "method", "bits", "seed")
        what = ", ".join(str(row[key]) for key in keys if key in row)
        print(f"\nfailed: {what}\n{row['error']}", file=sys.stderr)
    short = missed(measured)
    if short:
        print(f"\nfailed: {short}", file=sys.stderr)
    return 1 if failures or short else 0


if __name__ == "__main__":
    sys.exit(main())
