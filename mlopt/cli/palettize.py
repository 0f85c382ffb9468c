"""``mlopt palettize``: palettize models, and account for every weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlopt.choices import (
    DEFAULT_GROUP_SIZE,
    DEFAULT_WEIGHT_THRESHOLD,
    NBITS,
    GranularityName,
    LutDtype,
    Method,
    OnIndivisible,
    TableMode,
)
from mlopt.cli.batch import (
    Models,
    Output,
    OutputDir,
    Overwrite,
    destinations,
    one_for_each,
    run_each,
)
from mlopt.cli.exit_codes import ExitCode, errors_explained
from mlopt.cli.settings import Settings
from mlopt.cli.terminal import (
    TARGET_OPTIONS,
    Done,
    checked_file,
    output_width,
    progress_bar,
    show,
    target_name,
    written,
)
from mlopt.cli.wanted import Wanted
from mlopt.text.words import sizes_compared

if TYPE_CHECKING:
    from mlopt.requests.report import Report

# In narrower tables, reasons break after every word; a terminal's own wrapping reads better.
_NARROWEST = 100


def palettize_model(
    models: Models,
    output: Output = None,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    nbits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Bits of an index: {', '.join(map(str, NBITS[:-1]))} or {NBITS[-1]}. "
            "Needed by kmeans and uniform.",
        ),
    ] = None,
    mode: Annotated[
        TableMode | None,
        typer.Option(
            case_sensitive=False,
            help="How tables are made: the clusters of least squared error (kmeans, the default), "
            "equal steps (uniform), or the distinct values, lossless (unique).",
        ),
    ] = None,
    granularity: Annotated[
        GranularityName | None,
        typer.Option(
            case_sensitive=False,
            help="One table per weight (per_tensor, the default), or one per group of channels.",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Channels per group. Default: {DEFAULT_GROUP_SIZE}."),
    ] = None,
    channel_axis: Annotated[
        int | None,
        typer.Option(
            metavar="AXIS",
            help="The axis of groups and vectors. Default: chosen by the operation that reads "
            "the weight.",
        ),
    ] = None,
    cluster_dim: Annotated[
        int | None,
        typer.Option(metavar="N", help="Weights that one table entry stands for. Default: 1."),
    ] = None,
    per_channel_scale: Annotated[
        bool,
        typer.Option(
            "--per-channel-scale", help="Scale each output channel to 1 before clustering."
        ),
    ] = False,
    weight_threshold: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Palettize weights of more than N elements. Default: {DEFAULT_WEIGHT_THRESHOLD}.",
        ),
    ] = None,
    on_indivisible: Annotated[
        OnIndivisible | None,
        typer.Option(
            case_sensitive=False,
            help="If the group size does not divide the channels: keep the weight (skip, the "
            "default), take the largest divisor, or one table.",
        ),
    ] = None,
    lut_dtype: Annotated[
        LutDtype | None,
        typer.Option(
            case_sensitive=False,
            help="Tables in 8 bits with a scale; needs iOS18, not for unique. Default: in the "
            "weight's own dtype.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Leave weights and operations of this name alone. Repeatable."
        ),
    ] = None,
    skip_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Leave the weights of operations of this type alone. Repeatable."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Take all of the above (from --nbits on) from a YAML file, with rules by name and "
            "type.",
        ),
    ] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Give each weight the form that `mlopt plan` chose, in place of all of the above. "
            "Also for a fine-tuned copy of the model, or with another --target; what is "
            "different is listed. Of several models, one for all, or repeated: one for each.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="With --recipe: the folder that `mlopt plan` kept tables in; they are taken from "
            "there.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Fit tables to the answers of the model, with the statistics that "
            "`mlopt calibrate` made of it. Of several models, one for all, or repeated: one for "
            "each.",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            case_sensitive=False,
            help="What tables are fitted to with a calibration: the best that it has (auto), all "
            "second moments of the inputs (hessian), the same of a calibration with guided "
            "statistics only (guided), their mean squares (diagonal), or nothing but the weights "
            "(plain).",
        ),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="With --calibration: run the model on these samples (as for `mlopt calibrate`) "
            "while it is palettized, so that each weight makes up for errors of those before it.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Take the first N samples of --data only."),
    ] = None,
    keep_biases: Annotated[
        bool,
        typer.Option(
            "--keep-biases", help="Leave biases as they are; do not fold mean errors into them."
        ),
    ] = False,
    minimum_deployment_target: Annotated[
        str | None,
        typer.Option(
            *TARGET_OPTIONS,
            metavar="TARGET",
            callback=target_name,
            help="The newest target that the result may require, such as iOS18 or macOS15. "
            "Default: the model's own, or iOS16 if that is older; with --recipe, the one in it.",
        ),
    ] = None,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint",
            help="Also palettize the nonzero values of sparse weights and the integers of "
            "quantized ones; needs iOS18.",
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="A rule that matches no weight is an error; with --recipe, any difference from "
            "the model that was planned.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show decisions and exact sizes; cluster nothing, write nothing."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Threads. Default: one per processor. The result does not depend on it.",
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            callback=checked_file,
            help="Also write the report as JSON; - prints it instead of the table.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table and no progress.")] = False,
) -> None:
    """Palettize a model, or each of several, and account for every weight."""
    with errors_explained():
        settings = Settings(
            nbits=nbits,
            mode=mode,
            granularity=granularity,
            group_size=group_size,
            channel_axis=channel_axis,
            cluster_dim=cluster_dim,
            enable_per_channel_scale=per_channel_scale or None,
            weight_threshold=weight_threshold,
            on_indivisible=on_indivisible,
            lut_dtype=lut_dtype,
            skip=tuple(skip or ()),
            skip_type=tuple(skip_type or ()),
        )
        recipes = one_for_each(recipe, models, "--recipe")
        by_recipe = {
            each: Wanted.of(settings, config, each, cache) for each in dict.fromkeys(recipes)
        }
        wanted = [by_recipe[each] for each in recipes]
        calibrations = one_for_each(calibration, models, "--calibration")
        _check_data(data, calibration, samples)
        options = {
            "minimum_deployment_target": minimum_deployment_target,
            "strict": strict,
            "joint_compression": joint,
        }
        calibrated = {
            "workers": workers,
            "method": method,
            "correct_biases": not keep_biases,
        }
        if dry_run:
            code = run_each(
                models,
                lambda number: _previewed(
                    models[number],
                    wanted[number],
                    options,
                    {**calibrated, "calibration": calibrations[number]},
                ),
                quiet=quiet,
                json_file=report_file,
            )
        else:
            with destinations(models, output, output_dir, overwrite=overwrite) as outputs:
                code = run_each(
                    models,
                    lambda number: _palettized(
                        models[number],
                        wanted[number],
                        outputs[number],
                        {**options, **calibrated, "calibration": calibrations[number]},
                        data=data,
                        samples=samples,
                        quiet=quiet,
                    ),
                    quiet=quiet,
                    json_file=report_file,
                )
        if code == ExitCode.NOTHING_PALETTIZED:
            show("Nothing was palettized: every weight was kept as it is.", is_error=True)
    raise typer.Exit(code)


def _previewed(
    model: Path, wanted: Wanted, options: dict[str, Any], calibrated: dict[str, Any]
) -> Done:
    from mlopt.coreml.inspection import package_bytes

    before = package_bytes(model)
    report, after = wanted.foreseen(model, wanted.completed(options), calibrated)
    line = sizes_compared(before, after)
    return Done(
        text=f"{_text(report)}\nPackage: {line} ({after} bytes).\n"
        "Dry run: nothing was clustered, and nothing was written.",
        line=line,
        values=report.as_dict(),
        code=_code(report),
        before=before,
        after=after,
    )


def _palettized(
    model: Path,
    wanted: Wanted,
    output: Path,
    options: dict[str, Any],
    *,
    data: str | None,
    samples: int | None,
    quiet: bool,
) -> Done:
    from mlopt.coreml.inspection import package_bytes

    before = package_bytes(model)  # OUT may be MODEL itself
    palettize = wanted.way(model, data, samples, quiet=quiet)
    with progress_bar("Palettizing", quiet=quiet) as progress:
        result = palettize(output=output, progress=progress, **wanted.completed(options))
    report = result.report
    return written(_text(report), before, result.path, values=report.as_dict(), code=_code(report))


def _check_data(data: str | None, calibration: list[Path] | None, samples: int | None) -> None:
    if data is not None and not calibration:
        raise typer.BadParameter(
            "samples alone are not enough; also give the --calibration that `mlopt calibrate` "
            "made with them",
            param_hint="'--data'",
        )
    if samples is not None and data is None:
        raise typer.BadParameter(
            "it counts samples of --data; give that, or leave it out", param_hint="'--samples'"
        )


def _code(report: Report) -> ExitCode:
    return ExitCode.DONE if report.palettized else ExitCode.NOTHING_PALETTIZED


def _text(report: Report) -> str:
    table = f"{report.to_table(output_width(_NARROWEST))}\n\n" if report.rows else ""
    return table + report.summary()
