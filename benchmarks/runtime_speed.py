"""Running ML programs beside the PyTorch networks they were converted from: time and memory.

    python -m benchmarks.runtime_speed [--rows NAME ...] [--repeats N] [--json FILE] [--list]

Each line runs in a process of its own; in it the network and the program take turns. The program is
float16 in its package and computed in float32, as the network is. Outputs are compared; a signal
to noise ratio below 40 dB of the package that is not palettized is a failure of the script.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib import child
from benchmarks.lib.cache import build_once
from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.options import choose
from benchmarks.lib.output import megabytes, print_table, seconds, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.timing import Timing

SUBJECT = "running ML programs"
GOAL = 1.3
"""How many times the network's time a program may take."""
_LEAST_SNR = 40.0
_WARMUPS = 3


@dataclass(frozen=True)
class Row:
    """A network of ``benchmarks.models``, and how its program is run.

    nbits: palettized to so many; None: as converted. keep_weights: as for ``load``.
    """

    name: str
    title: str
    network: str
    nbits: int | None = None
    keep_weights: bool = False


def _rows(network: str, title: str) -> list[Row]:
    return [
        Row(network, title, network),
        Row(f"{network}-kept", f"{title}, weights kept", network, keep_weights=True),
        Row(f"{network}-4bit", f"{title}, palettized to 4 bits", network, nbits=4),
        Row(
            f"{network}-4bit-kept",
            f"{title}, palettized to 4 bits, weights kept",
            network,
            nbits=4,
            keep_weights=True,
        ),
    ]


ROWS = [*_rows("minilm", "MiniLM, 128 tokens"), *_rows("resnet50", "ResNet50, 224 x 224")]
BY_NAME = {row.name: row for row in ROWS}


def _minilm() -> tuple[Any, dict[str, Any], Callable[[Path], None]]:
    import torch

    from benchmarks.models import minilm
    from benchmarks.models.minilm_weights import model_folder

    encoder = minilm.load_encoder(model_folder())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (1, minilm.TOKENS), generator=generator, dtype=torch.int32)
    return encoder, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, minilm.build


def _resnet50() -> tuple[Any, dict[str, Any], Callable[[Path], None]]:
    import torch

    from benchmarks.models import resnet
    from benchmarks.models.random_weights import fill

    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return fill(resnet.resnet50(), seed=50).eval(), {"image": image}, resnet.build_resnet50


NETWORKS = {"minilm": _minilm, "resnet50": _resnet50}


def measure(name: str, package: str, repeats: int) -> dict[str, Any]:
    """Times of the network and of the program in turns, peaks, and the distance of the outputs."""
    import torch

    from mlopt.runtime import load
    from mlopt.runtime.measures import Distance

    row = BY_NAME[name]
    network, inputs, _ = NETWORKS[row.network]()
    arrays = {key: value.numpy() for key, value in inputs.items()}
    memory = PeakMemory()
    program = load(package, keep_weights=row.keep_weights)

    def run() -> Any:
        (found,) = program.predict(arrays).values()
        return torch.from_numpy(found)

    for _ in range(_WARMUPS):
        found = run()
    ours_peak = memory.above_start_bytes()
    memory = PeakMemory()
    eager, ours = Timing(), Timing()
    with torch.inference_mode():
        for _ in range(_WARMUPS):
            wanted = network(*inputs.values())
        eager_peak = memory.above_start_bytes()
        for _ in range(repeats):
            eager.measure(lambda: network(*inputs.values()))
            ours.measure(run)
    distance = Distance()
    distance.add(wanted, found)
    ratios = sorted(a / b for a, b in zip(ours.wall_s, eager.wall_s, strict=True))
    return {
        "eager": eager.summary(),
        "ours": ours.summary(),
        "ratio": ratios[len(ratios) // 2],
        "spread_of_ratio": [ratios[0], ratios[-1]],
        "peak_bytes": {"ours": ours_peak, "eager": eager_peak},
        "snr_db": distance.snr_db,
    }


def build(network: str, path: Path) -> None:
    """Convert a network; runs in a child process."""
    NETWORKS[network]()[2](path)


def build_for(network: str, path: str) -> None:
    """As :func:`build`, of plain values."""
    build(network, Path(path))


def _package(row: Row) -> Path:
    plain = build_once(
        f"runtime-{row.network}",
        lambda path: child.call(
            "benchmarks.runtime_speed:build_for", network=row.network, path=str(path)
        ),
    )
    if row.nbits is None:
        return plain

    def palettize(path: Path) -> None:
        import mlopt.coreml as coreml

        op_config = coreml.OpPalettizerConfig(nbits=row.nbits)
        coreml.palettize(plain, coreml.OptimizationConfig(global_config=op_config), output=path)

    return build_once(f"runtime-{row.network}-{row.nbits}bit", palettize)


def _line(result: dict[str, Any]) -> list[str]:
    low, high = result["spread_of_ratio"]
    return [
        result["name"],
        result["title"],
        seconds(result["eager"]["median_wall_s"]),
        seconds(result["ours"]["median_wall_s"]),
        f"{result['ratio']:.2f}x",
        f"{low:.2f}..{high:.2f}",
        megabytes(result["peak_bytes"]["ours"]),
        megabytes(result["peak_bytes"]["eager"]),
        f"{result['snr_db']:.1f} dB",
    ]


_COLUMNS = ["row", "model", "PyTorch", "mlopt", "ratio", "spread", "MB above", "of PyTorch", "SNR"]


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised or outputs are wrong, else 0."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.runtime_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows, in this order")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="default 15")
    options = parser.parse_args(argv)
    if options.list:
        for row in ROWS:
            print(f"{row.name:20} {row.title}")
        return 0
    results: list[dict[str, Any]] = []
    failures = []
    for row in choose(BY_NAME, options.rows):
        say(row.name)
        try:
            found = child.call(
                "benchmarks.runtime_speed:measure",
                name=row.name,
                package=str(_package(row)),
                repeats=options.repeats,
            )
        except child.ChildError as error:
            failures.append(f"{row.name}\n{error}")
            continue
        results.append({"name": row.name, "title": row.title, **found})
        if row.nbits is None and not found["snr_db"] > _LEAST_SNR:
            failures.append(f"{row.name}: {found['snr_db']:.1f} dB, less than {_LEAST_SNR}")
        write_json(options.json, SUBJECT, results)
    print_table("Running ML programs", _COLUMNS, map(_line, results))
    print(f"Goal: at most {GOAL} times PyTorch's time, for the packages as converted.")
    for failure in failures:
        print(f"\nfailed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
