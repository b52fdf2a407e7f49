"""The page of the paper's tables: every cell that it prints, beside the network as it is defined."""

from __future__ import annotations

from rich.table import Table

from tiledse.paper import paper_cells
from tiledse.report.paper import paper_tables

_HEAD = """# Every cell of the paper's tables

What `tiledse paper` prints, made with this site: the number in the paper, ours, and how they compare.
[The paper's tables, checked](paper.md) says what the rules are.
"""


def tables() -> str:
    """The page; counting all networks takes about half a minute."""
    parts = [_HEAD]
    for part in paper_tables(paper_cells()):
        parts.append(_markdown(part) if isinstance(part, Table) else str(part))
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    """A table of the terminal as one of the page; columns without a name say how the two before compare."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    heads = [str(column.header) for column in table.columns]
    rows = [heads, [":--" if column.justify == "left" else "--:" for column in table.columns], *zip(*columns)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return f"## {table.title}\n\n" + "\n".join(lines)
