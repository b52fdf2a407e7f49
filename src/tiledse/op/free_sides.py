"""The formula for exporters that leave the height or width of a map free.

What a trace decides by a size holds for the whole exported program, and few runtimes check it: whether strips fill the
map, say. So nothing here is decided by a side, and the same operators are right for all of them, maps that are smaller
than a tile included. (torch itself holds an exported program to two strips or more, where the example has two.) There
are four axes at the most.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tile import Tile
from .grids import accumulation_type


def squeeze(x: Tensor, tile: Tile) -> Tensor:
    """Descriptors of the tiles, (N, C, ceil(H/h), ceil(W/w)); of one row where there is one gate a map.

    Where the gates of a tile that slides all see the whole map, they are as many as elsewhere, and equal.
    """
    if tile.whole:
        return x.mean(3, keepdim=True).mean(2, keepdim=True)
    if tile.single:
        return _single(x, tile)
    if tile.height is None:
        x = x.mean(2, keepdim=True)
    if tile.width is None:
        x = x.mean(3, keepdim=True)
    else:
        x = _windows(x.transpose(2, 3), tile.width, 0, tile.width).transpose(2, 3)
    if tile.height is None:
        return x
    if tile.slides and tile.above is None:
        return _running(x, tile.height, tile.ahead)
    above = tile.above if tile.slides and tile.above is not None else 0
    return _windows(x, tile.height, -above, tile.height + (tile.ahead if tile.slides else 0))


def scale(x: Tensor, gates: Tensor, tile: Tile) -> Tensor:
    """Each tile times its gate; one gate a row or column, or for all of them, is broadcast."""
    if tile.single or tile.whole:
        return x * gates
    for axis, size in ((2, tile.height), (3, tile.width)):
        if size is not None and size > 1:
            numbers = torch.arange(x.shape[axis], device=x.device) // size
            gates = gates.index_select(axis, numbers)
    return x * gates


def _windows(x: Tensor, step: int, first: int, stop: int) -> Tensor:
    """Means of rows from ``first`` to ``stop``, counted from the first row of each strip of ``step`` rows.

    A window that lies outside of the map as a whole is the strip itself, as ``Tile.bounds`` has it.
    """
    wide = x.to(accumulation_type(x.dtype))
    rows = torch.ones_like(wide[:, :, :, :1])
    own = _summed(wide, step, 0, step) / _summed(rows, step, 0, step)
    if (first, stop) == (0, step) or first == stop:
        return own.to(x.dtype)
    seen = _summed(rows, step, first, stop)
    found = _summed(wide, step, first, stop) / seen.clamp(min=1)
    return (found if stop > 0 else torch.where(seen > 0, found, own)).to(x.dtype)


def _running(x: Tensor, step: int, ahead: int) -> Tensor:
    """Means of all rows down to ``ahead`` under each strip: sums from strip to strip, and of the rows between."""
    wide = x.to(accumulation_type(x.dtype))
    rows = torch.ones_like(wide[:, :, :, :1])
    sums, seen = (_summed(v, step, 0, step).cumsum(2) for v in (wide, rows))
    if ahead > 0:
        sums, seen = (s + _summed(v, step, step, step + ahead) for s, v in ((sums, wide), (seen, rows)))
    if ahead < 0:
        sums, seen = (s - _summed(v, step, step + ahead, step) for s, v in ((sums, wide), (seen, rows)))
    if step + ahead == 0:  # nothing is above the first strip: it sees itself, as ``Tile.bounds`` has it
        own = _summed(wide, step, 0, step) / _summed(rows, step, 0, step)
        return torch.where(seen > 0, sums / seen.clamp(min=1), own).to(x.dtype)
    return (sums / seen).to(x.dtype)


def _summed(x: Tensor, step: int, first: int, stop: int) -> Tensor:
    """Sums of rows from ``first`` to ``stop`` of each strip, (N, C, strips, W); rows outside of the map are zeros.

    As many windows as strips, whatever the height is: the last one begins with the last strip.
    """
    size = stop - first
    if stop != 1:
        x = F.pad(x, (0, 0, 0, stop - 1))
    if first:
        x = F.pad(x, (0, 0, -first, 0))
    return F.avg_pool2d(x, (size, 1), (step, 1)) * size


def _single(x: Tensor, tile: Tile) -> Tensor:
    """The mean of the first or middle rows, as shares of all rows."""
    assert tile.height is not None  # strips of rows
    height = x.shape[2]
    row = torch.arange(height, device=x.device)[:, None]
    size = torch.minimum(row * 0 + tile.height, row * 0 + height)
    first = (height - size) // 2 if tile.squeeze == "middle" else row * 0
    share = ((row >= first) & (row < first + size)).to(x.dtype) / size.to(x.dtype)
    return (x.mean(3, keepdim=True) * share).sum(2, keepdim=True)
