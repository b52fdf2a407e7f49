"""Tiled squeeze-and-excite as the paper writes it: squeeze, excite, scale.

Source: Vosco et al., "Tiled Squeeze-and-Excite", 2021, section 3.1 and figure A1. Where text and code differ, the
code is followed: rows are repeated and cropped, so row i belongs to tile i // h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import TiledSEError
from ..tile import Tile

Excite = Callable[[Tensor], Tensor]
Reduce = Callable[[Tensor, "tuple[int, ...]"], Tensor]


class Span(NamedTuple):
    """A run of equal tiles along one axis: ``number`` tiles of ``size`` elements from ``start``."""

    start: int
    number: int
    size: int


def spans(length: int, size: int) -> tuple[Span, ...]:
    """Cut an axis into its full tiles and, where they do not fill it, the smaller last one.

    Example:
        >>> spans(10, 4)
        (Span(start=0, number=2, size=4), Span(start=8, number=1, size=2))
    """
    count, rest = divmod(length, size)
    full = Span(0, count, size)
    return (full, Span(count * size, 1, rest)) if rest else (full,)


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


def squeeze(x: Tensor, tile: str | Tile, reduce: Reduce = mean) -> Tensor:
    """Descriptors of the tiles.

    Args:
        x: Map, (N, C, H, W), of any floating type and memory layout.
        tile: The tile.
        reduce: What a tile is squeezed with, over the axes given to it.

    Returns:
        (N, C, rows, cols): one descriptor a tile, over the elements it has, ragged tiles included;
        (N, C, 1, 1) for ``upper`` and ``middle``.

    Raises:
        TiledSEError: x is no map, or is empty in H or W.

    Example:
        >>> squeeze(torch.arange(6.0).view(1, 1, 3, 2), "2xW").flatten().tolist()
        [1.5, 4.5]
    """
    tile = Tile.parse(tile)
    _check_map(x)
    height, width = x.shape[2:]
    if tile.single:
        first, stop = tile.rows(height)
        return reduce(x.narrow(2, first, stop - first), (2, 3))[:, :, None, None]
    if tile.whole:
        return reduce(x, (2, 3))[:, :, None, None]
    tall, wide = tile.size(height, width)
    if tile.squeeze == "running" and reduce is not mean:
        raise TiledSEError(f"tile {tile}: a running strip is a mean, but this block also squeezes a maximum")
    grid = torch.cat(
        [
            torch.cat([reduce(_tiles(x, rows, cols), (3, 5)) for cols in spans(width, wide)], 3)
            for rows in spans(height, tall)
        ],
        2,
    )
    return _running(grid, height, tall) if tile.squeeze == "running" else grid


def _running(strips: Tensor, height: int, tall: int) -> Tensor:
    """Means of all rows down to the end of each strip, from the strips' own means (N, C, rows, 1)."""
    ends = [min((strip + 1) * tall, height) for strip in range(strips.shape[2])]
    sizes = [end - start for start, end in zip([0, *ends], ends)]
    # Sums of half-precision means are kept in float32, as a mean over rows would be.
    wide = torch.float32 if strips.dtype in (torch.float16, torch.bfloat16) else strips.dtype
    share = torch.tensor(sizes, dtype=wide, device=strips.device)[:, None]
    seen = torch.tensor(ends, dtype=wide, device=strips.device)[:, None]
    return ((strips.to(wide) * share).cumsum(2) / seen).to(strips.dtype)


def scale(x: Tensor, gates: Tensor, tile: str | Tile) -> Tensor:
    """Multiply each tile by its gate: the gate is broadcast over a view, never repeated in memory.

    Args:
        x: Map, (N, C, H, W).
        gates: (N, C, rows, cols), as many as ``tile`` has over this map.
        tile: The tile.

    Returns:
        (N, C, H, W), in the memory layout of x.

    Raises:
        TiledSEError: the gates are not those of the tile's grid.

    Example:
        >>> scale(torch.ones(1, 1, 3, 2), torch.tensor([2.0, 5.0]).view(1, 1, 2, 1), "2xW")[0, 0, :, 0].tolist()
        [2.0, 2.0, 5.0]
    """
    tile = Tile.parse(tile)
    _check_map(x)
    height, width = x.shape[2:]
    grid = tile.grid(height, width)
    if gates.dim() != 4 or tuple(gates.shape[2:]) != grid or gates.shape[1] != x.shape[1]:
        raise TiledSEError(
            f"gates for a map of {tuple(x.shape)} and tile {tile}: expected "
            f"{(x.shape[0], x.shape[1], *grid)}, got {tuple(gates.shape)}; an excitation keeps the grid of tiles"
        )
    if grid == (1, 1):
        return x * gates
    tall, wide = tile.size(height, width)
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


def tiled_squeeze_excite(x: Tensor, excite: Excite, tile: str | Tile, reduce: Reduce = mean) -> Tensor:
    """Tiled squeeze-and-excite (figure A1): each tile is scaled by a gate computed from the tile alone.

    Args:
        x: Map, (N, C, H, W), of any floating type, contiguous or channels_last.
        excite: Descriptors (N, C, rows, cols) to gates of the same shape, such as two 1x1 convolutions
            with their activation and gate function.
        tile: The tile; ``HxW`` is squeeze-and-excite.
        reduce: What a tile is squeezed with; the mean, unless told otherwise.

    Returns:
        (N, C, H, W), in the memory layout and type of x.

    Raises:
        TiledSEError: x is no map, or the excitation changes the grid of tiles.

    Example:
        >>> x = torch.randn(2, 8, 20, 12)
        >>> tiled_squeeze_excite(x, torch.sigmoid, "7xW").shape
        torch.Size([2, 8, 20, 12])
    """
    tile = Tile.parse(tile)
    descriptors = squeeze(x, tile, reduce)
    gates = excite(descriptors)
    return scale(x, gates, tile)


def _check_map(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[2] == 0 or x.shape[3] == 0:
        raise TiledSEError(
            f"expected a map of shape (N, C, H, W) with at least one row and one column, got {tuple(x.shape)}"
        )
