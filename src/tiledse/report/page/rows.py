"""Rows of one block over time: each comes, waits for its gate, and leaves."""

from __future__ import annotations

import numpy as np

from ...tile import Tile


def leaving(tile: Tile, height: int, width: int) -> np.ndarray:
    """For each row of a map that comes row by row, how many rows must have come before it can leave.

    Args:
        tile: The tile.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        (height,) int64.

    Example:
        >>> leaving(Tile.parse("2xW"), 5, 9).tolist(), leaving(Tile.parse("1xW:running+1"), 4, 9).tolist()
        ([2, 2, 4, 4, 5], [2, 3, 4, 4])
    """
    row = np.arange(height)
    tall, _ = tile.scaled(height, width)
    needed = tile.bounds(height)[row // tall, 1]
    return np.asarray(np.maximum(needed, row + 1))


def most_held(leaves: np.ndarray) -> int:
    """Most rows that wait at once; a row that completes its gate is there for a moment itself.

    Example:
        >>> most_held(leaving(Tile.parse("1xW:running+6"), 28, 28))
        7
    """
    arrived = np.arange(1, len(leaves) + 1)
    gone = np.searchsorted(leaves, arrived, side="left")  # rows that had left before this one came
    return int((arrived - gone).max())


def outline(leaves: np.ndarray) -> list[tuple[int, int]]:
    """The area of what is held, as a polygon: x is rows that have come, y the row of the map.

    One side is the rows as they come; the other goes down with the rows as they leave.

    Example:
        >>> outline(np.array([2, 2, 4, 4]))
        [(0, 0), (2, 0), (2, 2), (4, 2), (4, 4)]
    """
    points = [(0, 0)]
    for row, when in enumerate(leaves.tolist()):
        points += [(when, row), (when, row + 1)]
    # Each row leaves when the next comes: a stair of single rows is drawn as the line that it is.
    if len(leaves) > 2 and len(set(leaves.tolist())) > len(leaves) // 2:
        points = [
            (0, 0),
            *((when, row) for row, when in enumerate(leaves.tolist())),
            (int(leaves[-1]), len(leaves)),
        ]
    return _straightened(points)


def _straightened(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for point in points:
        if kept and kept[-1] == point:
            continue
        while len(kept) > 1 and _turn(kept[-2], kept[-1], point) == 0:
            kept.pop()
        kept.append(point)
    return kept


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
