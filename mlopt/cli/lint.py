"""``mlopt lint``: find what a target cannot express, devices run badly, or wastes space."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mlopt.cli.batch import Models, run_each
from mlopt.cli.exit_codes import ExitCode, errors_explained
from mlopt.cli.terminal import STANDARD_OUTPUT, TARGET_OPTIONS, Done, output_width, target_name

# Narrower, what was found breaks after every word.
_NARROWEST = 100


def _show_rules(wanted: bool) -> None:
    if not wanted:
        return
    from mlopt.coreml.lint import RULES

    width = max(map(len, RULES))
    for rule in RULES.values():
        typer.echo(f"{rule.name:{width}}  {rule.severity:7}  {rule.title}")
    raise typer.Exit


def _explain_rule(pattern: str | None) -> None:
    if pattern is None:
        return
    with errors_explained():
        from mlopt.coreml.lint import RULES
        from mlopt.coreml.lint.registry import rules_matching

        names = rules_matching([pattern], "--explain")
        typer.echo("\n\n".join(RULES[name].explanation() for name in names))
    raise typer.Exit


def lint_model(
    models: Models,
    target: Annotated[
        str | None,
        typer.Option(
            *TARGET_OPTIONS,
            metavar="TARGET",
            callback=target_name,
            help="The oldest system that must run it, such as iOS16 or macOS15. "
            "Default: the model's own target.",
        ),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="Apply only the rules that this glob matches. Repeatable."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE[:NAME]",
            help="Leave out the rules that this glob matches; with a name (also a glob), only "
            "for weights and operations of that name. Repeatable.",
        ),
    ] = None,
    output_format: Annotated[
        Literal["table", "json"],
        typer.Option("--format", case_sensitive=False, help="A table with explanations, or JSON."),
    ] = "table",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail for warnings as well as for errors.")
    ] = False,
    list_rules: Annotated[
        bool,
        typer.Option(
            "--list", callback=_show_rules, is_eager=True, help="List the rules and exit."
        ),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            callback=_explain_rule,
            is_eager=True,
            help="Say what a rule looks for, why it matters, what to do, and exit.",
        ),
    ] = None,
) -> None:
    """Find what targets cannot express, devices run badly, or is larger than needed.

    Nothing is changed. Each finding says what was found, where, why it matters, how sure that is,
    and what to do.
    """
    with errors_explained():
        from mlopt.coreml.lint import lint

        def work(number: int) -> Done:
            report = lint(models[number], target, select=select or None, ignore=ignore or None)
            is_clean = not report.has("warning" if strict else "error")
            return Done(
                text=report.to_text(output_width(_NARROWEST)),
                line=report.summary().splitlines()[0],
                values=report.as_dict(),
                code=ExitCode.DONE if is_clean else ExitCode.FINDINGS,
            )

        json_file = STANDARD_OUTPUT if output_format == "json" else None
        code = run_each(models, work, json_file=json_file)
    raise typer.Exit(code)
