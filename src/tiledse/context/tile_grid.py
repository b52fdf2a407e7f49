"""Which tiles of a map are its centre half."""

from __future__ import annotations

import numpy as np

from ..tile import Tile


def centre_tiles(tile: Tile, height: int, width: int) -> np.ndarray:
    """Which tiles of a map are the centre half (figure 4: "the 50% of the centred tiles").

    Half of the tiles, rounded up, whose centres lie nearest to the map's; all that lie as near as the last of
    them belong to it. Nearness counts the farther of both axes, each relative to the map's side.

    Returns:
        (rows * cols,) of bool, in reading order.

    Example:
        >>> centre_tiles(Tile.parse("7xW"), 56, 56).tolist()
        [False, False, True, True, True, True, False, False]
    """
    rows, cols = tile.grid(height, width)
    if tile.single:
        return np.ones(1, bool)
    tall, wide = tile.size(height, width)

    def away(length: int, size: int, count: int) -> np.ndarray:
        starts = np.arange(count) * size
        ends = np.minimum(starts + size, length)
        return np.abs((starts + ends) / 2 - length / 2) / length

    far = np.maximum(away(height, tall, rows)[:, None], away(width, wide, cols)[None]).ravel()
    return far <= np.sort(far)[-(-len(far) // 2) - 1] + 1e-9
