"""``mlopt decompress``: plain weights in the place of compressed ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlopt.cli.outcome import errors_explained
from mlopt.cli.terminal import checked_output, progress_bar, sizes_line

if TYPE_CHECKING:
    from mlopt.coreml.decompress import DecompressionResult


def decompress_model(
    model: Annotated[
        Path, typer.Argument(help="The .mlpackage with compressed weights.", metavar="MODEL")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The .mlpackage to write.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it exists.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Put plain weights in the place of compressed ones, whoever compressed them."""
    with errors_explained():
        from mlopt.coreml.decompress import decompress
        from mlopt.coreml.inspection import package_bytes

        destination = checked_output(output, overwrite=overwrite)
        before = package_bytes(model)  # OUT may be MODEL itself
        with progress_bar("Decompressing", quiet=quiet) as progress:
            result = decompress(model, destination, progress=progress)
        if not quiet:
            typer.echo(_summary(result))
            for note in result.notes:
                typer.echo(f"Note: {note}")
            typer.echo(sizes_line(before, result.path))


def _summary(result: DecompressionResult) -> str:
    """How many weights were decompressed, and of which form."""
    if not result.weights:
        return "No weight was compressed: the package was copied as it is."
    forms = Counter(weight.compression.form for weight in result.weights)
    listed = ", ".join(f"{count} {form}" for form, count in forms.most_common())
    count = len(result.weights)
    return f"{count} weight{'' if count == 1 else 's'} decompressed: {listed}."
