"""``mlopt compare``: how far the answers of two models are apart."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlopt.cli.outcome import ExitCode, errors_explained
from mlopt.cli.run import PrecisionName
from mlopt.cli.terminal import STANDARD_OUTPUT, checked_file, checked_named_file, write_text

if TYPE_CHECKING:
    from mlopt.runtime.comparison.results import Comparison


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
            "of several. An image is [channels, height, width], 0 to 255; a grey one may lack the "
            "first axis.",
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Draw N samples (default 8), in place of --inputs."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of random inputs and operations.")
    ] = 0,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show where the error enters, weight by weight.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=checked_named_file,
            help="Draw the layers to a file (.png, .svg, .pdf, ...); needs matplotlib.",
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
        PrecisionName | None,
        typer.Option(
            help="float32 throughout (default), or float16 where the models say so.",
        ),
    ] = None,
    min_snr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Fail (exit code 6) where an output has a lower signal-to-noise ratio, or nothing "
            "to compare: where the reference is zero, constant, saturated or not finite.",
        ),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(help="PyTorch on any machine, or Core ML itself on a Mac (no layers)."),
    ] = Backend.RUNTIME,
) -> None:
    """Run two models on the same inputs and measure how far their outputs are apart.

    For each output: the signal-to-noise ratio, the cosine, the largest difference, and that over
    the largest magnitude; for scores of classes how often the top answers agree, and for labels how
    often they are the same. Scores are the probabilities of a classifier, and outputs of one row
    that come out of a softmax, a sigmoid or a last layer. What is NaN or infinite is counted.
    """
    with errors_explained():
        if inputs is not None and random is not None:
            raise typer.BadParameter("give either --inputs or --random", param_hint="'--random'")
        if backend is Backend.COREML:
            _check_core_ml_takes(precision, needs_layers=layers or picture is not None)
        if picture is not None:
            from mlopt.runtime.comparison.picture import check_picture

            check_picture(picture)
        drawn = 8 if random is None else random
        if backend is Backend.COREML:
            found = _by_core_ml(reference, candidate, inputs, drawn, seed, function)
        else:
            found = _by_runtime(
                reference,
                candidate,
                inputs,
                random=drawn,
                seed=seed,
                layers=layers or picture is not None,
                function=function,
                precision=(precision or PrecisionName.FLOAT32).value,
            )
        if picture is not None:
            from mlopt.runtime.comparison.picture import draw_layers

            draw_layers(found, picture)
        if json_file is not None:
            write_text(found.to_json(), json_file)
        if json_file != STANDARD_OUTPUT:
            typer.echo(str(found))
    if min_snr is not None and found.below(min_snr):
        names = ", ".join(map(repr, found.below(min_snr)))
        typer.echo(f"Below {min_snr:g} dB, or with nothing to compare: {names}", err=True)
        raise typer.Exit(ExitCode.FINDINGS)


def _check_core_ml_takes(precision: PrecisionName | None, *, needs_layers: bool) -> None:
    if needs_layers:
        raise typer.BadParameter(
            "Core ML does not show intermediate values; leave --layers and --picture out",
            param_hint="'--backend'",
        )
    if precision is not None:
        raise typer.BadParameter(
            "Core ML computes in the numbers that it chooses for a device; leave --precision out",
            param_hint="'--backend'",
        )


def _by_runtime(
    reference: Path, candidate: Path, inputs: Path | None, *, precision: Any, **options: Any
) -> Comparison:
    from mlopt.cli.model_inputs import arrays_of
    from mlopt.runtime import compare, load
    from mlopt.runtime.comparison.answers import blamed
    from mlopt.runtime.comparison.split_samples import split_samples

    if inputs is None:
        return compare(reference, candidate, precision=precision, **options)
    arrays = arrays_of(inputs)
    with blamed("reference"):
        model = load(reference, options["function"], precision=precision)
    samples = split_samples(model, arrays)
    return compare(model, candidate, samples, precision=precision, **options)


def _by_core_ml(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    random: int,
    seed: int,
    function: str | None,
) -> Comparison:
    from mlopt.cli.model_inputs import arrays_of
    from mlopt.runtime import load
    from mlopt.runtime.comparison.answers import blamed, score_names
    from mlopt.runtime.comparison.coreml_backend import CoreMLModel
    from mlopt.runtime.comparison.ends import ends_of_outputs
    from mlopt.runtime.comparison.outputs import compare_outputs
    from mlopt.runtime.comparison.random_samples import random_samples
    from mlopt.runtime.comparison.split_samples import split_samples

    arrays = None if inputs is None else arrays_of(inputs)
    first, second = (CoreMLModel(path, function) for path in (reference, candidate))
    # what is not computed with PyTorch is described by it all the same
    with blamed("reference"):
        model = load(reference, function)
    return compare_outputs(
        first.predict,
        second.predict,
        random_samples(model, random, seed) if arrays is None else split_samples(model, arrays),
        labels=first.labels,
        scores=score_names(model),
        ends=ends_of_outputs(model),
    )
