"""How a verb hands out its result: --json, --plot, and files that may be replaced with --force."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ..extras import check_installed
from .app import print_json, print_text, say
from .outputs import Output, check_outputs, drawing


@dataclass(frozen=True)
class Result:
    """Text for people, or JSON for programs."""

    panel: ClassVar[str] = "Result"

    json: Annotated[bool, typer.Option("--json", help="One JSON object for programs.")] = False

    def show(self, record: Callable[[], Any], text: Callable[[], Iterable[Any]]) -> None:
        """Print what was asked for.

        Args:
            record: Gives the object of --json.
            text: Gives tables and lines.
        """
        if self.json:
            print_json(record())
        else:
            print_text(*text())


@dataclass(frozen=True)
class Files(Result):
    """A result that is written to files as well."""

    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False

    def check(self, outputs: Iterable[Output], inputs: Iterable[str | Path | None] = ()) -> None:
        """Check that all outputs may be written; see ``outputs.check_outputs``."""
        check_outputs(self.force, [*outputs], inputs)


@dataclass(frozen=True)
class Figure(Files):
    """A result that can be drawn."""

    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .pdf or .svg.")
    ] = None

    def check(self, outputs: Iterable[Output], inputs: Iterable[str | Path | None] = ()) -> None:
        """Check the figure as well, which is the last of the outputs."""
        super().check([*outputs, drawing(self.plot)], inputs)
        if self.plot is not None:
            check_installed("figures need", "matplotlib")

    def draw(self, figure: Callable[[Path], None]) -> None:
        """Draw it where that was asked for, and say so."""
        if self.plot is not None:
            figure(self.plot)
            say(f"wrote {self.plot}")
