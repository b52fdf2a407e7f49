"""The app that the verbs are added to, and how it ends: 0, or one clear line and 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console

from ..documents import write_json
from ..errors import TiledSEError

# click's, which newer typer carries inside itself: named through what both export.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class Interrupted(Exception):
    """Ctrl-C in a verb that has something to say about it: its text is printed, and the status is 130."""


app = typer.Typer(
    name="tiledse",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Tiled squeeze-and-excite: turn trained SE networks into networks that stream.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 on wrong use, with one line on standard error; 130 when interrupted.
    """
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
    except Interrupted as error:
        return _refuse(f"interrupted; {error}", code=130)
    except (typer.Abort, KeyboardInterrupt):
        return _refuse("interrupted", code=130)
    except BrokenPipeError:
        # The reader of our output went away (`tiledse find ... | head`): not an error of use.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    if result == 130:  # newer typer ends a KeyboardInterrupt itself, without a word
        return _refuse("interrupted", code=130)
    return result if isinstance(result, int) else 0


def _refuse(line: str, code: int = 2) -> int:
    print(f"tiledse: {' '.join(line.split())}", file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(write_json(value, indent=1))


def print_text(*renderables: Any) -> None:
    """Tables and lines on standard output; never cut to the width of a file or pipe."""
    # No markup: a name with [brackets] in it is printed as it is.
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=160)
    for renderable in renderables:
        console.print(renderable)


def say(line: str) -> None:
    """One line about the run on standard error."""
    print(line, file=sys.stderr)
