"""The long form: ``python -m tests.fuzz --inputs 100000 --processes 2 --seed 7``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz import driver, trial


def main() -> int:
    """Run trials and print what came of them; returns 1 where one went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many packages to damage")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of all chance")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="run this one input here, with its traceback")
    parser.add_argument(
        "--differential",
        action="store_true",
        help="odd packages beside coremltools, in place of damaged ones through everything",
    )
    parser.add_argument(
        "--failures", type=Path, help="a folder for the inputs that went wrong (else temporary)"
    )
    options = parser.parse_args()
    # Before coremltools is imported, which the seeds do.
    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from tests.fuzz import differential, seeds

    packages = seeds.build()
    kind = driver.Kind(driver.input_of, trial.run)
    if options.differential:
        kind = driver.Kind(differential.input_of, differential.run)
    if options.only is not None:
        files, damage, rng = kind.input_of(packages, options.seed, options.only)
        scratch = Path(tempfile.mkdtemp())
        print(f"{damage}\nin {scratch}")
        print(kind.run(files, scratch, rng))
        return 0
    if not options.differential:
        with tempfile.TemporaryDirectory() as folder:
            trial.warm_up(packages, Path(folder))
    failures = options.failures or Path(tempfile.mkdtemp(prefix="mlopt-fuzz-failures-"))
    summary = driver.run(
        packages,
        inputs=options.inputs,
        seed=options.seed,
        processes=options.processes,
        first=options.first,
        failures=failures,
        progress=True,
        kind=kind,
    )
    print(summary)
    if summary.failures:
        print(
            f"The inputs that went wrong are in {failures}; run one again with --seed "
            f"{options.seed} --only {summary.failures[0][0]}"
            + (" --differential" if options.differential else "")
        )
    return bool(summary.failures)


if __name__ == "__main__":
    sys.exit(main())
