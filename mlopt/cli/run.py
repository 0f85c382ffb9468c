"""``mlopt run``: what a model answers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlopt.cli.outcome import errors_explained
from mlopt.cli.terminal import checked_file

_SHOWN = 5


class PrecisionName(str, Enum):
    """In what numbers a model is run."""

    FLOAT32 = "float32"
    AS_DECLARED = "as_declared"


def run_model(
    model: Annotated[Path, typer.Argument(help="The .mlpackage to run.", metavar="MODEL")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="An input: an array (.npy), an image (.png, .jpg, ...), a number or a text. Once "
            "for each input.",
        ),
    ] = None,
    random: Annotated[
        bool,
        typer.Option("--random", help="Draw the inputs that are not given, with --seed."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=checked_file,
            help="Write the arrays of the outputs to an .npz file.",
        ),
    ] = None,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which function, of a model with several.")
    ] = None,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="float32 throughout, or float16 where the model says so."),
    ] = PrecisionName.FLOAT32,
    seed: Annotated[int, typer.Option(help="Of random inputs and operations.")] = 0,
) -> None:
    """Run a model with PyTorch, on any machine.

    Without any --input the inputs are listed. What is printed of an output: its shape and dtype,
    and least, mean and greatest element, or for a classifier the label and the best classes.
    """
    with errors_explained():
        from mlopt.cli.model_inputs import parsed_inputs, write_arrays
        from mlopt.runtime import load
        from mlopt.runtime.samples import random_samples

        given = parsed_inputs(inputs or ())
        program = load(model, function, precision=precision.value)
        if not given and not random and program.inputs:
            typer.echo(_described_inputs(program.inputs))
            return
        if random:
            given = {**random_samples(program, 1, seed)[0], **given}
        found = program.predict(given, program.make_state(), seed=seed)
        assert isinstance(found, dict)
        if output is not None:
            write_arrays(found, output)
        for name, value in found.items():
            typer.echo(f"{name}: {_described(value)}")


def _described_inputs(features: Mapping[str, Any]) -> str:
    lines = ["Give each input with --input NAME=VALUE, or --random:"]
    for name, feature in features.items():
        shape = getattr(feature, "described_shapes", None) or getattr(
            feature, "described_sizes", None
        )
        kind = getattr(feature, "dtype", None)
        words = [
            getattr(kind, "__name__", "") or getattr(feature, "space", feature.__class__.__name__)
        ]
        words += [shape()] if shape is not None else []
        lines.append(f"  {name}: {' '.join(words)}" + (", optional" * feature.is_optional))
    return "\n".join(lines)


def _described(value: Any) -> str:
    import numpy as np

    if isinstance(value, np.ndarray):
        text = f"{value.dtype}{list(value.shape)}"
        if value.size and value.dtype.kind in "iuf":
            wide = value.astype(np.float64)
            text += f", {wide.min():.6g} .. {wide.max():.6g}, mean {wide.mean():.6g}"
        return text
    if isinstance(value, dict):
        best = sorted(value.items(), key=lambda item: -item[1])[:_SHOWN]
        return ", ".join(f"{label} {share:.2%}" for label, share in best)
    if hasattr(value, "size") and hasattr(value, "mode"):
        return f"image {value.mode} {value.size[0]} x {value.size[1]}"
    return str(value)
