"""The verb on the paper: paper."""

from __future__ import annotations

from typing import Annotated

import typer

from .groups import verb
from .progress import progress_bar
from .results import Result

Table = Annotated[
    str | None,
    typer.Argument(metavar="[TABLE]", help="1, 2, 3, 4, 5, 6, B1, B2 or abstract; all where left out."),
]


@verb("paper")
def paper(result: Result, table: Table = None) -> None:
    """Put the paper's tables beside the networks as they are defined: equal, or why not."""
    from ..paper import choose_tables, paper_cells
    from ..report.paper import paper_record, paper_tables

    tables = choose_tables(None if table is None else [table])
    with progress_bar("cells") as progress:
        cells = paper_cells(tables, progress)
    result.show(lambda: paper_record(cells), lambda: paper_tables(cells))
