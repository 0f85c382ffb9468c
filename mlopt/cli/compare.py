"""``mlopt compare``: how far the answers of two models are apart."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlopt.cli.outcome import errors_explained
from mlopt.cli.run import PrecisionName
from mlopt.cli.terminal import STANDARD_OUTPUT, checked_file, write_text

if TYPE_CHECKING:
    from mlopt.runtime.comparison import Comparison


class Backend(str, Enum):
    """What runs the models."""

    RUNTIME = "runtime"
    COREML = "coreml"


def compare_models(
    reference: Annotated[Path, typer.Argument(help="The model as it was.", metavar="REFERENCE")],
    candidate: Annotated[
        Path, typer.Argument(help="What compression made of it.", metavar="CANDIDATE")
    ],
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Arrays by the names of the inputs: of one sample, or with one more axis in front "
            "of several.",
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Draw N samples (default 8), in place of --inputs."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random inputs and operations.")] = 0,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show where the error enters, weight by weight.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=checked_file,
            help="Draw the layers to a file (.png, .svg, .pdf); needs matplotlib.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            callback=checked_file,
            help="Write everything as JSON too; - prints it in place of the tables.",
        ),
    ] = None,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which function, of models with several.")
    ] = None,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="float32 throughout, or float16 where the models say so."),
    ] = PrecisionName.FLOAT32,
    backend: Annotated[
        Backend,
        typer.Option(help="PyTorch on any machine, or Core ML itself on a Mac (no layers)."),
    ] = Backend.RUNTIME,
) -> None:
    """Run two models on the same inputs and measure how far their outputs are apart.

    For each output: the signal-to-noise ratio, the cosine, the largest difference, and that over
    the largest magnitude; for scores of classes how often the top answers agree.
    """
    with errors_explained():
        if inputs is not None and random is not None:
            raise typer.BadParameter("give either --inputs or --random", param_hint="'--random'")
        if backend is Backend.COREML and (layers or picture is not None):
            raise typer.BadParameter(
                "Core ML does not show intermediate values; leave --layers and --picture out",
                param_hint="'--backend'",
            )
        given = (reference, candidate, inputs, random or 8, seed, function)
        if backend is Backend.COREML:
            found = _by_core_ml(*given)
        else:
            found = _by_runtime(*given, precision.value, layers or picture is not None)
        if picture is not None:
            from mlopt.runtime.picture import draw_layers

            draw_layers(found, picture)
        if json_file is not None:
            write_text(found.to_json().rstrip("\n"), json_file)
        if json_file != STANDARD_OUTPUT:
            typer.echo(str(found))


def _by_runtime(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    random: int,
    seed: int,
    function: str | None,
    precision: Any,
    layers: bool,
) -> Comparison:
    from mlopt.runtime import compare

    return compare(
        reference,
        candidate,
        # drawn at random of the model that is loaded there anyway
        None if inputs is None else _samples(reference, inputs, random, seed, function),
        random=random,
        seed=seed,
        layers=layers,
        function=function,
        precision=precision,
    )


def _by_core_ml(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    random: int,
    seed: int,
    function: str | None,
) -> Comparison:
    from mlopt.runtime.comparison import Comparison, compare_outputs
    from mlopt.runtime.coreml_backend import CoreMLModel

    models = [CoreMLModel(path, function) for path in (reference, candidate)]
    samples = _samples(reference, inputs, random, seed, function)
    rows = compare_outputs(models[0].predict, models[1].predict, samples)
    return Comparison(len(samples), rows)


def _samples(
    reference: Path, inputs: Path | None, random: int, seed: int, function: str | None
) -> list[dict[str, Any]]:
    from mlopt.cli.model_inputs import arrays_of
    from mlopt.runtime import load
    from mlopt.runtime.samples import random_samples, split_samples

    arrays = None if inputs is None else arrays_of(inputs)
    model = load(reference, function)
    if arrays is None:
        return random_samples(model, random, seed)
    return split_samples(model, arrays)
