"""Whether linear integers, in channels or blocks, would find a place in plans beside palettes.

    python -m benchmarks.linear_forms [--models NAME ...] [--samples N] [--json FILE]

Every weight with a calibration is stored in each form that a plan chooses from, and in the linear
forms of Core ML: int8 with a scale for each channel, int4 with one for each block of 32, both also
with offsets. The error of the operation's outputs, relative to their size, comes from the second
moments of its inputs. All are fitted to the mean squares of the inputs alone: tables by optimal
clustering, scales by trying shares of the largest magnitude. A linear form can find a place in a
plan where its error is below the line between those of the palettes with fewer and more bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.lib import child
from benchmarks.lib.output import number, print_table, write_json
from benchmarks.lib.packages import missing, package
from benchmarks.tasks import photographs
from benchmarks.tasks.plan_trials import PLANNED

SUBJECT = "linear forms beside palettes"
MODELS = ("minilm", "smollm2", "efficientnet-lite0")
COLUMNS = ("model", "form", "bits", "dB", "palettes, dB", "weights", "with a place")
LINEAR: dict[str, tuple[int, int | None, bool]] = {
    "int8, channels": (8, None, False),
    "int8, channels, offsets": (8, None, True),
    "int4, blocks of 32": (4, 32, False),
    "int4, blocks of 32, offsets": (4, 32, True),
}
"""Bits, the length of a block, None for all inputs of a channel, and whether there are offsets."""

Floats = npt.NDArray[np.float64]


def main(argv: list[str] | None = None) -> int:
    """Run; 0 unless something raised."""
    parser = argparse.ArgumentParser(prog="benchmarks.linear_forms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--samples", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        reason = missing(model)
        if reason is None and model == "efficientnet-lite0":
            reason = photographs.missing()
        if reason is not None:
            print(f"{model} is skipped: {reason}")
            continue
        asked = {"model": model, "path": str(package(model)), "count": options.samples}
        rows += child.call("benchmarks.linear_forms:measure", **asked)
    lines = [[row["model"], row["form"], *(number(row[c]) for c in COLUMNS[2:])] for row in rows]
    print_table(SUBJECT, COLUMNS, lines)
    write_json(options.json, SUBJECT, rows)
    return 0


def measure(model: str, path: str, count: int) -> list[dict[str, Any]]:
    """A row for each linear form (in a child): means over weights, in dB, and counts of these."""
    from mlopt.calibration import calibrate

    samples, _ = PLANNED[model].judge(path)
    step = max(1, len(samples) // count)
    calibration = calibrate(path, samples[::step][:count], statistics="hessian")
    found = [*_errors(path, calibration)]
    rows = []
    for form in LINEAR:
        bits, errors, lines = (np.array([each[form][n] for each in found]) for n in range(3))
        rows.append(
            {
                "model": model,
                "form": form,
                "bits": float(bits.mean()),
                "dB": float(np.mean(-10 * np.log10(errors))),
                "palettes, dB": float(np.mean(-10 * np.log10(lines))),
                "weights": len(found),
                "with a place": int((errors < lines).sum()),
            }
        )
    return rows


def _errors(path: str, calibration: Any) -> Iterator[dict[str, tuple[float, float, float]]]:
    """Yield bits, the error, and that of the palettes' line there, of each form, by weights."""
    from mlopt.mil.opening import open_package
    from mlopt.palette import palettize
    from mlopt.planning.candidates import candidates_of

    found = candidates_of(
        open_package(path),
        None,
        target="iOS18",
        pinned={},
        calibration=calibration,
        method="diagonal",
        devices=(),
        joint_compression=False,
    )
    for each in found.weights:
        forms = [form for form in each.forms if form.config is not None]
        match = None
        if forms:
            weight = each.weight
            match = calibration.find(weight.name, weight.shape, "")
        if match is None or match.moments.second is None or match.moments.arrangement.columns % 32:
            continue
        moments, value = match.moments, weight.value()
        power = moments.output_power(value)
        palettes = []
        for form in forms:
            stored = palettize(value, form.decision.result, moments=form.guidance.moments)[0]
            error = moments.output_error(value, stored.dequantize()) / power
            palettes.append((8 * form.nbytes / weight.size, error))
        palettes.append((16.0, 0.0))
        yield {
            name: (bits, error, _line(palettes, bits))
            for name, form in LINEAR.items()
            for bits, error in [_linear(value, moments, form, power)]
        }
        weight.release()


def _linear(
    value: npt.NDArray[Any], moments: Any, form: tuple[int, int | None, bool], power: float
) -> tuple[float, float]:
    """The bits for each element, and the error of outputs, of a weight in a linear form."""
    bits, block, has_offsets = form
    arrangement = moments.arrangement
    length = block or arrangement.columns
    shape = (arrangement.blocks, arrangement.rows, -1, length)
    matrices = arrangement.matrices(value.astype(np.float64))
    squares = np.broadcast_to(moments.diagonal[:, None], matrices.shape).reshape(shape)
    stored = _nearest(matrices.reshape(shape), squares, bits, has_offsets=has_offsets)
    wide = arrangement.weight(stored.reshape(matrices.shape))
    error = moments.output_error(value, wide.astype(value.dtype)) / power
    return bits + (16 + bits * has_offsets) / length, error


def _nearest(values: Floats, squares: Floats, bits: int, *, has_offsets: bool) -> Floats:
    """Values [..., block] rounded to multiples of the best scale that was tried, in float16."""
    most = 2**bits - 1
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    if not has_offsets:
        high = np.maximum(high, -low)
        low = -high
    best, least = values, np.full(low.shape, math.inf)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7):
        scale = ((high - low) * share / most).astype(np.float16).astype(np.float64)
        scale = np.where(scale > 0, scale, 1.0)
        first = np.round(low * share / scale) if has_offsets else -(2.0 ** (bits - 1))
        stored = np.clip(np.round(values / scale), first, first + most) * scale
        error = (squares * (stored - values) ** 2).sum(-1, keepdims=True)
        best, least = np.where(error < least, stored, best), np.minimum(error, least)
    return best


def _line(palettes: Sequence[tuple[float, float]], bits: float) -> float:
    """The least error of two palettes, mixed so that they have so many bits on average."""
    least = min(error for each, error in palettes if each <= bits)
    for fewer, worse in palettes:
        for more, better in palettes:
            if fewer <= bits < more:
                share = (bits - fewer) / (more - fewer)
                least = min(least, (1 - share) * worse + share * better)
    return least


if __name__ == "__main__":
    sys.exit(main())
