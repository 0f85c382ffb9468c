"""``mlopt decompress``: replace compressed weights with plain ones."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from mlopt.cli.batch import Models, Output, OutputDir, Overwrite, destinations, run_each
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import Done, progress_bar, written
from mlopt.text.words import counted

if TYPE_CHECKING:
    from mlopt.coreml.decompress import DecompressionResult


def decompress_model(
    models: Models,
    output: Output = None,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Replace compressed weights with plain ones, whichever tool compressed them."""
    with (
        errors_explained(),
        destinations(models, output, output_dir, overwrite=overwrite) as outputs,
    ):
        from mlopt.coreml.decompress import decompress
        from mlopt.coreml.inspection import package_bytes

        def work(number: int) -> Done:
            model = models[number]
            before = package_bytes(model)  # OUT may be MODEL itself
            with progress_bar("Decompressing", quiet=quiet) as progress:
                result = decompress(model, outputs[number], progress=progress)
            return written(_summary(result), before, result.path)

        code = run_each(models, work, quiet=quiet)
    raise typer.Exit(code)


def _summary(result: DecompressionResult) -> str:
    """Return how many weights of each form were decompressed, and the notes."""
    return "\n".join([_counted(result), *(f"Note: {note}" for note in result.notes)])


def _counted(result: DecompressionResult) -> str:
    if not result.weights:
        return "No weight was compressed: the package was copied as it was."
    forms = Counter(weight.compression.form for weight in result.weights)
    listed = ", ".join(f"{count} {form}" for form, count in forms.most_common())
    return f"{counted(len(result.weights), 'weight')} decompressed: {listed}."
