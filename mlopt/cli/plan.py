"""``mlopt plan``: which form each weight gets, for a size or for a quality."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlopt.choices import Costs, LossName, Method
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import (
    TARGET_OPTIONS,
    check_new,
    checked_named_file,
    checked_output,
    command_line,
    reasons,
    show,
    stage_bar,
    target_name,
)

if TYPE_CHECKING:
    from mlopt.planning import Recipe

_SAMPLES = 32


def plan_model(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The .mlpackage to plan.", metavar="MODEL")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RECIPE",
            callback=checked_named_file,
            help="The recipe to write: JSON if the name ends in .json, else YAML.",
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What the package may take, such as 12MB or 900kB."),
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
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Fit tables with the statistics that `mlopt calibrate` made of the model.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples that the model is run on, as for `mlopt calibrate`. Default: random "
            "inputs, which may need other bits than real ones.",
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
            "--package", metavar="OUT", help="Also write the palettized package, at no more cost."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            callback=checked_named_file,
            help="Also write a page that shows sizes, bits and losses, and what was tried; needs "
            "matplotlib.",
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
    carries a recipe out.
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
        if metric is None and at_least is not None:
            raise typer.BadParameter("it is what a --metric says", param_hint="'--at-least'")
        if metric is not None and (snr, divergence) != (None, None):
            raise typer.BadParameter(
                "with it, say what it is to be --at-least, or give a size", param_hint="'--metric'"
            )
        check_new(output, overwrite=overwrite)
        if package is not None:
            checked_output(package, overwrite=overwrite, option="'--package'")
        if report is not None:
            from mlopt.pages import check_page

            check_page(report)
        from mlopt.planning import candidates_over, metric_of_command, plan, save_recipe
        from mlopt.runtime import load

        chosen = None
        if data is not None:
            from mlopt.cli.calibration_data import samples_of

            chosen = samples_of(data, load(model, function), count=samples or _SAMPLES, quiet=quiet)
        with stage_bar(quiet=quiet) as progress:
            recipe = plan(
                model,
                **goal,
                samples=chosen,
                calibration=calibration,
                candidates=candidates_over(weight_threshold),
                minimum_deployment_target=minimum_deployment_target,
                pinned=dict.fromkeys(keep or ()),
                metric=None if metric is None else metric_of_command(metric),
                devices=devices or (),  # type: ignore[arg-type]  # the words are checked there
                joint_compression=joint,
                method=method,
                loss=loss,
                costs=costs,
                output=package,
                cache=cache,
                random=samples or 8,
                seed=seed,
                function=function,
                device=device,
                workers=workers,
                progress=progress,
            )
        save_recipe(recipe, output)
        if report is not None:
            from mlopt.pages import plan_page, write_page

            commands = [command_line(context), _next_command(model, output, calibration, cache)]
            write_page(report, plan_page(recipe, commands=commands, title=f"Plan of {model.name}"))
        if not quiet:
            show(_described(recipe, output))


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


def _next_command(model: Path, recipe: Path, calibration: Path | None, cache: Path | None) -> str:
    """Return the command that carries a recipe out."""
    words = ["mlopt", "palettize", model, "--recipe", recipe]
    words += ["--calibration", calibration] if calibration is not None else []
    words += ["--cache", cache] if cache is not None else []
    return shlex.join(map(str, [*words, "-o", f"{model.stem}-planned.mlpackage"]))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _described(recipe: Recipe, output: Path) -> str:
    """Return what was chosen: a line for each weight, sizes, and what the answers lose."""
    from mlopt.planning import decibels
    from mlopt.text.names import printable
    from mlopt.text.tables import Column, text_table
    from mlopt.text.words import counted, sizes_compared

    def lost(loss: float | None) -> str:
        if loss is None:
            return "not measured"
        return f"{decibels(loss):.1f} dB" if recipe.loss == "squared" else f"{loss:.4g} nats"

    chosen = [weight for weight in recipe.weights if weight.chosen.config is not None]
    columns = [
        Column("weight", [printable(weight.name) for weight in chosen]),
        Column("form", [weight.chosen.words for weight in chosen]),
        Column("bits", [f"{weight.bits:.2f}" for weight in chosen], is_number=True),
        Column("alone", [lost(weight.chosen.loss) for weight in chosen], is_number=True),
        Column("", ["" if w.chosen.known == "measured" else "predicted" for w in chosen]),
    ]
    left = {w.name: w.reason or "better so" for w in recipe.weights if w.chosen.config is None}
    where = counted(recipe.samples, "random input" if recipe.are_random else "sample")
    lines = [
        text_table(columns) if chosen else "Nothing is palettized.",
        "",
        *reasons(f"Left as they are: {counted(len(left), 'weight')}", left),
        f"Package: {sizes_compared(recipe.nbytes_before, recipe.nbytes)} "
        f"({recipe.nbytes} bytes), {recipe.bits:.2f} bits for each element, for {recipe.target}.",
        f"Answers on {where}: {lost(recipe.measured)}; by the sum of losses "
        f"{lost(recipe.expected)}.",
    ]
    if recipe.metric is not None:
        lines.append(f"Metric: {recipe.metric:.6g}.")
    for point in recipe.points:
        if point.measured is not None and point.label != "plan":
            size = f"{point.nbytes} bytes"
            size += "" if point.metric is None else f", metric {point.metric:.6g}"
            lines.append(f"In comparison, {point.label}: {lost(point.measured)}, {size}.")
    lines += [f"Note: {note}" for note in recipe.notes]
    return "\n".join([*lines, f"Recipe: {output}"])
