"""The paper's tables beside the networks as they are defined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ..paper import Cell, summarise
from .text import digits

_NAMES = {"params": "parameters", "macs": "MACs", "buffer": "buffer", "resolution": "input"}
_HOW = {"rounded": "=r", "truncated": "=t", "rounded or truncated": "="}
UNITS = (
    "MACs: multiply-adds of one image, biases included (the paper's FLOPs); buffer: elements; "
    "M, G: 10^6, 10^9; ours: raw integers of the network as it is defined",
    "=: the printed number is ours, =r rounded only, =t truncated only; [n]: it is that of rule n, which "
    "is not the definition; ?: not explained; top1, mAP, mIoU: as printed, not measured here",
)


def paper_record(cells: Sequence[Cell]) -> dict[str, Any]:
    """The cells and their sums as JSON types, with the keys of ``paper``."""
    return {"cells": [cell.to_dict() for cell in cells], **summarise(cells)}


def paper_tables(cells: Iterable[Cell]) -> list[Any]:
    """The cells as tables like the paper's, then the rules that were needed, the units and the sums.

    Example:
        >>> from tiledse.paper import paper_cells
        >>> [str(part.title) for part in paper_tables(paper_cells(["2"]))[:1]]
        ['Table 2']
    """
    cells = list(cells)
    summary = summarise(cells)
    used = [name for name, rule in summary["rules"].items() if rule["explains"]]
    tables = dict.fromkeys(cell.printed.table for cell in cells)
    parts: list[Any] = [
        _table(name, [cell for cell in cells if cell.printed.table == name], used) for name in tables
    ]
    for number, name in enumerate(used, 1):
        rule = summary["rules"][name]
        parts.append(
            f"[{number}] {name}: {rule['text']}. "
            f"Speaks of {rule['speaks_of']} cells, gives {rule['gives']}, explains {rule['explains']}."
        )
    return [*parts, *UNITS, summary_line(summary)]


def summary_line(summary: dict[str, Any]) -> str:
    """The verdicts in one line."""
    verdicts = ", ".join(f"{count} {name}" for name, count in summary["verdicts"].items())
    distinct = summary["distinct"]
    return (
        f"Cells: {verdicts}; {distinct['equal']} of {distinct['cells']} distinct complexity cells are equal."
    )


def _table(name: str, cells: list[Cell], used: list[str]) -> Table:
    title = "Abstract" if name == "abstract" else f"Table {name}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("network", no_wrap=True)
    table.add_column("method", no_wrap=True)
    quantities = dict.fromkeys(cell.printed.quantity for cell in cells)
    for quantity in quantities:
        # Folded, not cut, where the terminal is narrow.
        table.add_column(_NAMES.get(quantity, quantity), justify="right", overflow="fold")
        if quantity in _NAMES:
            table.add_column("ours", justify="right", overflow="fold")
            table.add_column("", overflow="fold")
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.printed.model, cell.printed.method), {})[cell.printed.quantity] = cell
    for (model, method), row in rows.items():
        texts: list[str] = []
        for quantity in quantities:
            texts += _texts(row.get(quantity), used)[: 3 if quantity in _NAMES else 1]
        table.add_row(model, method, *texts)
    return table


def _texts(cell: Cell | None, used: list[str]) -> list[str]:
    if cell is None:
        return ["", "", ""]
    ours = (
        "not measured" if cell.verdict == "not measured" else "" if cell.ours is None else digits(cell.ours)
    )
    mark = {"not explained": "?"}.get(cell.verdict, "")
    if cell.verdict == "equal":
        mark = _HOW[str(cell.how)]
    elif cell.reason is not None:
        mark = f"[{used.index(cell.reason) + 1}]"
    unit = "" if cell.verdict == "not printed" else cell.printed.unit
    return [cell.printed.text + unit, ours, mark]
