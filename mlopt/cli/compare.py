"""``mlopt compare``: how far the outputs of two models are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from mlopt.choices import Precision
from mlopt.cli.exit_codes import ExitCode, errors_explained
from mlopt.cli.terminal import (
    STANDARD_OUTPUT,
    checked_file,
    checked_named_file,
    checked_page,
    show,
    write_text,
)

if TYPE_CHECKING:
    import numpy as np

    from mlopt.cli.metric_options import MetricOptions
    from mlopt.runtime.comparison.float16_results import Float16Comparison
    from mlopt.runtime.comparison.results import Comparison
    from mlopt.runtime.pipeline import Pipeline
    from mlopt.runtime.program import Program

Backend: TypeAlias = Literal["runtime", "coreml"]
"""The backend that runs the models."""


def compare_models(
    reference: Annotated[
        Path,
        typer.Argument(
            help="The original model; with --float16 the only one.", metavar="REFERENCE"
        ),
    ],
    candidate: Annotated[
        Path | None, typer.Argument(help="The compressed model.", metavar="CANDIDATE")
    ] = None,
    float16: Annotated[
        bool,
        typer.Option(
            "--float16",
            help="Compare one model in float32 with itself as it declares its numbers: shows the "
            "operations at which float16 overflows, vanishes or loses most.",
        ),
    ] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="An .npz file of arrays by input name: one sample, or several along one more axis "
            "in front. An image is [channels, height, width], 0 to 255; a grey one may lack the "
            "first axis. Or a folder of files with samples, as for calibrate --data; all are held "
            "in memory.",
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Draw N samples (default 8) instead of --inputs."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of random inputs and operations.")
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
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            callback=checked_page,
            help="Write a page with tables and charts, of layers too if --layers is given; needs "
            "matplotlib.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            callback=checked_file,
            help="Also write everything as JSON; - prints it instead of the tables.",
        ),
    ] = None,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="The function of models with several.")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="float32 throughout (default), or float16 where the models say so.",
        ),
    ] = None,
    min_snr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Fail (exit code 6) if an output has a lower signal-to-noise ratio, or nothing "
            "to compare: its reference is zero, constant, saturated or not finite.",
        ),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(help="PyTorch on any machine, or Core ML itself on a Mac (no layers)."),
    ] = "runtime",
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The input of token ids of a language model, where it is not recognized.",
        ),
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output of logits of the next token."),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="An input with zeros for tokens to leave out."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="An output with scores of classes in its last axis."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The array of --inputs with the right classes: shows the accuracy of both models.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="A function of the outputs of the reference, those of the candidate and the "
            "inputs, three lists of dictionaries, that returns a number, or one for each model; "
            "repeatable. Modules of the current folder can be imported.",
        ),
    ] = None,
) -> None:
    """Run two models on the same inputs and measure how far their outputs are apart.

    For each output: the signal-to-noise ratio, the cosine, the largest difference, and that over
    the largest magnitude; for scores of classes how often the top classes are the same, and for
    labels how often they are the same. Scores are the probabilities of a classifier, and outputs of
    one row from a softmax, a sigmoid or a last layer. NaN and infinite elements are counted; a
    reference that is zero, constant or saturated is reported as such.

    Language models are judged by their perplexity on --inputs, and by how often and how much their
    next tokens differ.
    """
    with errors_explained():
        if inputs is not None and random is not None:
            raise typer.BadParameter("give either --inputs or --random", param_hint="'--random'")
        _check_models(candidate, float16=float16)
        from mlopt.cli.metric_options import MetricOptions

        metrics = MetricOptions(tokens, logits, mask, classes, labels, metric or ())
        if float16:
            _check_float16_takes(
                precision,
                backend,
                metrics,
                needs_layers=layers or picture is not None,
                needs_page=report is not None,
            )
        metrics.check(inputs)
        if backend == "coreml":
            _check_core_ml_takes(precision, needs_layers=layers or picture is not None)
        _check_drawn(picture, report)
        drawn = 8 if random is None else random
        if candidate is None:
            by_itself = _float16(reference, inputs, random=drawn, seed=seed, function=function)
            _show(by_itself, json_file)
            _check_ratio(by_itself, min_snr)
            return
        if backend == "coreml":
            comparison = _by_core_ml(
                reference, candidate, inputs, metrics, random=drawn, seed=seed, function=function
            )
        else:
            comparison = _by_runtime(
                reference,
                candidate,
                inputs,
                metrics,
                random=drawn,
                seed=seed,
                layers=layers or picture is not None,
                function=function,
                precision=precision or "float32",
            )
        names = [path.name or str(path) for path in (reference, candidate)]
        _draw(comparison, picture, report, title=" and ".join(names))
        _show(comparison, json_file)
    _check_ratio(comparison, min_snr)


def _show(comparison: Comparison | Float16Comparison, json_file: Path | None) -> None:
    if json_file is not None:
        write_text(comparison.to_json(), json_file)
    if json_file != STANDARD_OUTPUT:
        show(str(comparison))


def _check_drawn(picture: Path | None, report: Path | None) -> None:
    if picture is not None:
        from mlopt.runtime.comparison.picture import check_picture

        check_picture(picture)
    if report is not None:
        from mlopt.pages import check_page

        check_page(report)


def _draw(comparison: Comparison, picture: Path | None, report: Path | None, *, title: str) -> None:
    if picture is not None:
        from mlopt.runtime.comparison.picture import draw_layers

        draw_layers(comparison, picture)
    if report is not None:
        from mlopt.pages import comparison_page, write_page

        write_page(report, comparison_page(comparison, title=title))


def _check_models(candidate: Path | None, *, float16: bool) -> None:
    if float16 and candidate is not None:
        raise typer.BadParameter(
            "one model is compared with itself; leave the second one out", param_hint="'--float16'"
        )
    if candidate is None and not float16:
        raise typer.BadParameter(
            "give the model to compare with, or --float16 to compare one with itself",
            param_hint="'CANDIDATE'",
        )


def _check_float16_takes(
    precision: Precision | None,
    backend: Backend,
    metrics: MetricOptions,
    *,
    needs_layers: bool,
    needs_page: bool,
) -> None:
    given = {
        "--precision": precision is not None,
        "--backend": backend == "coreml",
        "--layers and --picture": needs_layers,
        "--report": needs_page,
        **dict.fromkeys(metrics.given, True),
    }
    wrong = [option for option, is_given in given.items() if is_given]
    if wrong:
        raise typer.BadParameter(
            f"it runs every operation in both precisions; leave {', '.join(wrong)} out",
            param_hint="'--float16'",
        )


def _check_ratio(comparison: Comparison | Float16Comparison, least: float | None) -> None:
    """Fail if an output is below the requested ratio."""
    if least is None:
        return
    below = comparison.below(least)
    if below:
        names = ", ".join(map(repr, below))
        show(f"Below {least:g} dB, or with nothing to compare: {names}", is_error=True)
        raise typer.Exit(ExitCode.FINDINGS)


def _check_core_ml_takes(precision: Precision | None, *, needs_layers: bool) -> None:
    if needs_layers:
        raise typer.BadParameter(
            "Core ML does not show intermediate values; leave --layers and --picture out",
            param_hint="'--backend'",
        )
    if precision is not None:
        raise typer.BadParameter(
            "Core ML chooses the precision for its device; leave --precision out",
            param_hint="'--backend'",
        )


def _float16(reference: Path, inputs: Path | None, **options: Any) -> Float16Comparison:
    from mlopt.runtime import compare_float16, load

    if inputs is None:
        return compare_float16(reference, **options)
    arrays = _arrays(inputs)
    samples = _samples(inputs, arrays, load(reference, options["function"]))
    return compare_float16(reference, samples, **options)


def _arrays(inputs: Path | None) -> dict[str, np.ndarray]:
    """Return the arrays of --inputs, if that is an .npz file."""
    from mlopt.cli.model_inputs import arrays_of
    from mlopt.cli.sample_files import is_archive

    return {} if inputs is None or not is_archive(inputs) else arrays_of(inputs)


def _samples(
    inputs: Path, arrays: dict[str, np.ndarray], model: Program | Pipeline
) -> Sequence[Mapping[str, Any]]:
    """Return the samples of --inputs; arrays: those in it that are inputs."""
    from mlopt.cli.sample_files import is_archive, samples_in
    from mlopt.runtime.comparison.split_samples import split_samples

    if is_archive(inputs):
        return split_samples(model, arrays)
    samples = samples_in(inputs, model, "'--inputs'")
    samples.show_left_out()
    return list(samples)


def _by_runtime(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    metrics: MetricOptions,
    *,
    precision: Any,
    **options: Any,
) -> Comparison:
    from mlopt.runtime import compare, load
    from mlopt.runtime.comparison.answers import blamed

    arrays = _arrays(inputs)
    options |= metrics.taken_from(arrays)
    if inputs is None:
        return compare(reference, candidate, precision=precision, **options)
    with blamed("reference"):
        model = load(reference, options["function"], precision=precision)
    samples = _samples(inputs, arrays, model)
    return compare(model, candidate, samples, precision=precision, **options)


def _by_core_ml(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    metrics: MetricOptions,
    *,
    random: int,
    seed: int,
    function: str | None,
) -> Comparison:
    from mlopt.runtime import load
    from mlopt.runtime.comparison.answers import blamed, score_names
    from mlopt.runtime.comparison.coreml_backend import CoreMLModel
    from mlopt.runtime.comparison.ends import ends_of_outputs
    from mlopt.runtime.comparison.metrics import metrics_of
    from mlopt.runtime.comparison.outputs import compare_outputs
    from mlopt.runtime.comparison.random_samples import random_samples

    arrays = _arrays(inputs)
    options = metrics.taken_from(arrays)
    first, second = (CoreMLModel(path, function) for path in (reference, candidate))
    # models that PyTorch does not run are still described by it
    with blamed("reference"):
        model = load(reference, function)
    samples = (
        random_samples(model, random, seed) if inputs is None else _samples(inputs, arrays, model)
    )
    measured = metrics_of(model, samples=len(samples), are_drawn=inputs is None, **options)
    return compare_outputs(
        first.predict,
        second.predict,
        samples,
        labels=first.labels,
        scores=score_names(model),
        ends=ends_of_outputs(model),
        metrics=measured,
    )
