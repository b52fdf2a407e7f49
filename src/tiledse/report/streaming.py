"""What layers hold while a network streams, and what a simulated pipeline did, as tables."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from ..cost import cost
from ..plan import Plan
from ..stream.comparison import Streamed
from ..stream.flow import Held
from ..stream.frames import words
from ..stream.simulator import Simulation
from .text import digits

KINDS = {
    "gate": "gates (wait for their tile)",
    "shortcut": "shortcuts (wait for another branch)",
    "rows": "lines of windows, and rows on their way",
}


def held_table(
    held: list[Held], whole: dict[str, int], title: str, of: tuple[str, str] = ("image", "rows")
) -> Table:
    """One row a layer that holds more than a row on its way; then the sums by kind."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left")
    table.caption = f"elements of one {of[0]} held at most, {of[1]} coming one by one"
    table.caption += f"\nsingle {of[1]} on their way are only in the sums"
    for name in whole:
        table.caption += (
            f"\n'{name}' is not local in {of[1]}: it waits for its whole map ({digits(whole[name])} elements)"
        )
    table.add_column("layer", no_wrap=True)
    table.add_column("what")
    table.add_column(of[1], justify="right")
    table.add_column("elements", justify="right")
    for item in held:
        if item.rows > 1 or item.kind == "gate":
            table.add_row(item.name, item.kind, digits(item.rows), digits(item.elements))
    table.add_section()
    for kind, meaning in KINDS.items():
        table.add_row(meaning, "", "", digits(sum(item.elements for item in held if item.kind == kind)))
    table.add_row("all", "", "", digits(sum(item.elements for item in held)), style="bold")
    return table


def streamed_parts(found: Streamed, model: str) -> list[Any]:
    """What streaming an image gave: what layers hold, memory, and the difference from the whole image."""
    size = "x".join(map(str, found.input_size))
    what, rows = words(found.input_size[2:])
    live = f"{found.peak_live_bytes / 1e6:.1f} MB"
    if found.peak_live_bytes < 1e6:
        live = f"{found.peak_live_bytes:,} bytes"
    memory = (
        f"{rows} alive at once, {found.rows} at a time: {live}; "
        f"resident memory grew by {_megabytes(found.rss_delta_bytes)}"
    )
    parts: list[Any] = [
        held_table(found.held, found.whole, f"{model} at {size}: what layers hold", (what, rows)),
        f"gates hold {found.gate_buffer:,} elements by the closed form of `tiledse cost` (row order)",
        f"the first output is known after {found.first_output:,} of {found.input_size[1]:,} {rows}",
    ]
    if found.max_rel_error is None:
        return [*parts, memory]
    return [
        *parts,
        f"{memory}, with the whole {what} by {_megabytes(found.full_rss_delta_bytes)}",
        f"largest difference from the whole {what}: {found.max_rel_error:.1e} of the largest output (float32)",
    ]


def _megabytes(count: int | None) -> str:
    return "an amount that this system does not tell" if count is None else f"{count / 1e6:.0f} MB"


def simulation_record(se: Simulation, tse: Simulation, plan: Plan, sized: Plan, fifos: str) -> dict[str, Any]:
    """The pipeline with SE and with tiles, as JSON types.

    Args:
        se: With plain SE.
        tse: With tiles.
        plan: The tiles.
        sized: The same at the size of the image.
        fifos: Which FIFOs were simulated.
    """
    plain = {stage.block: stage for stage in se.stages if stage.block is not None}
    tiled = {stage.block: stage for stage in tse.stages if stage.block is not None}
    blocks = [
        {
            "name": block.name,
            "tile": block.tile,
            "buffer_row_order": block.buffer_row_order,
            "se_peak": plain[block.name].peak,
            "peak": tiled[block.name].peak,
            "fifo_rows": tiled[block.name].fifo_rows,
        }
        for block in cost(sized).blocks
        if block.name in tiled
    ]
    return {
        "input": list(plan.input_size),
        "fifos": fifos,
        "multipliers": tse.multipliers,
        "se": se.to_dict(),
        "tse": tse.to_dict(),
        "blocks": blocks,
        "stages": [dict(vars(stage)) for stage in tse.stages],
    }


def simulation_table(se: Simulation, tse: Simulation, title: str) -> Table:
    """The pipeline with SE and with tiles, side by side."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left")
    table.caption = (
        f"one stage a layer, {digits(tse.multipliers)} multipliers; {digits(tse.frame_cycles)} cycles: what the "
        "slowest stage needs for a frame\nstall: cycles in which stages waited, from their first input to their last "
        "row, summed up; held and FIFOs: elements\nsimulated, not measured on hardware: no memory outside the "
        "chip, no loading of weights, no clock"
    )
    table.add_column("")
    table.add_column("SE", justify="right")
    table.add_column("TSE", justify="right")
    frame = max(1, tse.frame_cycles)
    lines = (
        ("cycles to the last output", se.cycles, tse.cycles),
        ("cycles to the first output", se.first_output_cycle, tse.first_output_cycle),
        ("cycles a frame, back to back", se.period_cycles, tse.period_cycles),
        ("stall cycles", se.stall_cycles, tse.stall_cycles),
        ("held by gates", se.buffer, tse.buffer),
        ("all FIFOs", se.fifo, tse.fifo),
    )
    for name, plain, tiled in lines:
        table.add_row(name, digits(plain), digits(tiled))
    table.add_row("latency in frames", f"{se.cycles / frame:.2f}", f"{tse.cycles / frame:.2f}")
    return table


def stages_table(simulation: Simulation) -> Table:
    """One row a stage: rate, work, waits and FIFO."""
    table = Table(box=box.SIMPLE_HEAD, title="stages", title_justify="left", caption_justify="left")
    table.caption = (
        "cycles of one frame; FIFO and peak in rows; starved: waits for rows, blocked: waits for room"
    )
    table.add_column("stage", no_wrap=True)
    table.add_column("kind")
    for name in ("rows", "a row", "busy", "starved", "blocked", "FIFO", "peak"):
        table.add_column(name, justify="right")
    for s in simulation.stages:
        numbers = (
            s.rows,
            s.cycles_per_row,
            s.busy_cycles,
            s.starved_cycles,
            s.blocked_cycles,
            s.fifo_rows,
            s.peak_rows,
        )
        table.add_row(s.name, s.kind, *map(digits, numbers))
    return table
