"""Descriptors of sliding strips: means over more rows than the strip's own, from the means of the rows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..tile import Tile
from .grids import accumulation_type, is_eager

# Up to here a product with the matrix of shares is one call, which exporters write as one MatMul. It takes H * H
# multiply-adds a channel where the squeeze before it takes H * W; above, sums from row to row take H.
TALLEST_MATRIX = 1024


def by_rows(tile: Tile, height: int) -> bool:
    """Whether the gates of a tile see rows that are no whole strips, so that the map is squeezed row by row.

    Not where strips are ``running`` to their own ends, nor where one gate sees the whole map.

    Example:
        >>> [by_rows(Tile.parse(text), 14) for text in ("7xW:running", "1xW:running+6", "1xW:running+13")]
        [False, True, False]
    """
    return tile.slides and (tile.ahead != 0 or tile.above is not None) and not tile.sees_all(height)


def seen(rows: Tensor, tile: Tile) -> Tensor:
    """Means of the rows that each gate of a sliding tile sees.

    Args:
        rows: Means of the rows of a map, (N, C, H, 1).
        tile: A tile that slides.

    Returns:
        (N, C, strips, 1), differentiable.

    Example:
        >>> rows = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
        >>> seen(rows, Tile.parse("1xW:running+1")).flatten().tolist()
        [1.5, 3.0, 3.0]
    """
    return _means(rows, tile, False)


def own_of(rows: Tensor, tile: Tile) -> Tensor:
    """Means of the rows that wait for each gate, ``Tile.own_bounds``; otherwise as ``seen``.

    Example:
        >>> rows = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
        >>> own_of(rows, Tile.parse("1xW:running+1")).flatten().tolist()
        [1.5, 4.0, 6.0]
    """
    return _means(rows, tile, True)


def _means(rows: Tensor, tile: Tile, own: bool) -> Tensor:
    height = int(rows.shape[2])
    wide = rows.to(accumulation_type(rows.dtype))
    if height > TALLEST_MATRIX and is_eager(rows):
        return _by_sums(wide, tile, height, own).to(rows.dtype)
    return (shares(tile, height, wide, own) @ wide).to(rows.dtype)


def share(grad: Tensor, tile: Tile, height: int) -> Tensor:
    """What each row's mean gets of the descriptors' gradient: (N, C, strips, 1) to (N, C, H, 1); differentiable."""
    wide = grad.to(accumulation_type(grad.dtype))
    if height > TALLEST_MATRIX and is_eager(grad):
        return _share_by_sums(wide, tile, height).to(grad.dtype)
    return (shares(tile, height, wide).t() @ wide).to(grad.dtype)


def product_macs(tile: Tile, height: int) -> int:
    """Multiply-adds of the product with the matrix of shares, for one channel; 0 where there is none.

    Example:
        >>> product_macs(Tile.parse("1xW:running+6"), 14), product_macs(Tile.parse("7xW:running"), 14)
        (196, 0)
    """
    if tile.previous and tile.height is not None:
        return 2 * tile.tiles(height, 1) * height  # one for each of two frames
    return tile.tiles(height, 1) * height if by_rows(tile, height) else 0


def shares(tile: Tile, height: int, like: Tensor, own: bool = False) -> Tensor:
    """``Tile.weights``, or ``Tile.own_weights``, beside another tensor: (strips, H)."""
    if is_eager(like):
        return _kept(tile, height, like.dtype, like.device, own)
    return _constant(str(tile), height, own).to(device=like.device, dtype=like.dtype)


@lru_cache(maxsize=64)
def _kept(tile: Tile, height: int, dtype: torch.dtype, device: torch.device, own: bool) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(_weights(tile, height, own), dtype=dtype, device=device)


@torch.compiler.assume_constant_result
def _constant(tile: str, height: int, own: bool) -> Tensor:
    return torch.tensor(_weights(Tile.parse(tile), height, own).tolist(), dtype=torch.float64)


def _weights(tile: Tile, height: int, own: bool) -> np.ndarray:
    return tile.own_weights(height) if own else tile.weights(height)


def _by_sums(rows: Tensor, tile: Tile, height: int, own: bool) -> Tensor:
    """By sums from the first row to each, in float64: a window is a difference of two of them."""
    first, last = _ends(tile, height, rows.device, own)
    sums = torch.cat(
        [rows.new_zeros((*rows.shape[:2], 1, 1), dtype=torch.float64), rows.double().cumsum(2)], 2
    )
    total = sums.index_select(2, last)
    if own or tile.above is not None or tile.ahead < 0:
        total = total - sums.index_select(2, first)
    return (total / (last - first).view(-1, 1)).to(rows.dtype)


def _share_by_sums(grad: Tensor, tile: Tile, height: int) -> Tensor:
    """The same backwards: each strip's part begins at its first row and ends after its last."""
    first, last = _ends(tile, height, grad.device, False)
    part = grad.double() / (last - first).view(-1, 1)
    steps = (
        part.new_zeros((*grad.shape[:2], height + 1, 1)).index_add(2, first, part).index_add(2, last, -part)
    )
    return steps.cumsum(2)[:, :, :height].to(grad.dtype)


@lru_cache(maxsize=64)
def _ends(tile: Tile, height: int, device: torch.device, own: bool) -> tuple[Tensor, Tensor]:
    bounds = tile.own_bounds(height) if own else tile.bounds(height)
    with torch.inference_mode(False):
        first, last = torch.tensor(bounds, device=device).unbind(1)
        return first.clone(), last.clone()
