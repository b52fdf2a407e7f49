"""The nodes of an SE block: squeeze (tiles to descriptors), excite (descriptors to gates), gate (scales the tiles)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import TiledSEError
from ..networks.counting import MacCounter
from ..op.functional import squeeze as squeeze_tiles
from ..tile import Tile
from .building import Builder, Ref
from .maps import SAME, Between, First, Repeat, Strips, Total
from .marks import REDUCES, excitation


def squeeze(b: Builder, fx: torch.fx.Node, ref: Ref, tile: Tile, reduce: str, block: str) -> Ref:
    """Add the squeeze of a block: strips and patches strip by strip, columns and the whole map as running sums."""
    value = b.values[ref.index]
    height, width = value.height, value.shape[3]
    fold = REDUCES[reduce]
    if tile.ahead or tile.above is not None:
        raise TiledSEError(
            f"block '{block}' has the tile {tile}, which cannot be streamed yet; give it another"
        )
    add: dict[str, Any] = {"kind": "squeeze", "inputs": [ref], "row_dim": 2, "block": block, "fresh": True}
    if tile.single:
        first, stop = tile.rows(height)
        why = "the middle strip is where the height says" if first else None
        if tile.squeeze == "upper" and tile.height is not None:
            stop = min(tile.height, height)

        def single(parts: list[Tensor], lo: int, hi: int) -> Tensor:
            return fold(parts[0], (2, 3))[:, :, None, None]

        return b.add(fx, maps=[Between(first, stop)], run=single, needs_height=why, **add)
    if tile.height is None:
        return b.add(fx, maps=[Total()], run=_absorb, finish=_columns(tile, reduce, width), **add)
    if tile.squeeze == "running":

        def running(parts: list[Tensor], lo: int, hi: int, state: Any) -> tuple[Tensor, Any]:
            _, seen, state = _strips(parts[0], tile.height, hi - lo, state)  # type: ignore[arg-type]
            return seen, state

        return b.add(fx, maps=[Strips(tile.height)], run=running, stateful=True, **add)
    strip = Tile(tile.height, tile.width)

    def strips_of(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return squeeze_tiles(parts[0], strip, fold)

    return b.add(fx, maps=[Strips(tile.height)], run=strips_of, **add)


def squeeze_corrected(
    b: Builder,
    fx: torch.fx.Node,
    ref: Ref,
    numbers: Sequence[Tensor | None],
    tile: Tile,
    rows: int,
    block: str,
) -> Ref:
    """Add the squeeze of a calibrated block: strip j by the numbers of strip j."""
    height, tall = b.values[ref.index].height, tile.height
    of_own, of_running, offset = numbers
    assert of_own is not None
    assert offset is not None
    assert tall is not None
    if height != rows:
        raise TiledSEError(
            f"block '{block}' is calibrated for maps of {rows} rows, but its map has {height} rows; stream images of "
            "the size that it was calibrated with, or calibrate for this size"
        )

    def run(parts: list[Tensor], lo: int, hi: int, state: Any) -> tuple[Tensor, Any]:
        own, seen, state = _strips(parts[0], tall, hi - lo, state)
        descriptors = own * of_own[:, lo:hi] + offset[:, lo:hi]
        return descriptors if of_running is None else descriptors + seen * of_running[:, lo:hi], state

    return b.add(
        fx, "squeeze", [ref], [Strips(tall)], run, 2, block=block, fresh=True, stateful=True,
        needs_height=f"block '{block}' is calibrated, and its numbers belong to strips at their places",
    )  # fmt: skip


def _strips(part: Tensor, tall: int, count: int, state: Any) -> tuple[Tensor, Tensor, Any]:
    """Means of strips, those of all rows down to the end of each, and the sums to go on with."""
    own = squeeze_tiles(part, Tile(tall, None))
    left = part.shape[2]
    sizes = [min(tall, left - i * tall) for i in range(count)]
    rows = torch.tensor(sizes, dtype=own.dtype, device=own.device)[:, None]
    total, seen = state if state is not None else (0.0, 0)
    sums = (own * rows).cumsum(2) + total
    return own, sums / (rows.cumsum(0) + seen), (sums[:, :, -1:].clone(), seen + left)


def _absorb(part: Tensor, state: Any) -> Any:
    """Sums and maxima of columns over the rows so far, and how many rows that was."""
    now = part.sum(2, keepdim=True), part.amax(2, keepdim=True), part.shape[2]
    if state is None:
        return now
    return state[0] + now[0], torch.maximum(state[1], now[1]), state[2] + now[2]


def _columns(tile: Tile, reduce: str, width: int) -> Any:
    columns = Tile(None, tile.width)

    def finish(state: Any) -> Tensor:
        total, largest, rows = state
        descriptors = squeeze_tiles(total / rows, columns)
        if reduce == "mean":
            return descriptors
        return 0.5 * descriptors + 0.5 * squeeze_tiles(largest, columns, lambda x, dims: x.amax(dims))

    return finish


def excite(b: Builder, fx: torch.fx.Node, ref: Ref, block: str) -> Ref:
    """Add the excitation of a block: the block's own layers, on the descriptors of as many tiles as there are."""
    module = b.blocks[block]
    gates = excitation(module)
    _, channels, rows, cols = b.values[ref.index].shape
    weight = next(module.parameters(), torch.empty(0))
    with MacCounter() as counter:
        gates(torch.zeros(1, channels, 1, 1, dtype=weight.dtype, device=weight.device))
    run = lambda parts, lo, hi: gates(parts[0])  # noqa: E731
    return b.add(fx, "excite", [ref], [SAME], run, 2, block=block, macs=counter.macs * rows * cols)


def scale(b: Builder, fx: torch.fx.Node, x: Ref, gates: Ref, tile: Tile, block: str) -> Ref:
    """Add the gate of a block: each row of the map times the gate of its tile."""
    width = b.values[x.index].shape[3]
    _, wide = tile.size(1, width)
    strips = tile.height is not None and not tile.single
    tall = tile.height if strips else 0
    columns = torch.arange(width) // wide if wide < width else None

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        part, now = parts
        if tall and now.shape[2] > 1:
            rows = torch.arange(lo, hi, device=part.device) // tall - lo // tall
            now = now.index_select(2, rows)
        if columns is not None:
            now = now.index_select(3, columns.to(now.device))
        return part * now

    how = Repeat(tall) if tall else First()
    return b.add(fx, "gate", [x, gates], [SAME, how], run, 2, block=block, fresh=True)
