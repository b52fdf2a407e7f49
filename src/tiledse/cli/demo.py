"""The verb that shows the main job on a real network: demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import say
from .groups import verb
from .results import Result

Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where the files go.")]
Tile = Annotated[str, typer.Option("--tile", metavar="T", help="The tile of every block.")]


@verb("demo")
def demo(result: Result, folder: Folder = Path("demo"), tile: Tile = "7xW") -> None:
    """Convert the text detector of the package rapidocr, and read drawn pages before and after."""
    from ..demo import run_demo

    found = run_demo(folder, tile, progress=say)
    result.show(found.to_dict, lambda: [str(found)])
