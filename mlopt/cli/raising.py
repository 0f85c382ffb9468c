"""``mlopt raise``: raise a model to a newer deployment target."""

from __future__ import annotations

from typing import Annotated

import typer

from mlopt.cli.batch import Models, Output, OutputDir, Overwrite, destinations, run_each
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import TARGET_OPTIONS, Done, target_name, written


def raise_model(
    models: Models,
    target: Annotated[
        str,
        typer.Option(
            *TARGET_OPTIONS,
            metavar="TARGET",
            callback=target_name,
            help="The target to raise to, such as iOS18 or macOS15.",
        ),
    ],
    output: Output = None,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Raise a model's deployment target, as if it had been converted for the new one.

    Operations that the target redefines are rewritten with the same meaning, weights compressed in
    the iOS16 forms are repacked to the same numbers, and nothing else changes. Operations that
    cannot keep their meaning are refused, all at once. A model is never lowered.
    """
    with (
        errors_explained(),
        destinations(models, output, output_dir, overwrite=overwrite) as outputs,
    ):
        from mlopt.coreml.deployment import write_raised
        from mlopt.coreml.inspection import package_bytes

        def work(number: int) -> Done:
            model = models[number]
            before = package_bytes(model)  # OUT may be MODEL
            earlier, path = write_raised(model, outputs[number], target)
            change = f"raised from {earlier} to {target}"
            if str(earlier) == target:
                change = f"{target}, as it was"
            return written(f"Target: {change}.", before, path)

        code = run_each(models, work, quiet=quiet)
    raise typer.Exit(code)
