"""The verb that shows the main job on a real network: demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .app import app, print_json, print_text, say


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where the files go.")] = Path(
        "demo"
    ),
    tile: Annotated[str, typer.Option("--tile", metavar="T", help="The tile of every block.")] = "7xW",
    json: options.Json = False,
) -> None:
    """Convert the text detector of the package rapidocr, and read drawn pages before and after."""
    from ..demo import run_demo

    result = run_demo(folder, tile, progress=say)
    if json:
        print_json(result.to_dict())
    else:
        print_text(str(result))
