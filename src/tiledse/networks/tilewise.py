"""What a block is to give with a tile, by the block as it was: called on each tile alone.

This knows nothing of the tiled operator: only which part of a map each gate is computed from and which part it scales,
as the tile says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..tile import Tile

Block = Callable[[Tensor], Tensor]

# Rows, and columns, of gates that are looked at: of more, the first, the last and some between.
_LOOKED_AT = 5


class Part(NamedTuple):
    """A rectangle of a map: rows and columns."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x: Tensor) -> Tensor:
        """A view of this part of a map (N, C, H, W)."""
        return x[:, :, self.top : self.bottom, self.left : self.right]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def inside(self, other: Part) -> bool:
        """Whether it lies in another part."""
        rows = other.top <= self.top and self.bottom <= other.bottom
        return rows and other.left <= self.left and self.right <= other.right


def parts(tile: Tile, height: int, width: int) -> list[tuple[Part, Part]]:
    """For some gates of a map: the part that the gate is computed from, and the part that it scales.

    Example:
        >>> [tuple(map(tuple, pair)) for pair in parts(Tile.parse("2xW:running"), 3, 4)]
        [((0, 2, 0, 4), (0, 2, 0, 4)), ((0, 3, 0, 4), (2, 3, 0, 4))]
    """
    bounds = tile.bounds(height)
    tall, wide = tile.scaled(height, width)
    rows, cols = tile.grid(height, width)
    found = []
    for row in some(rows):
        top, bottom = bounds[row].tolist()
        for col in some(cols):
            left, right = col * wide, min((col + 1) * wide, width)
            scaled = Part(row * tall, min((row + 1) * tall, height), left, right)
            found.append((Part(top, bottom, left, right), scaled))
    return found


def some(count: int) -> list[int]:
    """Numbers of rows, or columns, of gates to look at."""
    if count <= _LOOKED_AT:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_LOOKED_AT - 1)) for i in range(_LOOKED_AT)})


def by_tiles(block: Block, x: Tensor, tile: Tile, *, filled: bool = False) -> list[tuple[Part, Tensor]]:
    """What some parts of a map become, by an SE block called on each tile alone.

    Tiles of one size are folded into the batch, so the batch statistics of a call are those of all its tiles.

    Args:
        block: The block, (N, C, H, W) to the same shape.
        x: A map.
        tile: The tile.
        filled: For a block that takes no maps but of this very size: it gets maps that are filled so that mean and
            maximum are those of the tile. What its gate does to the tile follows from what it does to two elements.

    Returns:
        Parts of the map and what they become.
    """
    found = []
    groups: dict[tuple[int, int], list[tuple[Part, Part]]] = {}
    for pair in parts(tile, x.shape[2], x.shape[3]):
        groups.setdefault(pair[0].size, []).append(pair)
    if filled:
        groups = {(x.shape[2], x.shape[3]): [pair for group in groups.values() for pair in group]}
    for group in groups.values():
        seen = [_filled(seen.of(x), x) if filled else seen.of(x) for seen, _ in group]
        # Image by image, tile by tile: the order in which tiles are folded into a batch.
        batch = torch.stack(seen, 1).flatten(0, 1)
        outputs = block(batch.clone()).unflatten(0, (len(x), len(group))).unbind(1)
        for (given, scaled), before, after in zip(group, seen, outputs):
            if not filled and scaled.inside(given):
                own = Part(
                    scaled.top - given.top, scaled.bottom - given.top, scaled.left - given.left,
                    scaled.right - given.left,
                )  # fmt: skip
                found.append((scaled, own.of(after)))
            else:
                found.append((scaled, by_two_elements(scaled.of(x), before, after)))
    return found


def _filled(part: Tensor, like: Tensor) -> Tensor:
    """A map in the size of another with the mean and the maximum of a part: the maximum once, else one number."""
    height, width = like.shape[2:]
    mean, top = part.mean((2, 3)), part.amax((2, 3))
    count = height * width
    if count == 1:
        return mean[:, :, None, None]
    rest = (mean * count - top) / (count - 1)
    flat = rest[:, :, None].expand(-1, -1, count - 1)
    return torch.cat([top[:, :, None], flat], 2).unflatten(2, (height, width))


def by_two_elements(x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What a gate does to x, from what it did to the largest and the smallest element of each channel."""
    before, after = before.flatten(2), after.flatten(2)
    high, low = before.argmax(2, keepdim=True), before.argmin(2, keepdim=True)
    x1, x2 = before.gather(2, high), before.gather(2, low)
    y1, y2 = after.gather(2, high), after.gather(2, low)
    alike = x1 == x2  # a tile of one element: what a gate adds cannot be told from what it multiplies with
    slope = torch.where(alike, y1 / x1, (y1 - y2) / (x1 - x2))
    offset = torch.where(alike, 0.0, y1 - x1 * slope)
    return x * slope[..., None] + offset[..., None]
