"""Terminal and file output that the commands share."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import typer

from mlopt.cli.compilation import compilation_told
from mlopt.cli.exit_codes import ExitCode
from mlopt.text.names import middle_elided, printable, printable_lines
from mlopt.text.words import sizes_compared
from mlopt.whole_files import write_whole_text

_WIDTH_WITHOUT_TERMINAL = 120
_SHOWN_REASONS = 5
STANDARD_OUTPUT = Path("-")
TARGET_OPTIONS = ("--target", "--minimum-deployment-target")
"""The option of a deployment target, in every command that has one."""


def output_width(narrowest: int) -> int:
    """Return the columns for a table on standard output, at least ``narrowest``."""
    if not sys.stdout.isatty():
        return _WIDTH_WITHOUT_TERMINAL
    from rich.console import Console

    return max(Console().width, narrowest)


def checked_file(path: Path | None) -> Path | None:
    """Check a file to write later: an hour of work should not end at a missing folder."""
    if path is None or path == STANDARD_OUTPUT:
        return path
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file, or - for standard output")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(
            f"the folder {path.absolute().parent} does not exist; create it first"
        )
    return path


def target_name(name: str | None) -> str | None:
    """Return the target of a name; an unknown one is refused as a wrong option."""
    if name is None:
        return None
    from mlopt.errors import TargetError
    from mlopt.mil.targets import Target

    try:
        return str(Target.parse(name))
    except TargetError as error:
        raise typer.BadParameter(str(error)) from None


def show(text: str, *, is_error: bool = False) -> None:
    """Print text for a reader, to standard output or error: all output of commands goes here.

    Names in it may come from a model: characters that would move the cursor or colour a terminal
    are escaped.
    """
    typer.echo(printable_lines(text), err=is_error)


def write_text(text: str, path: Path) -> None:
    """Write text and a line end to a file, or to standard output for ``-``."""
    if path == STANDARD_OUTPUT:
        typer.echo(text)
    else:
        write_whole_text(path, text + "\n")


@contextlib.contextmanager
def sample_bar(
    title: str, total: int | None, *, quiet: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar with the time left on standard error while the block runs samples.

    Yields the function to call with samples done, and how many there are, None if that is unknown.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with bar, compilation_told(bar.console.print):
        task = bar.add_task(title, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def stage_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar as :func:`sample_bar` does for each of several stages.

    Yields the function to call with the stage, what is done of it, and how much it has.
    """
    stage, bars = "", contextlib.ExitStack()
    update: Callable[[int, int | None], None] | None = None

    def progress(name: str, done: int, total: int) -> None:
        nonlocal stage, update
        if name != stage or update is None:
            bars.close()
            stage, update = name, bars.enter_context(sample_bar(name, total, quiet=quiet))
        update(done, total)

    with bars:
        yield progress


@contextlib.contextmanager
def progress_bar(
    title: str, *, quiet: bool = False, compiles: bool = True
) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar on standard error while the block works, if that is a terminal.

    Yields the function to call with elements done, elements in all, and the name of a weight.
    compiles: whether kernels are used, and a line says so if they have to be compiled first; numba
    is loaded for that.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, name: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[weight]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with bar, compilation_told(bar.console.print) if compiles else contextlib.nullcontext():
        task = bar.add_task(title, total=None, weight="")

        def show(done: int, total: int, name: str) -> None:
            # The package is finished after the last weight, which may also take a while.
            weight = escape(middle_elided(printable(name), 40)) if done < total else "finishing"
            bar.update(task, completed=done, total=total, weight=weight)

        yield show


def checked_output(output: Path, *, overwrite: bool, option: str = "'--output' / '-o'") -> Path:
    """Return the package to be written; refuse an existing one without ``overwrite``."""
    from mlopt.mil.writer import check_destination

    destination = check_destination(output)
    check_new(destination, overwrite=overwrite, option=option)
    return destination


def check_new(path: Path, *, overwrite: bool, option: str = "'--output' / '-o'") -> None:
    """Refuse a path where something exists, without ``overwrite``."""
    if path.exists() and not overwrite:
        raise typer.BadParameter(
            f"{path} exists already; choose another name, or give --overwrite to replace it",
            param_hint=option,
        )


@attrs.frozen(kw_only=True)
class Done:
    """The result of a command for one model.

    text: what is printed; values: the same for JSON; line: in the summary of several models;
    output: the package that was written; before, after: bytes of the packages, 0 without output.
    """

    text: str
    line: str
    values: dict[str, Any] = attrs.Factory(dict)
    code: ExitCode = ExitCode.DONE
    output: Path | None = None
    before: int = 0
    after: int = 0


def written(text: str, before: int, output: Path, **more: Any) -> Done:
    """Return ``text`` and the size of a package before and after it was written."""
    from mlopt.coreml.inspection import package_bytes

    after = package_bytes(output)
    line = f"{sizes_compared(before, after)}: {output}"
    text = f"{text}\nPackage: {line}"
    return Done(text=text, line=line, output=output, before=before, after=after, **more)


def checked_named_file(path: Path | None) -> Path | None:
    """Check a binary file to write later: it cannot go to standard output."""
    if path == STANDARD_OUTPUT:
        raise typer.BadParameter(
            "binary data cannot go to standard output; name a file instead of -"
        )
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file")
    return checked_file(path)


def command_line(context: typer.Context) -> str:
    """Return the command that is running, for a shell: its arguments, and options as given."""
    arguments: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        given = context.get_parameter_source(parameter.name or "")
        if given is None or given.name != "COMMANDLINE" or value is None:
            continue
        if parameter.param_type_name == "argument":
            arguments += map(str, value if isinstance(value, list | tuple) else [value])
        elif isinstance(value, bool):
            options.append(parameter.opts[0])
        else:
            for each in value if isinstance(value, list | tuple) else [value]:
                options += [parameter.opts[0], str(each)]
    return shlex.join(["mlopt", context.info_name or "", *arguments, *options])


def reasons(title: str, by_name: Mapping[str, str]) -> list[str]:
    """Return lines on what was left out, and why; only the first few of many, none of none."""
    if not by_name:
        return []
    shown = list(by_name.items())[:_SHOWN_REASONS]
    more = len(by_name) - len(shown)
    lines = [f"{title}.", *(f"  {name}: {reason}" for name, reason in shown)]
    return [*lines, f"  and {more} more"] if more else lines


def checked_page(path: Path | None) -> Path | None:
    """Check a page of HTML to write later, as far as this can be done without the library."""
    if path == STANDARD_OUTPUT:
        raise typer.BadParameter("a page does not go to standard output; name an .html file")
    return checked_named_file(path)
