"""``mlopt inspect``: list the weights that a model stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlopt.choices import SortKey
from mlopt.cli.batch import Models, run_each
from mlopt.cli.exit_codes import errors_explained
from mlopt.cli.terminal import Done, checked_file, checked_page, output_width, progress_bar

if TYPE_CHECKING:
    from mlopt.coreml.inspection import Inventory


def inspect_model(
    models: Models,
    sort: Annotated[
        SortKey,
        typer.Option(help="Sort by a column: names ascending, numbers from the largest down."),
    ] = "order",
    patterns: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="GLOB",
            help="Only weights whose name, or the name or type of an operation that reads them, "
            "matches. Repeatable: at least one must match.",
        ),
    ] = None,
    min_size: Annotated[
        int, typer.Option(min=0, metavar="N", help="Only weights of at least N elements.")
    ] = 0,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats/--no-stats",
            help="Count distinct values and zeros, which reads every weight once.",
        ),
    ] = True,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            callback=checked_file,
            help="Also write the rows as JSON; - prints it instead of the table.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            callback=checked_page,
            help="Also write a page with a chart and a table, of one MODEL; needs matplotlib.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table and no progress.")] = False,
) -> None:
    """List the weights of a model, or of several.

    Name, operations that read it, shape, dtype, bytes, distinct values, share of zeros. For a
    compressed weight also its form, bits, and how many elements share a table or a scale; its bytes
    are those of all its stored parts. Constants of fewer than 10 elements are left out.
    """
    with errors_explained():
        if sort in ("distinct", "sparsity") and not stats:
            raise typer.BadParameter(
                f"{sort} is not computed with --no-stats; leave one of the two out",
                param_hint="'--sort'",
            )
        if report is not None:
            _check_report(models, report)
        from mlopt.coreml.inspection import inspect_weights

        def work(number: int) -> Done:
            from mlopt.cli.tables import inventory_table

            with progress_bar("Reading", quiet=quiet, compiles=False) as progress:
                inventory = inspect_weights(
                    models[number],
                    patterns=patterns or (),
                    min_size=min_size,
                    statistics=stats,
                    progress=progress,
                ).sorted_by(sort)
            if report is not None:
                from mlopt.pages import inventory_page, write_page

                write_page(
                    report,
                    inventory_page(inventory, title=models[number].name or str(models[number])),
                )
            summary = _summary(inventory)
            text = f"{inventory_table(inventory, output_width(80))}\n\n{summary}"
            return Done(text=text, line=summary, values=inventory.as_dict())

        code = run_each(models, work, quiet=quiet, json_file=json_file)
    raise typer.Exit(code)


def _check_report(models: Sequence[Path], report: Path) -> None:
    if len(models) > 1:
        raise typer.BadParameter(
            f"a page is about one model, got {len(models)}; call mlopt for each",
            param_hint="'--report'",
        )
    from mlopt.pages import check_page

    check_page(report)


def _summary(inventory: Inventory) -> str:
    from mlopt.text.words import human_bytes

    count, size = str(inventory.weights_in_all), human_bytes(inventory.bytes_in_all)
    if len(inventory.rows) != inventory.weights_in_all:
        count = f"{len(inventory.rows)} of {count}"
        size = f"{human_bytes(inventory.nbytes)} of {size}"
    return f"{count} weights, {size}. Target: {inventory.target}."
