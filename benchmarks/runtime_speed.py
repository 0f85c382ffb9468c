"""Running ML programs beside the PyTorch networks they were converted from: time and memory.

    python -m benchmarks.runtime_speed [--rows NAME ...] [--repeats N] [--json FILE] [--list]

Each row has processes of its own. In one the network and the program take turns. The program is
float16 in its package and computed in float32, as the network is, and once more rounded to float16
as it declares. Outputs are compared; a signal to noise ratio below 40 dB of the package that is not
palettized is a failure of the script, and so is more than twice the time as declared.

Memory is measured in two more, one for each side, so that neither finds ready what the other has
left behind:

- mlopt: the peak of loading and of the first runs, above what is resident after the imports. That
  is the plan, the states, the pages of the weight file that are resident, the weights as they are
  computed with, and the activations.
- PyTorch with its weights: the bytes of the network's own parameters and buffers, each storage
  once, and the peak of the first runs above what is resident when the network has been made. What
  making it took for a while does not count.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lib import child
from benchmarks.lib.memory import PeakMemory
from benchmarks.lib.options import add_row_options, choose
from benchmarks.lib.output import megabytes, print_table, seconds, write_json
from benchmarks.lib.packages import package
from benchmarks.lib.progress import say
from benchmarks.lib.timing import Timing

if TYPE_CHECKING:
    from mlopt.choices import Precision

SUBJECT = "running ML programs"
GOAL = 1.3
"""How many times the network's time a program may take."""
LIMIT_AS_DECLARED = 2.0
"""How many times its own time in float32 a program may take as declared."""
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


ROWS = [
    *_rows("minilm", "MiniLM, 128 tokens"),
    *_rows("resnet50", "ResNet50, 224 x 224"),
    Row("mobilenet-v2", "MobileNetV2, 224 x 224", "mobilenet-v2"),
    Row("unet", "diffusion U-Net, 64 x 64 x 4", "unet"),
    Row("decoder", "GPT with states, 50 steps", "decoder"),
    Row("decoder-kept", "GPT with states, 50 steps, weights kept", "decoder", keep_weights=True),
    Row("lstm", "LSTM, 2 x bidirectional, 100 steps", "lstm"),
    Row("speech-encoder", "Whisper's encoder, 30 s", "speech-encoder"),
]
BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Subject:
    """A network, and what it is run on.

    make: the network; steps: the inputs, tensors by name, of the calls that are one run; restart:
    called before each run, for networks that remember.
    """

    make: Callable[[], Any]
    steps: list[dict[str, Any]]
    restart: Callable[[Any], None] = lambda network: None


def _minilm() -> Subject:
    import torch

    from benchmarks.models import minilm
    from benchmarks.models.minilm_weights import model_folder

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (1, minilm.TOKENS), generator=generator, dtype=torch.int32)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Subject(lambda: minilm.load_encoder(model_folder()), [inputs])


def _image() -> dict[str, Any]:
    import torch

    return {"image": torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))}


def _resnet50() -> Subject:
    from benchmarks.models import resnet
    from benchmarks.models.random_weights import fill

    return Subject(lambda: fill(resnet.resnet50(), seed=50).eval(), [_image()])


def _mobilenet_v2() -> Subject:
    from benchmarks.models import mobilenet_v2
    from benchmarks.models.random_weights import fill

    return Subject(lambda: fill(mobilenet_v2.mobilenet_v2(), seed=2).eval(), [_image()])


def _unet() -> Subject:
    from benchmarks.models import unet

    return Subject(unet.unet, [unet.inputs()])


def _decoder() -> Subject:
    from benchmarks.models import stateful_decoder

    return Subject(
        stateful_decoder.decoder,
        stateful_decoder.steps(),
        restart=stateful_decoder.Decoder.restart,
    )


def _lstm() -> Subject:
    from benchmarks.models import lstm

    return Subject(lstm.tagger, [lstm.inputs()])


def _speech_encoder() -> Subject:
    from benchmarks.models import speech_encoder

    return Subject(speech_encoder.speech_encoder, [speech_encoder.inputs()])


NETWORKS: dict[str, Callable[[], Subject]] = {
    "minilm": _minilm,
    "resnet50": _resnet50,
    "mobilenet-v2": _mobilenet_v2,
    "unet": _unet,
    "decoder": _decoder,
    "lstm": _lstm,
    "speech-encoder": _speech_encoder,
}


def _program_run(
    row: Row, path: str, steps: list[dict[str, Any]], precision: Precision = "float32"
) -> Callable[[], list[Any]]:
    """Load a package; what runs it once, with a fresh state: the output of each step."""
    import torch

    from mlopt.runtime import load

    program = load(path, precision=precision, keep_weights=row.keep_weights)
    arrays = [{key: value.numpy() for key, value in step.items()} for step in steps]

    def run() -> list[Any]:
        state = program.make_state()
        outputs = []
        for step in arrays:
            (found,) = program.predict(step, state).values()
            outputs.append(torch.from_numpy(found))
        return outputs

    return run


def _network_run(subject: Subject, network: Any) -> Callable[[], list[Any]]:
    """What runs a network once: the output of each step."""
    import torch

    @torch.inference_mode()
    def run() -> list[Any]:
        subject.restart(network)
        return [network(*step.values()) for step in subject.steps]

    return run


def measure(name: str, path: str, repeats: int) -> dict[str, Any]:
    """Times of the network and of the program in turns, and the distances of the outputs."""
    from mlopt.runtime.comparison.measures import Distance

    row = BY_NAME[name]
    subject = NETWORKS[row.network]()
    run_network = _network_run(subject, subject.make())
    run_program = _program_run(row, path, subject.steps)
    run_declared = _program_run(row, path, subject.steps, "as_declared")
    for _ in range(_WARMUPS):
        wanted, found, rounded = run_network(), run_program(), run_declared()
    distance, distance_declared = Distance(), Distance()
    for a, b, c in zip(wanted, found, rounded, strict=True):
        distance.add(a, b)
        distance_declared.add(a, c)
    eager, ours, declared = Timing(), Timing(), Timing()
    for _ in range(repeats):
        eager.measure(run_network)
        ours.measure(run_program)
        declared.measure(run_declared)
    ratio, spread = _ratio(ours, eager)
    ratio_declared, spread_declared = _ratio(declared, ours)
    return {
        "eager": eager.summary(),
        "ours": ours.summary(),
        "as_declared": declared.summary(),
        "ratio": ratio,
        "spread_of_ratio": spread,
        "ratio_as_declared": ratio_declared,
        "spread_of_ratio_as_declared": spread_declared,
        "snr_db": distance.snr_db,
        "snr_db_as_declared": distance_declared.snr_db,
    }


def _ratio(first: Timing, second: Timing) -> tuple[float, list[float]]:
    """The median of the quotients of neighbouring runs, and the lowest and the highest."""
    ratios = sorted(a / b for a, b in zip(first.wall_s, second.wall_s, strict=True))
    return ratios[len(ratios) // 2], [ratios[0], ratios[-1]]


def program_bytes(name: str, path: str) -> int:
    """What loading and running the program takes; see above."""
    import mlopt.runtime  # noqa: F401  as the peak is above the imports

    row = BY_NAME[name]
    steps = NETWORKS[row.network]().steps
    memory = PeakMemory()
    run = _program_run(row, path, steps)
    for _ in range(_WARMUPS):
        run()
    return memory.above_start_bytes()


def network_bytes(name: str) -> dict[str, int]:
    """What the network itself takes, and running it above that; see above."""
    subject = NETWORKS[BY_NAME[name].network]()
    network = subject.make()
    run = _network_run(subject, network)
    gc.collect()
    memory = PeakMemory()
    for _ in range(_WARMUPS):
        run()
    return {"weights": weight_bytes(network), "running": memory.above_start_bytes()}


def weight_bytes(network: Any) -> int:
    """Bytes of the storages of a network's parameters and buffers, each storage once."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    storages = {storage.data_ptr(): storage for storage in (t.untyped_storage() for t in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def _package(row: Row, folder: Path) -> Path:
    """The package of a row: a cached one, or what is palettized of it into a folder."""
    plain = package(row.network)
    if row.nbits is None:
        return plain
    import mlopt.coreml as coreml

    op_config = coreml.OpPalettizerConfig(nbits=row.nbits)
    config = coreml.OptimizationConfig(global_config=op_config)
    coreml.palettize(plain, config, output=folder / "palettized.mlpackage")
    return folder / "palettized.mlpackage"


def _line(result: dict[str, Any]) -> list[str]:
    low, high = result["spread_of_ratio"]
    least, most = result["spread_of_ratio_as_declared"]
    return [
        result["name"],
        result["title"],
        seconds(result["eager"]["median_wall_s"]),
        seconds(result["ours"]["median_wall_s"]),
        f"{result['ratio']:.2f}x",
        f"{low:.2f}..{high:.2f}",
        f"{result['ratio_as_declared']:.2f}x",
        f"{least:.2f}..{most:.2f}",
        megabytes(result["program_bytes"]),
        megabytes(sum(result["network_bytes"].values())),
        f"{result['snr_db']:.1f} dB",
        f"{result['snr_db_as_declared']:.1f} dB",
    ]


_COLUMNS = [
    "row",
    "model",
    "PyTorch",
    "mlopt",
    "ratio",
    "spread",
    "as declared",
    "spread",
    "MB, mlopt",
    "MB, PyTorch with its weights",
    "SNR",
    "SNR, as declared",
]


def _measured(row: Row, repeats: int) -> dict[str, Any]:
    script = "benchmarks.runtime_speed"
    with tempfile.TemporaryDirectory() as folder:
        path = str(_package(row, Path(folder)))
        return {
            "name": row.name,
            "title": row.title,
            **child.call(f"{script}:measure", name=row.name, path=path, repeats=repeats),
            "program_bytes": child.call(f"{script}:program_bytes", name=row.name, path=path),
            "network_bytes": child.call(f"{script}:network_bytes", name=row.name),
        }


def main(argv: list[str] | None = None) -> int:
    """Run the chosen rows; 1 where anything raised or outputs are wrong, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.runtime_speed", description=__doc__)
    add_row_options(parser)
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
            found = _measured(row, options.repeats)
        except child.ChildError as error:
            failures.append(f"{row.name}\n{error}")
            continue
        results.append(found)
        if row.nbits is None and not found["snr_db"] > _LEAST_SNR:
            failures.append(f"{row.name}: {found['snr_db']:.1f} dB, less than {_LEAST_SNR}")
        if found["ratio_as_declared"] > LIMIT_AS_DECLARED:
            failures.append(
                f"{row.name}: {found['ratio_as_declared']:.2f} times as long as declared, more "
                f"than {LIMIT_AS_DECLARED}"
            )
        write_json(options.json, SUBJECT, results)
    print_table("Running ML programs", _COLUMNS, map(_line, results))
    print(
        f"Goal: at most {GOAL} times PyTorch's time, for the packages as converted, and as "
        f"declared at most {LIMIT_AS_DECLARED} times that in float32."
    )
    for failure in failures:
        print(f"\nfailed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
