"""The app that the verbs are added to, and how it ends: 0, or one clear line and 2."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console

from ..documents import write_json
from ..errors import TiledSEError
from ..extras import missing
from ..names import harmless
from ..report.terminal import Shown, needed_width
from ..signals import raised, said
from .completion import join_words
from .verbs import Verbs

# click's, which newer typer carries inside itself: named through what both export.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class Interrupted(Exception):
    """Ctrl-C in a verb that has something to say about it: its text is printed, and the status is 130.

    No KeyboardInterrupt: newer typer ends that itself, and the text with it.
    """


app = typer.Typer(
    name="tiledse",
    cls=Verbs,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tiledse {version('tiledse')}")
        raise typer.Exit


# What ``tiledse`` alone prints: five lines to start with.
START = """\
tiledse demo                                      the main job on a real network, with nothing to fill in
tiledse find timm:regnety_008                     the SE blocks of a network, and what is none and why
tiledse report net.onnx -o report.html            one page: what they hold with SE and with tiles, who waits for whom
tiledse convert net.onnx --tile 7xW -o tse.onnx   the same weights with tiles, tried before it is written
tiledse --help                                    all verbs; `tiledse VERB --help` tells all about one
"""


@app.callback()
def _tiledse(
    context: typer.Context,
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Tiled squeeze-and-excite: turn trained SE networks into networks that stream."""
    if context.invoked_subcommand is None:
        with _output():
            print(START, end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 on wrong use, with one line on standard error; 130 when interrupted, 143 when terminated.
    """
    with _harmless_output(), raised() as signals:
        try:
            return _run(argv)
        except (KeyboardInterrupt, Interrupted) as error:
            number = signals[0] if signals else signal.SIGINT
            more = f"; {error}" if isinstance(error, Interrupted) else ""
            return _refuse(f"{said(number)}{more}", code=128 + number)


def _run(argv: Sequence[str] | None) -> int:
    if sys.stdout is None:
        return _refuse(
            "standard output is closed, so no result could be read; leave it open, or send it to a file"
        )
    if os.environ.get("_TILEDSE_COMPLETE") == "complete_bash":
        join_words(os.environ)
    command = typer.main.get_command(app)
    try:
        result = command.main(
            args=None if argv is None else list(argv), prog_name="tiledse", standalone_mode=False
        )
    except TiledSEError as error:
        return _refuse(str(error))
    except ClickException as error:
        text = error.format_message()  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "tiledse"
        return _refuse(f"{text.rstrip('.')}; see: {path} --help")
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        return 0  # the reader of our text went away (`tiledse find ... | head`): not an error of use
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", __package__.partition(".")[0]):
            raise  # a module of our own: no package would bring it
        return _refuse(str(missing("this verb needs", name.replace("_", "-"))))
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
    say(f"tiledse: {' '.join(line.split())}")
    return code


def print_json(value: Any) -> None:
    """One JSON object on standard output.

    Raises:
        TiledSEError: a figure is no number, or standard output was closed before the object was whole.
    """
    text = write_json(value, indent=1)
    try:
        with _output():
            print(text)
    except BrokenPipeError:
        raise TiledSEError(
            "standard output was closed before the JSON was whole; keep its reader running to the end"
        ) from None


def print_text(*renderables: Any) -> None:
    """Tables and lines on standard output: whole names in a file or pipe, and every column on a narrow terminal."""
    # No markup and no emoji: a name with [brackets] or :colons: in it is printed as it is.
    console = _Console(highlight=False, markup=False, emoji=False)
    terminal = console.is_terminal
    least = console.width if terminal else 160
    with _output():
        for renderable in renderables:
            shown = Shown(renderable)
            console.width = max(least, needed_width(console, shown.renderable, wrap=terminal))
            lines = isinstance(renderable, str) and not terminal
            console.print(shown.renderable if lines else shown, soft_wrap=lines)


def say(line: str) -> None:
    """One line about the run on standard error, where that is open."""
    if sys.stderr is not None:  # print would take standard output in its place
        print(harmless(line), file=sys.stderr)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process with 1; how we end is decided in one place."""
        raise BrokenPipeError


@contextmanager
def _output() -> Iterator[None]:
    """Print to standard output to the end: what cannot be written is told now, not when the process ends."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        with suppress(
            OSError, ValueError
        ):  # what is left in the buffer goes nowhere: Python flushes it again
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise
        raise TiledSEError(f"cannot write to standard output: {error.strerror or error}") from error
