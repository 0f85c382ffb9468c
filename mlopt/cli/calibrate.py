"""``mlopt calibrate``: statistics of what the weights of a model multiply."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlopt.choices import LossName, Statistics
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import check_new, checked_named_file, reasons, sample_bar, show

if TYPE_CHECKING:
    from mlopt.statistics import Calibration


def calibrate_model(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="The .mlpackage to run; with --merge the calibrations to merge.",
            metavar="MODEL",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=checked_named_file,
            help="The calibration to write. Until it is complete it is FILE.partial, from which "
            "the same command goes on after an interruption.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples: a file or a folder of .npz archives with an array for each input, or, "
            "of a model with one input, of .npy arrays or images; or a folder with a folder for "
            "each input, named as it, with files of equal names. An array may hold several "
            "samples along one more axis in front. Images are scaled, their aspect kept, and cut "
            "in the middle to the size of the input. Or module:function, which returns "
            "dictionaries of inputs (modules of the current folder can be imported).",
        ),
    ] = None,
    statistics: Annotated[
        Statistics,
        typer.Option(
            help="hessian: means of all products of two inputs of a weight; diagonal: mean squares "
            "alone, a small file; guided: the products weighted by how much the model's outputs "
            "depend on each position, in two to three times the time."
        ),
    ] = "hessian",
    loss: Annotated[
        LossName,
        typer.Option(
            help="What errors of the outputs cost, for guided statistics: their squares, relative "
            "to each output's size (squared), or the divergence of classes or next tokens (kl)."
        ),
    ] = "squared",
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take the first N samples only.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Take every N-th sample from the I-th on, such as 2/4; the calibrations of all "
            "parts are joined with --merge.",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge calibrations of parts of the samples.")
    ] = False,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="The function of a model with several.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="The torch device, such as cuda.")
    ] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Run a model on samples and measure what each of its weights multiplies.

    The result tells which errors of a weight change the model's answers: palettize makes better
    tables with it. A few dozen samples of the kind that the model will get are enough. Of weights
    that multiply no inputs, such as biases, there is nothing to measure; they are counted.
    """
    with errors_explained():
        check_new(output, overwrite=overwrite)
        if merge:
            if data is not None:
                raise typer.BadParameter(
                    "--merge takes calibrations; leave --data out", param_hint="'--merge'"
                )
            from mlopt.statistics import merge as merged

            calibration = merged(models, output)
        else:
            calibration = _calibrated(
                models,
                data,
                output,
                statistics=statistics,
                loss=loss,
                samples=samples,
                part=_parsed_part(part),
                function=function,
                device=device,
                quiet=quiet,
            )
        if not quiet and os.environ.get("RANK", "0") == "0":
            show(_described(calibration, output))


def _calibrated(
    models: Sequence[Path],
    data: str | None,
    output: Path,
    *,
    statistics: Statistics,
    loss: LossName,
    samples: int | None,
    part: tuple[int, int] | None,
    function: str | None,
    device: str,
    quiet: bool,
) -> Calibration:
    if len(models) > 1:
        raise typer.BadParameter(
            f"one model is calibrated at a time, got {len(models)}; give one, or --merge for "
            "calibrations",
            param_hint="'MODEL'",
        )
    if data is None:
        raise typer.BadParameter(
            "it is needed: a file or folder of samples, or module:function", param_hint="'--data'"
        )
    from mlopt.calibration import calibrate
    from mlopt.cli.calibration_data import samples_of
    from mlopt.runtime import load

    chosen = samples_of(data, load(models[0], function), count=samples, quiet=quiet)
    with _processes(), sample_bar("Calibrating", None, quiet=quiet) as progress:
        return calibrate(
            models[0],
            chosen,
            statistics=statistics,
            loss=loss,
            output=output,
            function=function,
            device=device,
            part=part,
            progress=progress,
        )


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Have the processes that ``torchrun`` started find each other while the block runs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _parsed_part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise typer.BadParameter(
            f"{text!r} is not I/N with I from 1 to N, such as 2/4", param_hint="'--part'"
        )
    return int(first), int(count)


def _described(calibration: Calibration, output: Path) -> str:
    from mlopt.text.words import counted, human_bytes

    lines = [
        f"{counted(calibration.samples, 'sample')}, {calibration.statistics} statistics of "
        f"{counted(len(calibration.weights), 'weight')}: {output}, "
        f"{human_bytes(output.stat().st_size)}."
    ]
    check = calibration.held_out
    if check is not None:
        lines.append(
            f"Held-out check: tables fitted to {counted(check.samples, 'sample')} would gain "
            f"{check.seen_db:.1f} dB on these, {check.held_out_db:.1f} dB on others."
        )
    lines += [f"Note: {note}." for note in calibration.notes]
    without = calibration.without
    lines += reasons(f"Without statistics: {counted(len(without), 'weight')}", without)
    return "\n".join(lines)
