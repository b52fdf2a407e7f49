"""The nodes of an SE block: squeeze (tiles to descriptors), excite (descriptors to gates), gate (scales the tiles)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TiledSEError
from ..networks.counting import MacCounter
from ..op.functional import squeeze as squeeze_tiles
from ..tile import Tile
from .builder import Builder, Ref
from .maps import FOREVER, SAME, Between, First, Repeat, Strips, Total
from .marks import REDUCES, excitation


def squeeze(b: Builder, fx: torch.fx.Node, ref: Ref, tile: Tile, reduce: str, block: str) -> Ref:
    """Add the squeeze of a block: strips and patches strip by strip, columns and the whole map as running sums."""
    value = b.values[ref.index]
    height, width = value.height, value.shape[3]
    fold = REDUCES[reduce]
    add: dict[str, Any] = {"kind": "squeeze", "inputs": [ref], "row_dim": 2, "block": block, "fresh": True}
    add["squeeze"] = tile, reduce
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
    if tile.slides:
        means = _RowMeans(tile)

        def slide(parts: list[Tensor], lo: int, hi: int, state: Any) -> tuple[Tensor, Any]:
            _, seen, state = means(parts[0], lo, hi, state)
            return seen, state

        return b.add(fx, maps=[means.map], run=slide, stateful=True, **add)
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
    height = b.values[ref.index].height
    of_own, of_running, offset = numbers
    assert of_own is not None
    assert offset is not None
    if height != rows:
        raise TiledSEError(
            f"block '{block}' is calibrated for maps of {rows} rows, but its map has {height} rows; stream images of "
            "the size that it was calibrated with, or calibrate for this size"
        )

    means = _RowMeans(tile, own=True)

    def run(parts: list[Tensor], lo: int, hi: int, state: Any) -> tuple[Tensor, Any]:
        own, seen, state = means(parts[0], lo, hi, state)
        descriptors = own * of_own[:, lo:hi] + offset[:, lo:hi]
        return descriptors if of_running is None else descriptors + seen * of_running[:, lo:hi], state

    return b.add(
        fx, "squeeze", [ref], [means.map], run, 2, block=block, fresh=True, stateful=True,
        needs_height=f"block '{block}' is calibrated, and its numbers belong to strips at their places",
        squeeze=(tile, "mean"), numbers=tuple(numbers),
    )  # fmt: skip


class _RowMeans:
    """Means over the rows that strips know, as rows come: see ``Tile.own_bounds`` and ``Tile.bounds``.

    The state is a sum of rows from the first on, the means of the rows after it that a later strip may tell apart, and
    the number of the first of those. Sums are kept in float64, since a stream may be long.

    Args:
        tile: Strips of rows.
        own: Whether the means of the strips' own rows are wanted.
    """

    def __init__(self, tile: Tile, own: bool = False) -> None:
        assert tile.height is not None  # strips of rows
        self.tile, self.tall, self.own = tile, tile.height, own
        self.map = Strips(tile.height, tile.ahead)

    def __call__(self, x: Tensor, lo: int, hi: int, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Own means and seen means of strips lo to hi, from the rows x that came since strip lo - 1."""
        rows = squeeze_tiles(x, Tile(1, None)) if x.shape[2] else x.mean(3, keepdim=True)
        kept = rows.double()
        total, first = kept.new_zeros((*kept.shape[:2], 1, 1)), 0
        if state is not None:
            total, kept, first = state[0], torch.cat([state[1], kept], 2), state[2]
        stop = first + kept.shape[2]
        sums = torch.cat([total, total + kept.cumsum(2)], 2)
        strips = np.arange(lo, hi)
        ends = np.minimum(self.map.end(strips + 1), stop)
        seen_from = self._seen_from(strips, ends)
        seen = self._mean(sums, seen_from, ends, first).to(rows.dtype)
        own = self._mean(sums, self._own_from(strips, ends), ends, first).to(rows.dtype) if self.own else seen
        keep = min(max(self._needed(hi), first), stop)
        return own, seen, (sums.narrow(2, keep - first, 1).clone(), kept[:, :, keep - first :].clone(), keep)

    def _seen_from(self, strips: np.ndarray, ends: np.ndarray) -> np.ndarray:
        tops = strips * self.tall
        if not self.tile.slides:
            return tops
        first = tops * 0 if self.tile.above is None else np.maximum(tops - self.tile.above, 0)
        return np.where(first < ends, first, tops)  # a strip that sees no other row sees its own

    def _own_from(self, strips: np.ndarray, ends: np.ndarray) -> np.ndarray:
        tops, seen = strips * self.tall, self._seen_from(strips, ends)
        return np.where(ends > tops, np.maximum(seen, tops), seen)

    def _needed(self, strip: int) -> int:
        """The first row of which a strip, and none before it, must know the mean and not only a sum."""
        strips, ends = np.array([strip]), self.map.end(np.array([strip + 1]))
        starts = [] if self.tile.squeeze == "running" else [int(self._seen_from(strips, ends)[0])]
        if self.own and not (self.tile.squeeze == "running" and self.tile.ahead == -self.tall):
            starts.append(int(self._own_from(strips, ends)[0]))
        return min(starts, default=FOREVER)

    @staticmethod
    def _mean(sums: Tensor, starts: np.ndarray, ends: np.ndarray, first: int) -> Tensor:
        """Means of rows [start, end), from sums of all rows up to each from ``first`` on."""

        def up_to(rows: np.ndarray) -> Tensor:
            return sums.index_select(2, torch.from_numpy(np.maximum(rows - first, 0)).to(sums.device))

        # Before the first row of the image there is no sum; a start of 0 is the only one that may lie before ``first``.
        below = up_to(starts) * torch.from_numpy(starts > 0).to(sums)[:, None]
        return (up_to(ends) - below) / torch.from_numpy(ends - starts).to(sums)[:, None]


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
    gates = excitation(b.blocks[block])
    _, channels, rows, cols = b.values[ref.index].shape
    like: Any = fx.args[0].meta["val"]  # type: ignore[union-attr]
    with MacCounter() as counter:
        gates(torch.zeros(1, channels, 1, 1, dtype=like.dtype, device=like.device))
    run = lambda parts, lo, hi: gates(parts[0])  # noqa: E731
    row_dim = b.values[ref.index].row_dim  # None where the map came in one piece
    how = First() if row_dim is None else SAME
    return b.add(fx, "excite", [ref], [how], run, row_dim, block=block, macs=counter.macs * rows * cols)


def scale(b: Builder, fx: torch.fx.Node, x: Ref, gates: Ref, tile: Tile, block: str) -> Ref:
    """Add the gate of a block: each row of the map times the gate of its tile."""
    width = b.values[x.index].shape[3]
    _, wide = tile.size(1, width)
    strips = tile.height is not None and not tile.single
    tall = (tile.height or 0) if strips else 0
    columns = torch.arange(width) // wide if wide < width else None

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        part, now = parts
        if tall > 1 and now.shape[2] > 1:
            rows = torch.arange(lo, hi, device=part.device) // tall - lo // tall
            now = now.index_select(2, rows)
        if columns is not None:
            now = now.index_select(3, columns.to(now.device))
        return part * now

    how = Repeat(tall) if tall else First()
    return b.add(fx, "gate", [x, gates], [SAME, how], run, 2, block=block, fresh=True)
