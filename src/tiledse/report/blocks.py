"""The SE blocks of a plan as a table."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from ..plan import Plan


def blocks_record(plan: Plan, model: str) -> dict[str, Any]:
    """The blocks as JSON types, with the keys of ``find``."""
    whole = plan.to_dict()
    return {
        "model": model,
        "input": whole["input_size"],
        "blocks": [{k: v for k, v in block.items() if k != "excite_macs"} for block in whole["blocks"]],
        "near_misses": whole["near_misses"],
    }


def blocks_table(plan: Plan, model: str) -> Table:
    """One row a block: name, map, reduced width, dialect, tile; units in the footer."""
    size = "x".join(map(str, plan.input_size))
    plain = all(block.axes == 2 for block in plan.blocks)
    axes = "H, W: rows and columns of the map" if plain else "the other sides of a map: T, HxW or DxHxW"
    sides = ("C", "H", "W") if plain else ("map",)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{model} at {size}: {len(plan)} SE blocks",
        caption=f"C, reduced: channels; {axes}",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("block", *sides, "reduced", "dialect", "tile"):
        table.add_column(column, justify="right" if column in (*sides, "reduced") else "left", no_wrap=True)
    for block, tile in plan:
        numbers = [str(number) for number in (block.channels, *block.sides)]
        reduced = "-" if block.reduced is None else str(block.reduced)
        shown = numbers if plain else ["x".join(numbers)]
        table.add_row(block.name, *shown, reduced, block.dialect, str(tile))
    return table


def near_miss_lines(plan: Plan) -> list[str]:
    """One line for each near miss, those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for miss in plan.near_misses:
        by_reason.setdefault(miss.reason, []).append(miss.name)
    lines = ["no SE blocks, though they pool a whole map:"] if by_reason else []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {', '.join(names[:3])}{more}: {reason}")
    return lines
