"""``mlopt decompress``: plain weights in the place of palettes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlopt.cli.outcome import errors_explained
from mlopt.cli.terminal import checked_output, sizes_line


def decompress_model(
    model: Annotated[
        Path, typer.Argument(help="The .mlpackage with palettized weights.", metavar="MODEL")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The .mlpackage to write.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it exists.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Put plain weights in the place of palettized ones."""
    with errors_explained():
        from mlopt.coreml.decompress import decompress
        from mlopt.coreml.inspection import package_bytes

        destination = checked_output(output, overwrite=overwrite)
        before = package_bytes(model)  # OUT may be MODEL itself
        decompress(model, destination)
        if not quiet:
            typer.echo(sizes_line(before, destination))
