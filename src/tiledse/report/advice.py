"""Advice as text: what a target gains, each block, and the plan to take."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from ..choose.advising import Advice
from ..targets import Measured


def advice_lines(advice: Advice, model: str) -> list[Any]:
    """Gains with their sources, what tiles cost on images, a row a block, and the summary."""
    size = "x".join(map(str, advice.plan.input_size))
    lines: list[Any] = [f"{model} at {size} on {advice.target.name}: {advice.target.about}"]
    rows = (
        ("exact SE in two steps (HxW:two-step)", advice.two_step),
        (f"tiles ({advice.tile})", advice.tiles),
        (f"sliding tiles ({advice.slide})", advice.sliding),
    )
    width = max(len(name) for name, _ in rows)
    for name, gain in rows:
        lines.append(f"  {name.ljust(width)}  {gain}")
        lines += [f"    {_quoted(one)}" for one in gain.evidence]
    for tile, done in advice.accuracy.items():
        lines += [f"on the images, {tile}:", *(f"  {line}" for line in str(done).splitlines())]
    return [*lines, _table(advice), advice.summary]


def _quoted(one: Measured) -> str:
    size = "x".join(map(str, one.input))
    return f"{one.network}, {size}: SE {one.se:,.10g}, {one.form} {one.value:,.10g} {one.unit} ({one.source})"


def _table(advice: Advice) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="gate buffers: elements held where maps arrive row by row; of use only to a device that runs so",
        caption_justify="left",
    )
    for column in ("block", "map HxW", "take", "why", "buffer, SE", str(advice.tile), str(advice.slide)):
        right = column not in ("block", "take", "why")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for block in advice.blocks:
        sides = f"{block.height}x{block.width}"
        table.add_row(block.name, sides, str(block.take), block.why, *(f"{n:,}" for n in block.buffers))
    return table
