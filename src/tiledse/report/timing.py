"""Tables of timings."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ..bench.compiled_operator import CompiledComparison
from ..bench.operator import Comparison
from ..bench.timings import Timings
from ..bench.whole_networks import NetworkComparison

_WAYS = ("se", "paper", "tse")


def timing_parts(found: Timings) -> list[Table | str]:
    """All timings of a run: a table a part, the machine, and the targets."""
    parts: list[Table | str] = []
    if found.operator:
        parts += [operator_table(found.operator, training=training) for training in (False, True)]
    if found.networks:
        parts.append(networks_table(found.networks))
    if found.compiled:
        parts.append(compiled_table(found.compiled))
    facts = ", ".join(f"{key} {value}" for key, value in found.machine.items() if value is not None)
    return [*parts, facts, "", *map(str, found.verdicts)]


def operator_table(comparisons: Sequence[Comparison], training: bool) -> Table:
    """Times in copies of the map (medians, and the middle half of them for ours)."""
    what = "training step (forward and backward)" if training else "inference"
    table = Table(box=box.SIMPLE_HEAD, title=f"Operator, {what}: times of a copy", title_justify="left")
    table.add_column("map NxCxHxW", no_wrap=True)
    table.add_column("MB", justify="right")
    table.add_column("layout", no_wrap=True)
    table.add_column("tile", no_wrap=True)
    ways = _WAYS if training else (*_WAYS, "tse in place")
    for name in ("SE", "paper's code", "TSE", "TSE in place")[: len(ways)]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("paper / TSE", justify="right")
    table.add_column("TSE / SE", justify="right")
    if training:
        table.add_column("peak SE, TSE", justify="right", no_wrap=True)
    for c in comparisons:
        timings = c.training if training else c.inference
        cells = [str(c.shape), f"{c.shape.map_bytes / 1e6:.1f}", c.layout, c.tile]
        for way in ways:
            ratio = timings[way].ratio(timings["copy"])
            cells.append(str(ratio) if way.startswith("tse") else f"{ratio.median:.2f}")
        cells.append(f"{timings['paper'].ratio(timings['tse']).median:.2f}")
        cells.append(f"{timings['tse'].ratio(timings['se']).median:.2f}")
        if training:
            cells.append(", ".join(f"{c.peak_bytes[way] / c.shape.map_bytes:.2f}" for way in ("se", "tse")))
        table.add_row(*cells)
    alone = all(c.inference["copy"].threads == 1 for c in comparisons)
    table.caption = (
        f"{'time of the calling thread' if alone else 'wall time'}; medians over turns (middle half)"
    )
    if training:
        table.caption += "; peak: memory of a step in maps, the map left out"
    table.caption_justify = "left"
    return table


def networks_table(networks: Sequence[NetworkComparison]) -> Table:
    """Whole networks: TSE in times of SE, and the blocks' share."""
    table = Table(box=box.SIMPLE_HEAD, title="Whole networks, inference", title_justify="left")
    for name in ("network", "image NxCxHxW", "layout", "tile"):
        table.add_column(name, no_wrap=True)
    for name in ("TSE / SE", "share of SE blocks %", "share of TSE blocks %"):
        table.add_column(name, justify="right")
    for n in networks:
        shares = [f"{100 * n.share[way]:.1f}" for way in ("se", "tse")]
        ratio = str(n.timings["tse"].ratio(n.timings["se"]))
        table.add_row(n.network, "x".join(map(str, n.shape)), n.layout, n.tile, ratio, *shares)
    return table


def compiled_table(comparisons: Sequence[CompiledComparison]) -> Table:
    """Medians of inference and of a training step, in copies."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="torch.compile, 7xW: times of a copy, inference / training",
        title_justify="left",
    )
    ways = tuple(name for name in comparisons[0].inference if name != "copy")
    for name in ("map NxCxHxW", "layout"):
        table.add_column(name, no_wrap=True)
    for name in ways:
        table.add_column(name, justify="right")
    for c in comparisons:
        cells = [str(c.shape), c.layout]
        for name in ways:
            pair = (t[name].ratio(t["copy"]).median for t in (c.inference, c.training))
            cells.append(" / ".join(f"{ratio:.1f}" for ratio in pair))
        table.add_row(*cells)
    return table
