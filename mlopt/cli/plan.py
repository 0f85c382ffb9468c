"""``mlopt plan``: which form each weight gets, for a size or for a quality."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlopt.choices import Costs, LossName, Method
from mlopt.cli.batch import Models, OutputDir, destinations
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import (
    TARGET_OPTIONS,
    checked_named_file,
    checked_output,
    command_line,
    show,
    stage_bar,
    target_name,
)
from mlopt.text.words import counted

if TYPE_CHECKING:
    from mlopt.planning import Recipe

_SAMPLES = 32
_SUFFIX = ".recipe.yaml"


def plan_model(
    context: typer.Context,
    models: Models,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RECIPE",
            callback=checked_named_file,
            help="The recipe to write, of one MODEL: JSON if the name ends in .json, else YAML.",
        ),
    ] = None,
    output_dir: OutputDir = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What the package may take, such as 12MB or 900kB; several together.",
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="The same in bits for each element of the weights, everything in the package "
            "counted.",
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(metavar="X", help="The same: X times smaller than MODEL.")
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="The smallest package whose answers have this signal-to-noise ratio on the "
            "samples, in dB.",
        ),
    ] = None,
    divergence: Annotated[
        float | None,
        typer.Option(
            metavar="NATS", help="With --loss kl: the smallest package with this mean divergence."
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="With --metric: the smallest package whose metric is at least X."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="A command that prints a number last, of which more is better; {} in it is the "
            "path of a package. It decides between the last candidates.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Fit tables with the statistics that `mlopt calibrate` made of the model. Of "
            "several models, repeated: one for each, in their order.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples that the model is run on, as for `mlopt calibrate`; several models also "
            "get outputs of those before them. Default: random inputs, which may need other bits "
            "than real ones.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Take the first N samples. Default: {_SAMPLES}; 8 random ones.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Leave weights and operations of this name as they are. Repeatable.",
        ),
    ] = None,
    weight_threshold: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Choose for weights of more than N elements. Default: 2048."
        ),
    ] = None,
    minimum_deployment_target: Annotated[
        str | None,
        typer.Option(
            *TARGET_OPTIONS,
            metavar="TARGET",
            callback=target_name,
            help="The newest target that the result may require. Groups and 3 bits need iOS18. "
            "Default: the model's own, or iOS16 if that is older.",
        ),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE",
            help="neural-engine: only forms of which no rule of `mlopt lint` says that they run "
            "elsewhere.",
        ),
    ] = None,
    joint: Annotated[
        bool,
        typer.Option("--joint", help="Also choose for sparse and quantized weights; needs iOS18."),
    ] = False,
    method: Annotated[
        Method, typer.Option(case_sensitive=False, help="As for `mlopt palettize`.")
    ] = "auto",
    loss: Annotated[
        LossName,
        typer.Option(
            help="squared: the error of each output, relative to its size; kl: the divergence of "
            "classes or next tokens."
        ),
    ] = "squared",
    costs: Annotated[
        Costs,
        typer.Option(
            help="What forms of weights the model is run with: all (measured), one of each and "
            "then those that are chosen (near), or one of each with rough tables (predicted)."
        ),
    ] = "near",
    package: Annotated[
        Path | None,
        typer.Option(
            "--package",
            metavar="OUT",
            help="Also write the palettized package, of one MODEL, at no more cost.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            callback=checked_named_file,
            help="Also write a page that shows sizes, bits and losses, and what was tried, of one "
            "MODEL; needs matplotlib.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="A folder for what is clustered and measured. The same command goes on from it "
            "after an interruption, and plans for other sizes start with it.",
        ),
    ] = None,
    function: Annotated[
        str | None, typer.Option(metavar="NAME", help="The function of a model with several.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="The torch device, such as cuda.")
    ] = "cpu",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of random inputs.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads. Default: one per processor."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing outputs.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Choose bits and tables for every weight, for a size or for a quality of the answers.

    The model is run with one weight palettized at a time. What the answers lose by that is set
    against the bytes, and the best choice for all weights is computed. `mlopt palettize --recipe`
    carries a recipe out. Several models, such as the chunks of a language model, are planned for
    one size or quality of all together, and each gets a recipe.
    """
    with errors_explained():
        goal = _goal(
            budget=budget,
            bits=bits,
            ratio=ratio,
            snr=snr,
            divergence=divergence,
            at_least=at_least,
        )
        _check_metric(metric, at_least=at_least, other=(snr, divergence))
        _check_several(
            models,
            calibration,
            {
                "--metric": metric,
                "--package": package,
                "--report": report,
                "--function": function,
            },
        )
        if package is not None:
            checked_output(package, overwrite=overwrite, option="'--package'")
        if report is not None:
            from mlopt.pages import check_page

            check_page(report)
        options: dict[str, Any] = {
            **goal,
            "minimum_deployment_target": minimum_deployment_target,
            "pinned": dict.fromkeys(keep or ()),
            "devices": devices or (),
            "joint_compression": joint,
            "method": method,
            "loss": loss,
            "costs": costs,
            "cache": cache,
            "random": samples or 8,
            "seed": seed,
            "device": device,
            "workers": workers,
        }
        with destinations(
            models, output, output_dir, overwrite=overwrite, suffix=_SUFFIX
        ) as outputs:
            from mlopt.cli.plan_text import described, described_together
            from mlopt.planning import candidates_over, metric_of_command, save_recipe

            options["candidates"] = candidates_over(weight_threshold)
            if len(models) == 1:
                options |= {
                    "metric": None if metric is None else metric_of_command(metric),
                    "output": package,
                    "function": function,
                }
            if data is not None:
                options["samples"] = _samples(
                    models, function, data, count=samples or _SAMPLES, quiet=quiet
                )
            recipes = _planned(models, calibration or [], options, quiet=quiet)
            for recipe, path in zip(recipes, outputs, strict=True):
                save_recipe(recipe, path)
        if report is not None:
            from mlopt.pages import plan_page, write_page

            then = _next_command(models[0], outputs[0], calibration or [], cache)
            page = plan_page(
                recipes[0],
                commands=[command_line(context), then],
                title=f"Plan of {models[0].name}",
            )
            write_page(report, page)
        if not quiet:
            is_one = len(models) == 1
            show(
                described(recipes[0], outputs[0])
                if is_one
                else described_together(models, recipes, outputs)
            )


def _samples(
    models: Sequence[Path], function: str | None, data: str, *, count: int, quiet: bool
) -> Iterable[Mapping[str, Any]]:
    """Return the first samples of ``--data``."""
    from mlopt.cli.calibration_data import samples_of
    from mlopt.cli.inputs_together import inputs_together
    from mlopt.runtime import load

    taking = load(models[0], function) if len(models) == 1 else inputs_together(models)
    return samples_of(data, taking, count=count, quiet=quiet)


def _planned(
    models: Sequence[Path], calibrations: Sequence[Path], options: dict[str, Any], *, quiet: bool
) -> list[Recipe]:
    """Plan one model, or several together."""
    from mlopt.planning import plan, plan_together

    with stage_bar(quiet=quiet) as progress:
        if len(models) > 1:
            return plan_together(
                models, calibrations=calibrations or None, progress=progress, **options
            )
        calibration = calibrations[0] if calibrations else None
        return [plan(models[0], calibration=calibration, progress=progress, **options)]


def _check_metric(
    metric: str | None, *, at_least: float | None, other: tuple[float | None, ...]
) -> None:
    """Refuse a quality that is of a metric without one, and another one with it."""
    if metric is None and at_least is not None:
        raise typer.BadParameter("it is what a --metric says", param_hint="'--at-least'")
    if metric is not None and any(each is not None for each in other):
        raise typer.BadParameter(
            "with it, say what it is to be --at-least, or give a size", param_hint="'--metric'"
        )


def _check_several(
    models: Sequence[Path], calibrations: Sequence[Path] | None, of_one: dict[str, Any]
) -> None:
    """Refuse options that are about one model with several, and a wrong number of calibrations."""
    if calibrations and len(calibrations) != len(models):
        raise typer.BadParameter(
            f"give one for each model, in their order; got {len(calibrations)} for "
            f"{counted(len(models), 'model')}",
            param_hint="'--calibration'",
        )
    for option, value in of_one.items():
        if value is not None and len(models) > 1:
            raise typer.BadParameter(
                f"it is about one model, got {len(models)}; leave it out, or plan each alone",
                param_hint=f"'{option}'",
            )


def _goal(**given: Any) -> dict[str, Any]:
    """Return the budget or the quality that is asked for: exactly one."""
    asked = {name: value for name, value in given.items() if value is not None}
    options = ", ".join(map(_option, given))
    if len(asked) != 1:
        got = ", ".join(map(_option, asked)) or "none"
        raise typer.BadParameter(f"give one of {options}; got {got}", param_hint="'--budget'")
    ((name, value),) = asked.items()
    if name == "at_least":
        return {"quality": value}
    if name in ("snr", "divergence"):
        return {"quality": f"{value} {'dB' if name == 'snr' else 'nats'}"}
    return {"budget": {"bits": f"{value} bits", "ratio": f"{value}x"}.get(name, value)}


def _next_command(
    model: Path, recipe: Path, calibrations: Sequence[Path], cache: Path | None
) -> str:
    """Return the command that carries a recipe out."""
    words = ["mlopt", "palettize", model, "--recipe", recipe]
    words += ["--calibration", calibrations[0]] if calibrations else []
    words += ["--cache", cache] if cache is not None else []
    return shlex.join(map(str, [*words, "-o", f"{model.stem}-planned.mlpackage"]))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
