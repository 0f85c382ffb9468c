"""What running an ML program costs above its operations: a thousand small ones in a row.

    python -m benchmarks.runtime_overhead [--rows NAME ...] [--repeats N] [--json FILE] [--list]

Each row is a program of one operation a thousand times, on 16 numbers. It takes turns with a loop
of the same calls of torch, on one thread. The cost of an operation is the processor time of
``predict`` less that of the loop, divided by a thousand; inputs and outputs are in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib.options import add_row_options, choose
from benchmarks.lib.output import print_table, write_json
from benchmarks.lib.progress import say
from benchmarks.lib.quiet import import_coremltools

SUBJECT = "overhead of operations"
GOAL_US = 5.0
"""Microseconds that an operation may cost above torch's own call."""
_COUNT = 1000
_WIDTH = 16


def _add_constant(x: Any, number: int) -> Any:
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    return mb.add(x=x, y=np.full((1, _WIDTH), 0.01 * (number + 1), np.float32))


def _tanh(x: Any, number: int) -> Any:
    from coremltools.converters.mil import Builder as mb

    return mb.tanh(x=x)


def _softmax(x: Any, number: int) -> Any:
    from coremltools.converters.mil import Builder as mb

    return mb.softmax(x=x, axis=-1)


def _reshape(x: Any, number: int) -> Any:
    from coremltools.converters.mil import Builder as mb

    return mb.reshape(x=x, shape=_shape(number))


def _linear(x: Any, number: int) -> Any:
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    bias = np.full(_WIDTH, 1e-6 * number, np.float32)
    return mb.linear(x=x, weight=np.eye(_WIDTH, dtype=np.float32), bias=bias)


def _shape(number: int) -> tuple[int, int]:
    return (1, _WIDTH) if number % 2 else (_WIDTH, 1)


def _calls(name: str) -> Callable[[], Any]:
    """What calls torch as often as the program of a row does."""
    import torch

    x = torch.ones(1, _WIDTH)
    weights = [torch.eye(_WIDTH) for _ in range(_COUNT)]
    biases = [torch.full((_WIDTH,), 1e-6) for _ in range(_COUNT)]
    call: Callable[[Any, int], Any] = {
        "add": lambda x, number: torch.add(x, biases[number]),
        "tanh": lambda x, number: torch.tanh(x),
        "softmax": lambda x, number: torch.softmax(x, -1),
        "reshape": lambda x, number: x.reshape(_shape(number)),
        "linear": lambda x, n: torch.nn.functional.linear(x, weights[n], biases[n]),
    }[name]

    @torch.inference_mode()
    def run() -> Any:
        value = x
        for number in range(_COUNT):
            value = call(value, number)
        return value

    return run


ROWS: dict[str, Callable[[Any, int], Any]] = {
    "add": _add_constant,
    "tanh": _tanh,
    "softmax": _softmax,
    "reshape": _reshape,
    "linear": _linear,
}


def _package(name: str, folder: Path) -> Path:
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    @mb.program(  # type: ignore[untyped-decorator]
        input_specs=[mb.TensorSpec((1, _WIDTH))], opset_version=ct.target.iOS17
    )
    def program(x: Any) -> Any:
        for number in range(_COUNT):
            x = ROWS[name](x, number)
        return x

    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,  # others would merge what is repeated
        skip_model_load=True,
    )
    model.save(str(folder / "program.mlpackage"))
    return folder / "program.mlpackage"


def measure(name: str, path: Path, repeats: int) -> dict[str, Any]:
    """Microseconds an operation: of torch, and above it with weights made anew and kept."""
    import numpy as np
    import torch

    from mlopt.runtime import load

    torch.set_num_threads(1)
    loop = _calls(name)
    data = {"x": np.ones((1, _WIDTH), np.float32)}
    programs = [load(path, keep_weights=keeps) for keeps in (False, True)]
    runs = [loop, *(lambda program=program: program.predict(data) for program in programs)]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.thread_time()
            run()
            taken.append((time.thread_time() - start) / _COUNT * 1e6)
    # the first round is a warm-up; the least is what nothing else disturbed
    torch_us, above, above_kept = (min(taken[1:]) for taken in times)
    return {
        "name": name,
        "torch_us": torch_us,
        "above_us": above - torch_us,
        "above_kept_us": above_kept - torch_us,
    }


def _line(result: dict[str, Any]) -> list[str]:
    return [
        result["name"],
        *(f"{result[key]:.1f} us" for key in ("torch_us", "above_us", "above_kept_us")),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows."""
    parser = argparse.ArgumentParser(prog="benchmarks.runtime_overhead", description=__doc__)
    add_row_options(parser)
    parser.add_argument("--repeats", type=int, default=25, metavar="N", help="default 25")
    options = parser.parse_args(argv)
    if options.list:
        print(*ROWS, sep="\n")
        return 0
    results = []
    for name in choose({name: name for name in ROWS}, options.rows):
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(name, _package(name, Path(folder)), options.repeats))
        write_json(options.json, SUBJECT, results)
    columns = ["operation", "torch", "above it", "above it, weights kept"]
    print_table("A small operation", columns, map(_line, results))
    print(f"Goal: at most {GOAL_US:.0f} us above torch.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
