"""The verb on the paper: paper."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..paper import choose_tables, paper_cells, summarise
from ..report.paper import paper_tables
from . import options
from .app import app, print_json, print_text
from .progress import progress_bar


@app.command()
def paper(
    table: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[TABLE]", help="1, 2, 3, 4, 5, 6, B1, B2 or abstract; all where left out."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Put the paper's tables beside the networks as they are defined: equal, or why not."""
    tables = choose_tables(None if table is None else [table])
    with progress_bar("cells") as progress:
        cells = paper_cells(tables, progress)
    if json:
        print_json({"cells": [cell.to_dict() for cell in cells], **summarise(cells)})
    else:
        print_text(*paper_tables(cells))
