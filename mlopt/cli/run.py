"""``mlopt run``: run a model on given inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mlopt.choices import Precision
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import checked_named_file, show
from mlopt.text.names import printable

_SHOWN = 5
_ABOUT_ONE = 0.01
"""Tolerance of a sum of probabilities around 1: in float16 those of many classes are rounded."""


def run_model(
    model: Annotated[Path, typer.Argument(help="The .mlpackage to run.", metavar="MODEL")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="An input: an array (.npy), an image (.png, .jpg, ...), a number (also inf, nan) "
            "for an input of one element, or a text for a string. Once for each input.",
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
            callback=checked_named_file,
            help="Write the outputs to an .npz file: arrays, numbers and labels as NAME, images as "
            "NAME [height, width], colours on a last axis of 3, and the probabilities of a "
            "classifier as NAME.labels and NAME.values.",
        ),
    ] = None,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="The function of a model with several.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|N",
            help="Run a single model of a pipeline, by its name or its position from 0.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="float32 throughout, or float16 where the model says so."),
    ] = "float32",
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of random inputs and operations.")
    ] = 0,
) -> None:
    """Run a model with PyTorch, on any machine.

    Without any --input the inputs are listed. What is printed of an output: its shape and dtype,
    and least, mean and greatest element, or for a classifier the label and the best classes, with
    percentages where they are probabilities.
    """
    with errors_explained():
        from mlopt.cli.model_inputs import named_arrays, named_texts, parsed_inputs, write_arrays
        from mlopt.runtime import load
        from mlopt.runtime.comparison.random_samples import checked_seed, random_samples

        texts = named_texts(inputs or ())
        seed = checked_seed(seed)
        program = load(model, function, stage=stage, precision=precision)
        if not texts and not random and program.inputs:
            show(_described_inputs(program.inputs))
            return
        given = parsed_inputs(texts, program.inputs)
        if random:
            given = {**random_samples(program, 1, seed)[0], **given}
        outputs = program.predict(given, program.make_state(), seed=seed)
        assert isinstance(outputs, dict)
        for name, value in outputs.items():
            show(printable(f"{name}: {_described(value)}"))
        if output is not None:
            arrays = named_arrays(outputs)
            write_arrays(arrays, output)
            saved = (f"{name} {value.dtype}{list(value.shape)}" for name, value in arrays.items())
            show(printable(f"Saved in {output}: {', '.join(saved)}"))


def _described_inputs(features: Mapping[str, Any]) -> str:
    lines = ["Give each input with --input NAME=VALUE, or --random:"]
    for name, feature in features.items():
        shape = getattr(feature, "described_shapes", None) or getattr(
            feature, "described_sizes", None
        )
        words = [_kind(feature)]
        words += [shape()] if shape is not None else []
        line = f"  {name}: {' '.join(words)}" + (", optional" * feature.is_optional)
        lines.append(printable(line))
    return "\n".join(lines)


def _kind(feature: Any) -> str:
    """Return the kind of a feature, in a word or two."""
    plain = {"doubleType": "number", "int64Type": "integer", "stringType": "text"}
    if hasattr(feature, "kind"):
        return plain.get(feature.kind, str(feature.kind))
    return getattr(getattr(feature, "dtype", None), "__name__", "") or str(feature.space)


def _described(value: Any) -> str:
    import numpy as np

    if isinstance(value, np.ndarray):
        text = f"{value.dtype}{list(value.shape)}"
        if value.size and value.dtype.kind in "iuf":
            wide = value.astype(np.float64)
            text += f", {wide.min():.6g} .. {wide.max():.6g}, mean {wide.mean():.6g}"
        return text
    if isinstance(value, dict):
        # NaN has no order; it comes first, to be seen
        ordered = sorted(value.items(), key=lambda item: (item[1] == item[1], -item[1]))
        form = ".2%" if _are_probabilities(value.values()) else ".6g"
        return ", ".join(f"{label} {score:{form}}" for label, score in ordered[:_SHOWN])
    if hasattr(value, "size") and hasattr(value, "mode"):
        return f"image {value.mode} {value.size[0]} x {value.size[1]}"
    return str(value)


def _are_probabilities(scores: Collection[float]) -> bool:
    is_in_range = all(0.0 <= score <= 1.0 for score in scores)
    return is_in_range and abs(sum(scores) - 1.0) <= _ABOUT_ONE
