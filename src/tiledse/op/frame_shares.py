"""The shares of the rows of two frames in the gates of strips, as tensors: see ``Tile.shares_of_frames``."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..tile import Tile
from .grids import is_eager


def shares_of_frames(tile: Tile, height: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``Tile.shares_of_frames`` beside another tensor, made once for each tile and height.

    Args:
        tile: A tile with ``previous``.
        height: Rows of the map.
        like: The tensor.
        dtype: The type of the shares.

    Returns:
        (2, H, strips): of this frame and of the one before, to be multiplied with means of rows (N, C, H).

    Example:
        >>> shares_of_frames(Tile.parse("1xW:previous-1"), 2, torch.zeros(1), torch.float32).tolist()
        [[[0.0, 0.5], [0.0, 0.0]], [[0.5, 0.0], [0.5, 0.5]]]
    """
    if is_eager(like):
        return _kept(tile, height, dtype, like.device)
    return _constant(str(tile), height).to(device=like.device, dtype=dtype)


@lru_cache(maxsize=64)
def _kept(tile: Tile, height: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _table(tile, height).to(device=device, dtype=dtype)


@torch.compiler.assume_constant_result
def _constant(tile: str, height: int) -> Tensor:
    return _table(Tile.parse(tile), height)


def _table(tile: Tile, height: int) -> Tensor:
    return torch.tensor([share.T.tolist() for share in tile.shares_of_frames(height)], dtype=torch.float64)
