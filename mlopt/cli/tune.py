"""``mlopt tune``: gradient steps on the tables of a palettized model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlopt.choices import TUNED, LossName
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import checked_output, reasons, sample_bar, show, written

if TYPE_CHECKING:
    from mlopt.calibration.tuning import HeldOut, TuningResult


def tune_model(
    compressed: Annotated[
        Path, typer.Argument(help="The palettized .mlpackage.", metavar="COMPRESSED")
    ],
    original: Annotated[
        Path,
        typer.Option(
            "--original", metavar="MODEL", help="The float .mlpackage that it was made from."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Samples as for calibrate, such as the same ones: a file or folder of .npz or "
            ".npy files or images, or module:function.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The package to write.")
    ],
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps to take.")] = 150,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Length of the first step, relative to the numbers of each table; later ones are "
            "shorter. Default: by the error that there is, 0.003 at 6 dB, 0.0003 at 26 dB.",
        ),
    ] = None,
    loss: Annotated[
        LossName,
        typer.Option(
            help="squared: the error of each output, relative to its size; kl: the divergence of "
            "classes or next tokens."
        ),
    ] = "squared",
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--value",
            metavar="NAME",
            help="An output or intermediate value that the loss compares; repeatable. Default: "
            "all outputs of floats.",
        ),
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help=f"What is tuned: {', '.join(TUNED[:-1])} or {TUNED[-1]}; repeatable. Default: all "
            "of them.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take the first N samples only.")
    ] = None,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="The function of a model with several.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="The torch device, such as cuda.")
    ] = "cpu",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the order of the samples.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Tune a palettized model, so that it answers more as the original does.

    Gradient steps change tables, scales, biases and normalizations; indices and the size stay as
    they are. A fifth of the samples is held out. The package has the state that answered these
    best.
    """
    with errors_explained():
        checked_output(output, overwrite=overwrite)
        from itertools import islice

        from mlopt.calibration import tune
        from mlopt.cli.calibration_data import samples_of
        from mlopt.coreml.inspection import package_bytes
        from mlopt.runtime import load

        chosen = samples_of(data, load(compressed, function))
        before = package_bytes(compressed)  # OUT may be COMPRESSED itself
        with sample_bar("Tuning", None, quiet=quiet) as progress:
            result = tune(
                compressed,
                original,
                chosen if samples is None else islice(chosen, samples),
                output=output,
                loss=loss,
                values=values or None,
                what=what or TUNED,
                steps=steps,
                learning_rate=learning_rate,
                function=function,
                device=device,
                seed=seed,
                progress=progress,
            )
        if not quiet:
            show(written(_described(result), before, result.path).text)


def _described(result: TuningResult) -> str:
    from mlopt.text.words import counted

    kinds = Counter(each.kind for each in result.tuned)
    lines = [
        f"{counted(result.steps, 'step')} on {counted(result.trained_samples, 'sample')}, best "
        f"after {result.best_step}: "
        + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing")
        + " tuned.",
        f"On {counted(result.held_out_samples, 'sample')} held out: {_moved(result)}.",
    ]
    lines += [f"Note: {note}." for note in result.notes]
    lines += reasons(f"Left as they were: {counted(len(result.left), 'constant')}", result.left)
    return "\n".join(lines)


def _moved(result: TuningResult) -> str:
    def shown(measured: HeldOut) -> str:
        return f"loss {measured.loss:.4g}, {measured.snr_db:.2f} dB"

    return f"{shown(result.before)} before, {shown(result.after)} after"
