"""Rules that are not the definition and yet give numbers that the paper prints.

Each rule says which cells it speaks of and what they would be. Whether a printed number is the rule's is
computed, never stated. The rules were inferred from the numbers; the paper names none of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import log2

from ..plan import Plan, SEBlock
from ..tile import Tile
from .networks import Networks
from .printed import Method, Number, Printed, printed_cells

_SE = Method(Tile.parse("HxW"))


@dataclass(frozen=True)
class Rule:
    """One way to a printed number.

    Args:
        name: What tables call it.
        text: The rule in words.
        value: The number it gives for a cell; None where it says nothing of that cell.
    """

    name: str
    text: str
    value: Callable[[Printed, Networks], Number | None]


def _sides(tile: Tile, block: SEBlock, clamped: bool) -> tuple[int, int]:
    if clamped:
        return tile.size(block.height, block.width)
    return tile.height or block.height, tile.width or block.width


def _quarter(channels: Iterable[tuple[int, Number]], weights: int = 1) -> Fraction:
    """MACs of excitations with hidden width C/4: for each (C, descriptors), biases once."""
    total = Fraction(0)
    for c, descriptors in channels:
        total += c + Fraction(c, 4) + 2 * weights * c * Fraction(c, 4) * descriptors
    return total


def _fractional(cell: Printed, networks: Networks, clamped: bool) -> Number | None:
    if cell.quantity != "macs" or cell.table not in ("1", "B1") or cell.method == "Vanilla":
        return None
    method = Method.parse(cell.method)
    tile = method.tile
    if tile is None or tile.single or method.kernel not in (None, (1, 1)) or method.ratio not in (None, 4):
        return None
    vanilla = networks.plan(cell.model, Method(None)).network
    assert vanilla is not None
    counts = []
    for block in networks.plan(cell.model, _SE).blocks:
        tall, wide = _sides(tile, block, clamped)
        counts.append((block.channels, Fraction(block.height * block.width, tall * wide)))
    return vanilla.macs + _quarter(counts)


def _fractional_tiles(cell: Printed, networks: Networks) -> Number | None:
    return _fractional(cell, networks, clamped=True)


def _unclamped_tiles(cell: Printed, networks: Networks) -> Number | None:
    if cell.quantity == "macs":
        return _fractional(cell, networks, clamped=False)
    if cell.quantity != "buffer" or cell.table != "1" or cell.method == "Vanilla":
        return None
    tile = Method.parse(cell.method).tile
    assert tile is not None
    if tile.single:
        return None
    total = 0
    for block in networks.plan(cell.model, _SE).blocks:
        tall, wide = _sides(tile, block, clamped=False)
        total += tall * wide * block.channels
    return total


def _se_buffer(cell: Printed, networks: Networks) -> Number | None:
    single = cell.method.endswith(("-upper", "-middle"))
    return networks.cost(cell.model, _SE).se.buffer if single and cell.quantity == "buffer" else None


def _row_below(cell: Printed, networks: Networks) -> Number | None:
    """Our value of the cell under this one in table B1."""
    if cell.table != "B1" or cell.quantity != "macs":
        return None
    column = [c for c in printed_cells() if (c.table, c.quantity) == (cell.table, cell.quantity)]
    below = column.index(cell) + 1
    if below == len(column):
        return None
    return networks.cost(cell.model, Method.parse(column[below].method)).tse.macs


def _stage_blocks(plan: Plan, side: int) -> list[tuple[int, int]]:
    """(width, side of the map) of each block, where a stage is as wide as its widest block.

    The side is the image's over the stage's stride, rounded down; the networks pad and round up.
    """
    stages: dict[str, list[SEBlock]] = defaultdict(list)
    for block in plan.blocks:
        stages[block.name.rpartition(".")[0].rpartition(".")[0]].append(block)
    table = []
    for blocks in stages.values():
        widest = max(block.channels for block in blocks)
        stride = 2 ** round(log2(side / blocks[-1].height))
        table += [(widest, side // stride)] * len(blocks)
    return table


def _stage_table(cell: Printed, networks: Networks) -> Number | None:
    if not cell.model.startswith("Efficient") or cell.quantity != "buffer":
        return None
    tile = Method.parse(cell.method).tile
    assert tile is not None
    table = _stage_blocks(networks.plan(cell.model, _SE), networks.resolution(cell.model))
    return sum(tile.buffer(width, side, side) for width, side in table)


def _stage_excitation(cell: Printed, networks: Networks) -> Number | None:
    """The printed SE MACs, and on top the excitations of the stage table with hidden width C/4."""
    if cell.table != "B2" or cell.quantity != "macs" or cell.method == "SE":
        return None
    method = Method.parse(cell.method)
    assert method.tile is not None
    assert method.kernel is not None
    se = next(
        c
        for c in printed_cells()
        if (c.table, c.model, c.method, c.quantity) == ("B2", cell.model, "SE", "macs")
    )
    table = _stage_blocks(networks.plan(cell.model, _SE), networks.resolution(cell.model))
    counts = [(width, method.tile.tiles(side, side)) for width, side in table]
    assert se.value is not None
    return se.value + _quarter(counts, method.kernel[0] * method.kernel[1])


def _before_stride(cell: Printed, networks: Networks) -> Number | None:
    """The undilated network, its gates on the maps that enter the inverted bottlenecks, 7*H*C for strips."""
    if cell.table != "6" or cell.quantity != "buffer":
        return None
    tile = Method.parse(cell.method).tile
    assert tile is not None
    total = 0
    for block, height, width in networks.entering(cell.model):
        if tile.whole:
            total += block.channels * height * width
        else:
            assert tile.height is not None
            total += tile.height * height * block.channels
    return total


RULES = (
    Rule(
        "fractional tiles",
        "the network without SE, and for each block C + C/4 + 2*C*(C/4)*(H*W)/(h*w): a fractional number of "
        "tiles, and a hidden width of C/4 where the network has a quarter of the block's input",
        _fractional_tiles,
    ),
    Rule(
        "unclamped tile",
        "the tile keeps its size where it is larger than the map (MACs: with fractional tiles and C/4)",
        _unclamped_tiles,
    ),
    Rule("SE's buffer", "the buffer of plain SE stands for the single strip's", _se_buffer),
    Rule("row below", "the value of the row below stands here too", _row_below),
    Rule(
        "stage table",
        "every block of a stage as wide as the stage's widest, on maps of side floor(image / stride)",
        _stage_table,
    ),
    Rule(
        "stage table, C/4",
        "the printed MACs of SE, and for each block of the stage table C + C/4 + 2*k*C*(C/4)*tiles with the "
        "kernel's k weights",
        _stage_excitation,
    ),
    Rule(
        "undilated, before the stride",
        "the network without dilation (output stride 32), each gate on the map that enters its bottleneck, "
        "before the stride, and 7*H*C for a strip in place of 7*W*C",
        _before_stride,
    ),
)
