"""A block that is tried alone: maps that are like one of its tiles each, and the gates that they should give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from ..correction import Correction
from ..plan import SEBlock
from ..tile import Tile
from .comparing import distance, relative
from .cutting import Ends
from .finder import Finding, Place

# Tiles of a block that are tried: the first, the last and one between.
_TRIED = 3


@dataclass(frozen=True)
class Trial:
    """A block to try.

    Attributes:
        block: It.
        tile: What it was given.
        learnt: The correction of its descriptors.
        place: Where it stands in the network as it was.
    """

    block: SEBlock
    tile: Tile
    learnt: Correction | None
    place: Place

    @property
    def ends(self) -> Ends:
        """Its map and its product."""
        return Ends(self.place.squeeze.source.name or "", self.place.product.outputs[0].name or "")


class Tiles:
    """Some tiles of one block on one map: the maps that are like each of them, and what comes of them."""

    def __init__(self, trial: Trial, x: np.ndarray) -> None:
        self.trial, self.raw = trial, x
        axes = (0, *trial.place.squeeze.axes)
        self.back = tuple(np.argsort(axes))
        self.x = x.transpose(axes).astype(np.float64)
        n, _, h, w = self.x.shape
        rows, cols = trial.tile.grid(h, w)
        count = rows * cols
        self.tiles = [divmod(i, cols) for i in sorted({0, count // 2, count - 1})][:_TRIED]
        self.rounds = -(-len(self.tiles) // n)

    def _spans(self, row: int, col: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Rows that a gate is computed from, its columns, and the rows that it meets."""
        _, _, h, w = self.x.shape
        tile = self.trial.tile
        tall, wide = (h, w) if tile.single else tile.scaled(h, w)
        seen = tile.bounds(h)[row]
        cols = (col * wide, min((col + 1) * wide, w))
        return (int(seen[0]), int(seen[1])), cols, (row * tall, min((row + 1) * tall, h))

    def _picked(self, round_: int) -> list[tuple[int, int]]:
        n = self.x.shape[0]
        return list(islice(cycle(self.tiles), round_ * n, (round_ + 1) * n))

    def maps(self, round_: int) -> np.ndarray:
        """For each of n tiles a map as large as the block's that holds the tile over and over, and nothing else."""
        n, c, h, w = self.x.shape
        made = np.empty(self.x.shape)
        for i, (row, col) in enumerate(self._picked(round_)):
            (top, bottom), (left, right), _ = self._spans(row, col)
            tile = self.x[i % n][:, top:bottom, left:right]
            mean = self._descriptor(i % n, row, tile)
            made[i] = mean[:, None, None]
            times = h // (bottom - top), w // (right - left)
            many = np.tile(tile, (1, *times))
            # What no whole tile fits into holds the mean; a correction moves the mean of it all.
            made[i][:, : many.shape[1], : many.shape[2]] = (
                many + (mean - many.reshape(c, -1).mean(1))[:, None, None]
            )
            # A channel that is zero there (after a ReLU) would show no gate: two numbers that cancel show it.
            dead = ~made[i].reshape(c, -1).any(1)
            flat = made[i].reshape(c, -1)
            if flat.shape[1] > 1:
                flat[dead, 0], flat[dead, -1] = 1, -1
        return made.transpose(self.back).astype(self.raw.dtype)

    def _descriptor(self, image: int, row: int, tile: np.ndarray) -> np.ndarray:
        """What the gates of a tile are computed from, (C,)."""
        learnt, height = self.trial.learnt, self.x.shape[2]
        if learnt is None:
            return tile.reshape(len(tile), -1).mean(1)
        rows = self.x[image].mean(2)
        total = learnt.own[:, row] * (rows @ self.trial.tile.own_weights(height)[row]) + learnt.offset[:, row]
        if learnt.running is not None:
            total = total + learnt.running[:, row] * (rows @ self.trial.tile.weights(height)[row])
        return total

    def gates(self, maps: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, float]:
        """The gates (n, C) that made products of maps, and how far these are from being such products."""
        axes = (0, *self.trial.place.squeeze.axes)
        x = maps.transpose(axes).astype(np.float64)
        y = products.transpose(np.argsort(self.trial.place.layout)).astype(np.float64)
        square = (x * x).sum((2, 3))
        gates = (x * y).sum((2, 3)) / np.where(square > 0, square, 1)
        return gates, relative(y, gates[:, :, None, None] * x)

    def difference(self, gates: np.ndarray, product: np.ndarray) -> float:
        """The relative difference of a product, where the tiles are, from the map times gates."""
        y = product.transpose(np.argsort(self.trial.place.layout))
        n, far = len(self.x), 0.0
        largest = float(np.abs(y[np.isfinite(y)]).max(initial=0.0)) or 1.0
        for i, (row, col) in enumerate(self._each(len(gates))):
            _, (left, right), (top, bottom) = self._spans(row, col)
            there = (i % n, slice(None), slice(top, bottom), slice(left, right))
            far = max(far, distance(self.x[there] * gates[i][:, None, None], y[there]) / largest)
        return far

    def _each(self, count: int) -> Iterator[tuple[int, int]]:
        return islice(cycle(self.tiles), count)


def random_map(trial: Trial, found: Finding, generator: np.random.Generator) -> np.ndarray:
    """Random numbers in the shape of a block's map, whose rows and columns have means of their own."""
    source = trial.place.squeeze.source
    shape = found.shapes.of(source)
    assert shape is not None
    if found.shapes.fixed(source, 0) is None and shape[0] == 1:
        shape = (_TRIED, *shape[1:])
    x = generator.standard_normal(shape)
    for axis in range(1, 4):
        x = x + generator.standard_normal([d if i == axis else 1 for i, d in enumerate(shape)])
    return x.astype(found.shapes.type(source).numpy())
