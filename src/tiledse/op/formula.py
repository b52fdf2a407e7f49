"""The formula: squeeze and scale as plain operators on views, which compilers and exporters trace and fuse.

Every faster way (functional.py lists them) gives the same numbers, and those that have no gradient of their own take
torch's gradient of this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import TiledSEError
from ..tile import Tile
from .grids import Span, running, spans
from .sliding import by_rows, seen

Reduce = Callable[[Tensor, "tuple[int, ...]"], Tensor]


def _tiles(x: Tensor, rows: Span, cols: Span) -> Tensor:
    """A view of one rectangle of equal tiles: (N, C, rows, h, cols, w)."""
    x = x.narrow(2, rows.start, rows.number * rows.size).narrow(3, cols.start, cols.number * cols.size)
    return x.unflatten(3, (cols.number, cols.size)).unflatten(2, (rows.number, rows.size))


def mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The squeeze of the paper: the mean over a tile's own elements."""
    return x.mean(dims)


def mean_and_max(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Half the mean and half the maximum: what timm's SE modules squeeze with ``add_maxpool=True``."""
    return 0.5 * x.mean(dims) + 0.5 * x.amax(dims)


def squeeze(x: Tensor, tile: Tile, reduce: Reduce) -> Tensor:
    """Descriptors of the tiles, (N, C, rows, cols)."""
    height, width = sides(x)
    if tile.single:
        first, stop = tile.rows(height)
        return reduce(x.narrow(2, first, stop - first), (2, 3))[:, :, None, None]
    if tile.whole:
        return reduce(x, (2, 3))[:, :, None, None]
    tall, wide = tile.size(height, width)
    if tile.slides and reduce is not mean:
        raise TiledSEError(
            f"tile {tile}: a {tile.squeeze} strip is a mean, but this block also squeezes a maximum"
        )
    if by_rows(tile, height):
        return seen(x.mean(3, keepdim=True), tile)
    grid = torch.cat(
        [
            torch.cat([reduce(_tiles(x, rows, cols), (3, 5)) for cols in spans(width, wide)], 3)
            for rows in spans(height, tall)
        ],
        2,
    )
    return running(grid, height, tall) if tile.squeeze == "running" else grid


def scale(x: Tensor, gates: Tensor, tile: Tile) -> Tensor:
    """Each tile times its gate, which is broadcast over a view and never repeated in memory."""
    height, width = sides(x)
    if tile.grid(height, width) == (1, 1):
        return x * gates
    tall, wide = tile.scaled(height, width)
    bands, row = [], 0
    for rows in spans(height, tall):
        parts, col = [], 0
        for cols in spans(width, wide):
            gate = gates.narrow(2, row, rows.number).narrow(3, col, cols.number)
            scaled = _tiles(x, rows, cols) * gate[:, :, :, None, :, None]
            parts.append(scaled.flatten(4, 5).flatten(2, 3))
            col += cols.number
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, 3))
        row += rows.number
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def sides(x: Tensor) -> tuple[int, int]:
    """Rows and columns of a map; in a trace by torch.jit, which holds for one size, the numbers that they are."""
    if not torch.jit.is_tracing():
        height, width = x.shape[2:]
        return height, width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(x.shape[2]), int(x.shape[3])
