"""``mlopt palettize``: a model in, a palettized one and the account of every weight out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlopt.cli.outcome import ExitCode, errors_explained
from mlopt.cli.settings import Settings
from mlopt.cli.terminal import (
    STANDARD_OUTPUT,
    checked_file,
    checked_output,
    output_width,
    progress_bar,
    sizes_line,
    target_name,
    write_text,
)

if TYPE_CHECKING:
    from mlopt.coreml.report import Report

# Narrower, reasons break after every word; a terminal's own wrapping reads better then.
_NARROWEST = 100


class Mode(str, Enum):
    """The ways to make a table; a function of one's own ("custom") needs Python."""

    KMEANS = "kmeans"
    UNIFORM = "uniform"
    UNIQUE = "unique"


class Granularity(str, Enum):
    """How much of a weight shares a table."""

    PER_TENSOR = "per_tensor"
    PER_GROUPED_CHANNEL = "per_grouped_channel"


class OnIndivisible(str, Enum):
    """What to do where the group size does not divide the channels."""

    SKIP = "skip"
    DIVISOR = "divisor"
    PER_TENSOR = "per_tensor"


class LutDtype(str, Enum):
    """Dtypes of a table that is stored in 8 bits."""

    INT8 = "int8"
    UINT8 = "uint8"


def palettize_model(
    model: Annotated[Path, typer.Argument(help="The .mlpackage to palettize.", metavar="MODEL")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="The .mlpackage to write; needless for --dry-run."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it exists, MODEL included.")
    ] = False,
    nbits: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Bits of an index: 1, 2, 3, 4, 6 or 8. Needed by kmeans and uniform."
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            case_sensitive=False,
            help="How tables are made: the clusters of least squared error (kmeans, the default), "
            "equal steps (uniform), or the distinct values, lossless (unique).",
        ),
    ] = None,
    granularity: Annotated[
        Granularity | None,
        typer.Option(
            case_sensitive=False,
            help="One table for a weight (per_tensor, the default), or one for each group of "
            "channels.",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Channels of a group. Default: 32."),
    ] = None,
    channel_axis: Annotated[
        int | None,
        typer.Option(
            metavar="AXIS",
            help="The axis of groups and vectors. Default: by the operation that reads the weight.",
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
        typer.Option(metavar="N", help="Palettize weights of more than N elements. Default: 2048."),
    ] = None,
    on_indivisible: Annotated[
        OnIndivisible | None,
        typer.Option(
            case_sensitive=False,
            help="Where the group size does not divide the channels: keep the weight (skip, the "
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
    minimum_deployment_target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            callback=target_name,
            help="The newest target that the result may need, such as iOS18 or macOS15. Default: "
            "the model's own, or iOS16 if that is older.",
        ),
    ] = None,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint",
            help="Palettize the nonzero values of sparse weights and the integers of quantized "
            "ones too; needs iOS18.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A rule that matches no weight is an error.")
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
            help="Threads. Default: one a processor. The result does not depend on it.",
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            callback=checked_file,
            help="Write the report as JSON too; - prints it in place of the table.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table and no progress.")] = False,
) -> None:
    """Palettize a model, and account for every weight."""
    with errors_explained():
        settings = Settings(
            nbits=nbits,
            mode=mode and mode.value,
            granularity=granularity and granularity.value,
            group_size=group_size,
            channel_axis=channel_axis,
            cluster_dim=cluster_dim,
            enable_per_channel_scale=per_channel_scale or None,
            weight_threshold=weight_threshold,
            on_indivisible=on_indivisible and on_indivisible.value,
            lut_dtype=lut_dtype and lut_dtype.value,
            skip=tuple(skip or ()),
            skip_type=tuple(skip_type or ()),
        )
        optimization = settings.configuration(config)
        if output is None and not dry_run:
            raise typer.BadParameter(
                "name the package to write, or try --dry-run", param_hint="'--output' / '-o'"
            )
        destination = output and checked_output(output, overwrite=overwrite)

        from mlopt.coreml.inspection import package_bytes
        from mlopt.coreml.palettize import palettize, preview

        if dry_run or destination is None:
            report = preview(
                model,
                optimization,
                minimum_deployment_target=minimum_deployment_target,
                strict=strict,
                joint_compression=joint,
            )
            closing = "Dry run: nothing was clustered, and nothing was written."
        else:
            before = package_bytes(model)  # OUT may be MODEL itself
            with progress_bar("Palettizing", quiet=quiet) as progress:
                result = palettize(
                    model,
                    optimization,
                    output=destination,
                    minimum_deployment_target=minimum_deployment_target,
                    strict=strict,
                    joint_compression=joint,
                    workers=workers,
                    progress=progress,
                )
            report = result.report
            closing = sizes_line(before, result.path)
        if report_file is not None:
            write_text(report.to_json(), report_file)
        if not quiet and report_file != STANDARD_OUTPUT:
            _print(report, closing)
        if not report.palettized:
            typer.echo("Nothing was palettized: every weight was kept as it is.", err=True)
            raise typer.Exit(ExitCode.NOTHING_PALETTIZED)


def _print(report: Report, closing: str) -> None:
    if report.rows:
        typer.echo(report.to_table(output_width(_NARROWEST)) + "\n")
    typer.echo(f"{report.summary()}\n{closing}")
