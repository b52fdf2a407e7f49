"""The app that the verbs are added to, and how it ends: 0, or one clear line and 2."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from ..documents import write_json
from ..errors import TiledSEError
from ..names import harmless
from ..report.terminal import Shown
from ..signals import raised, said
from .verbs import Verbs

# click's, which newer typer carries inside itself: named through what both export.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a verb that has something to say about it: its text is printed, and the status is 130."""


app = typer.Typer(
    name="tiledse",
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _tiledse() -> None:
    """Tiled squeeze-and-excite: turn trained SE networks into networks that stream."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 on wrong use, with one line on standard error; 130 when interrupted, 143 when terminated.
    """
    with _harmless_output(), raised() as signals:
        try:
            return _run(argv)
        except KeyboardInterrupt as error:
            number = signals[0] if signals else signal.SIGINT
            more = f"; {error}" if isinstance(error, Interrupted) else ""
            return _refuse(f"{said(number)}{more}", code=128 + number)


def _run(argv: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(
            args=None if argv is None else list(argv), prog_name="tiledse", standalone_mode=False
        )
    except TiledSEError as error:
        return _refuse(str(error))
    except ClickException as error:
        text = error.format_message()  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":
            print(text, file=sys.stderr)
            return 2
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "tiledse"
        return _refuse(f"{text.rstrip('.')}; see: {path} --help")
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # The reader of our output went away (`tiledse find ... | head`): not an error of use.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    if result == 130:  # newer typer ends a KeyboardInterrupt itself, without a word
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


@contextmanager
def _harmless_output() -> Iterator[None]:
    """Warnings, which quote names, are one harmless line; what an encoding has no letter for is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        before = warnings.formatwarning
        warnings.formatwarning = lambda *about, **more: harmless(before(*about, **more), keep="\n\t")
        try:
            yield
        finally:
            warnings.formatwarning = before


def _refuse(line: str, code: int = 2) -> int:
    print(f"tiledse: {harmless(' '.join(line.split()))}", file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(write_json(value, indent=1))


def print_text(*renderables: Any) -> None:
    """Tables and lines on standard output; never cut to the width of a file or pipe."""
    # No markup and no emoji: a name with [brackets] or :colons: in it is printed as it is.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=160)
    for renderable in renderables:
        console.print(Shown(renderable))


def say(line: str) -> None:
    """One line about the run on standard error."""
    print(harmless(line), file=sys.stderr)
