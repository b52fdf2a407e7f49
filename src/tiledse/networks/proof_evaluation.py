"""Prove a block in evaluation: tile by tile, with one tile over the map, and what becomes of the map it is given."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tile import Tile
from .block import Way
from .block_trial import BlockTrial, Unproven, said
from .tilewise import Part, by_tiles

# Larger than any map, and a tile larger than the map is the map: SE, computed by the tiled operator.
ONE_TILE = Tile(10**9, 10**9)

# Elements of the map that a block is tried on; larger maps are cut, tall enough for several tiles.
_LARGEST = 1 << 15
# Rows or columns of a map that is cut, where a tile has all of them.
_FEW = 6


def cut(tile: Tile, size: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of the map that a block is tried on: its own, or fewer where that is large."""
    channels, height, width = size
    if channels * height * width <= _LARGEST:
        return height, width
    tall, wide = tile.size(height, width)
    rows, cols = (
        max(3 * part, _FEW) + side % part if part < side else _FEW
        for part, side in ((tall, height), (wide, width))
    )
    return min(height, rows), min(width, cols)


def writes(trial: BlockTrial, x: Tensor) -> tuple[bool, Tensor]:
    """Whether the block writes its product into the map that it is given; and its product.

    Raises:
        Unproven: it gives no map, values that are not finite, or does something else to its map.
    """
    given = x.clone()
    with torch.no_grad():
        try:
            y = trial.call(trial.old(), given)
        except Exception:  # a block that takes maps of its own size only: whatever its layers raise
            trial.filled = True
            given = trial.map(2, *trial.size[1:])
            x = given.clone()
            with said("the block itself fails on a map of its size"):
                y = trial.call(trial.old(), given)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        raise Unproven("it does not give back one map of the size that it gets")
    if not y.isfinite().all():
        raise Unproven("it gives values that are not finite")
    if torch.equal(given, x):
        return False, y
    if y.data_ptr() != given.data_ptr():
        raise Unproven("it changes the map that it is given, and gives back another")
    return True, y


def prove_evaluation(trial: BlockTrial, way: Way, x: Tensor, y: Tensor) -> None:
    """Check the block in eval mode: tile by tile, and with one tile over the map."""
    old = trial.old()

    def alone(part: Tensor) -> Tensor:
        return trial.call(old, part)

    with torch.no_grad():
        try:
            if trial.filled:
                raise ValueError
            expected = by_tiles(alone, x, trial.tile)
        except Exception:  # as above
            trial.filled = True
            if x.shape[2:] != trial.size[1:]:
                x = trial.map(2, *trial.size[1:])
            with said("the block itself fails on a map of its size"):
                y = trial.call(old, x.clone())
                expected = by_tiles(alone, x, trial.tile, filled=True)
        whole = [(Part(0, x.shape[2], 0, x.shape[3]), y)]
        for tile, wanted in ((trial.tile, expected), (ONE_TILE, whole)):
            given = x.clone()
            with said("with tiles it fails"):
                got = trial.call(trial.new(tile, way), given)
            which = "one tile over the map" if tile is ONE_TILE else f"tiles {tile}"
            trial.compare(
                got, wanted, f"with {which} it gives other numbers than its own forward on each tile"
            )
            if not torch.equal(given, got if way.inplace else x):
                raise Unproven("with tiles it treats the map that it is given in another way")
