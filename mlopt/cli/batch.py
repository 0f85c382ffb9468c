"""Batches: several packages in one call, their destinations, and one account of all.

Language models come in chunks that are all processed in the same way. A name that cannot work is
refused before work begins; a later failure of one model is reported, and the others are still done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from mlopt.cli.exit_codes import ExitCode, explained
from mlopt.cli.terminal import (
    STANDARD_OUTPUT,
    check_new,
    checked_named_file,
    checked_output,
    show,
    write_text,
)
from mlopt.text.json_text import json_text
from mlopt.text.names import printable
from mlopt.text.words import sizes_compared

if TYPE_CHECKING:
    from mlopt.cli.terminal import Done

_SUFFIX = ".mlpackage"
_OPTION = "'--output' / '-o'"

Models: TypeAlias = Annotated[
    list[Path], typer.Argument(help="The .mlpackage, or several.", metavar="MODEL...")
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="OUT", help="The .mlpackage to write, of one MODEL."),
]
OutputDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The folder to write to instead of --output, under the names of the models; "
        "it is created if needed.",
    ),
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace what exists, MODEL included.")
]


@contextlib.contextmanager
def destinations(
    models: Sequence[Path],
    output: Path | None,
    output_dir: Path | None,
    *,
    overwrite: bool,
    suffix: str = _SUFFIX,
) -> Iterator[list[Path]]:
    """Yield the checked destination of each model; a new folder stays only if it is used.

    suffix: of what is written; if not that of packages, ``output`` may have another one.

    Raises
    ------
    typer.BadParameter
        There is no destination, or one for several models; or one exists without ``overwrite``.
    """
    what = "package" if suffix == _SUFFIX else "file"
    if (output is None) == (output_dir is None):
        raise typer.BadParameter(
            f"name the {what} to write, or the folder for several with --output-dir"
            if output is None
            else "give either --output or --output-dir",
            param_hint=_OPTION,
        )
    if output is not None:
        if len(models) > 1:
            raise typer.BadParameter(
                f"it names one {what}, got {len(models)} models; give a folder for "
                "them with --output-dir",
                param_hint=_OPTION,
            )
        yield [_checked(output, overwrite=overwrite, option=_OPTION, suffix=suffix)]
        return
    assert output_dir is not None
    names = _names(models, suffix)
    with _folder(output_dir):
        yield [
            _checked(output_dir / name, overwrite=overwrite, option="'--output-dir'", suffix=suffix)
            for name in names
        ]


def _checked(path: Path, *, overwrite: bool, option: str, suffix: str) -> Path:
    if suffix == _SUFFIX:
        return checked_output(path, overwrite=overwrite, option=option)
    checked_named_file(path)
    check_new(path, overwrite=overwrite, option=option)
    return path


def _names(models: Sequence[Path], suffix: str = _SUFFIX) -> list[str]:
    """Return the name of what is written for each model to a folder; refuse equal names."""
    seen: dict[str, Path] = {}
    names = []
    for model in models:
        # "." and a path that ends in ".." have a name too
        name = model.name if model.name not in ("", "..") else model.resolve().name
        name = name.removesuffix(_SUFFIX) + suffix
        # many file systems treat names that differ only in case as the same
        other = seen.setdefault(name.casefold(), model)
        if other is not model:
            raise typer.BadParameter(
                f"{other} and {model} would both be written to {name} there; rename one, or call "
                "mlopt for each",
                param_hint="'--output-dir'",
            )
        names.append(name)
    return names


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Create a folder if there is none; remove it afterwards if it is still empty."""
    path = path.expanduser()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise typer.BadParameter(
            f"{path} cannot be created: {reason}; choose another folder",
            param_hint="'--output-dir'",
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()


def one_for_each(
    files: Sequence[Path] | None, models: Sequence[Path], option: str
) -> list[Path | None]:
    """Return the file for each model: its own, in order, or the same one for all; None for none.

    Raises
    ------
    typer.BadParameter
        There are several files, and not as many as models.
    """
    if not files:
        return [None] * len(models)
    if len(files) == 1:
        return [files[0]] * len(models)
    if len(files) != len(models):
        raise typer.BadParameter(
            f"give one for all models, or one for each in their order; got {len(files)} for "
            f"{len(models)} models",
            param_hint=f"'{option}'",
        )
    return [*files]


def run_each(
    models: Sequence[Path],
    work: Callable[[int], Done],
    *,
    quiet: bool = False,
    json_file: Path | None = None,
) -> ExitCode:
    """Process each model, print the results, and return one exit code.

    For one model, an error passes through, and the text and the JSON are its own. For several, each
    has a heading, an error is printed and the next model follows; then comes a summary, and the
    JSON is ``{"models": [...], "exit_code": ...}``. The exit code is that of the first failure;
    without one, it says that models were not clean, or that nothing was to be done for any.

    Parameters
    ----------
    work
        Called with the number of the model among ``models``.
    quiet
        Print errors only.
    json_file
        Where to write the values as JSON; if standard output, nothing else is printed there.
    """
    shows = not quiet and json_file != STANDARD_OUTPUT
    if len(models) == 1:
        done = work(0)
        if json_file is not None:
            write_text(json_text(done.values), json_file)
        if shows:
            show(done.text)
        return done.code
    results: list[Done | tuple[str, ExitCode]] = []
    for number, model in enumerate(models):
        if shows:
            show(f"{'' if number == 0 else chr(10)}== {_shown(model)}")
        try:
            done = work(number)
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            show(f"{len(results)} of {len(models)} were finished before.", is_error=True)
            raise
        except Exception as error:
            message, code = explained(error)
            show(f"{_shown(model)}: {message}", is_error=True)
            results.append((message, code))
            continue
        if shows:
            show(done.text)
        results.append(done)
    code = _common(results)
    if json_file is not None:
        rows = [_row(model, result) for model, result in zip(models, results, strict=True)]
        write_text(json_text({"models": rows, "exit_code": int(code)}), json_file)
    if shows:
        show("\n" + _summary(models, results))
    return code


def _common(results: Sequence[Done | tuple[str, ExitCode]]) -> ExitCode:
    failures = [result[1] for result in results if isinstance(result, tuple)]
    if failures:
        return failures[0]
    codes = [result.code for result in results if not isinstance(result, tuple)]
    if ExitCode.FINDINGS in codes:
        return ExitCode.FINDINGS
    return codes[0] if len(set(codes)) == 1 else ExitCode.DONE


def _row(model: Path, result: Done | tuple[str, ExitCode]) -> dict[str, Any]:
    if isinstance(result, tuple):
        return {"model": str(model), "error": result[0], "exit_code": int(result[1])}
    output = {} if result.output is None else {"output": str(result.output)}
    return {"model": str(model), **output, "exit_code": int(result.code), **result.values}


def _summary(models: Sequence[Path], results: Sequence[Done | tuple[str, ExitCode]]) -> str:
    """Return a line for each model, and one for all."""
    width = max(len(_shown(model)) for model in models)
    lines, before, after, failed = [], 0, 0, 0
    for model, result in zip(models, results, strict=True):
        if isinstance(result, tuple):
            failed += 1
            line = "failed: " + printable(result[0].removeprefix("Error: ").split("\n")[0])
        else:
            line = result.line
            before, after = before + result.before, after + result.after
        lines.append(f"{_shown(model):{width}}  {line}")
    counts = f"{len(models) - failed} of {len(models)} done"
    if failed:
        counts += f", {failed} failed"
    if after:
        counts += f": {sizes_compared(before, after)}"
    return "\n".join([*lines, f"{counts}."])


def _shown(model: Path) -> str:
    return printable(str(model))
