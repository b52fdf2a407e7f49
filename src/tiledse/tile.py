"""Tile: the part of a map that one gate is computed from, in the paper's notation; and the geometry of tiles.

Everything that asks which rows a gate sees, how many, or with which weights asks here: ``bounds``, ``elements``,
``weights``; which of them are the strip's own and later ones: ``own_bounds``, ``own_weights``; which rows it scales:
``scaled``; what waits for it: ``held``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .errors import TiledSEError
from .notation import Squeeze, read, written
from .tile_checks import check


@dataclass(frozen=True, repr=False)
class Tile:
    """The tile of a tiled squeeze-and-excite block: what one gate scales, and which rows it is computed from.

    Written as in the paper (section 3.2, table 1), and printed back as it was written:

    ========================  ==========================================================================
    ``HxW``                   the whole map: plain SE
    ``7xW`` ``Hx7``           strips of 7 rows, of 7 columns
    ``7x7`` ``1x1``           patches; ``1x1`` is no pooling at all
    ``7xW:upper``             the first 7 rows gate the whole map (table 1, "upper")
    ``7xW:middle``            the 7 rows about the middle gate the whole map (table 1, "middle")
    ``7xW:running``           strip j is gated by the mean of all rows down to its own end
    ``1xW:running+6``         each row by the mean of all rows down to the sixth below it: look-ahead
    ``1xW:running-1``         each row by the rows above it only: negative look-ahead
    ``1xW:window-6+6``        each row by the 6 rows above it, itself and the 6 below it
    ``HxW:two-step``          plain SE, its mean taken over strips first, then over their means: the same numbers
    ``HxW:previous``          of video: the map by the mean of the previous frame's map
    ``1xW:previous+6``        each row by the rows of this frame down to the sixth below it, and by those of the
                              previous frame below that
    ``8xT`` ``T``             of sound, (C, T): 8 frames; all frames
    ``4xHxW`` ``DxHxW``       of volumes and video, (C, D, H, W): 4 slices or frames; the whole map
    ========================  ==========================================================================

    Tiles divide the first axis behind the channels: it is what "rows" are below, and the other axes together are the
    columns. So ``8xT:running``, ``1xT:window-6+6`` and ``1xHxW:running+2`` are what they are for rows, and two tiles
    that differ in their axes only are equal.

    A tile larger than the map is the map. Tiles at the lower and right edge are smaller where the size
    does not divide the map's, and are averaged over the elements that they have; so are rows seen that would lie
    outside of the map. A strip that would see no row at all (the first, with rows above only) sees its own.
    With ``previous`` a block keeps a state (``state``); the first frame of a stream has the tile ``first``.

    Args:
        height: Rows of a tile, or None for all rows of the map (``H``).
        width: Columns of a tile, or None for all columns of the map (``W``).
        squeeze: ``tiles`` (each tile by its own mean), ``upper``, ``middle``, ``running`` or ``window``, which take
            strips of rows only; ``two-step``, a form of the whole map; or ``previous``, which takes both.
        ahead: Look-ahead of ``running``, ``window`` and ``previous``: rows seen past the end of the strip. Below 0, as
            many rows of the strip's own end are not seen.
        above: Rows before the strip that a ``window`` sees; None for all else.
        axes: Axes of its maps behind the channels, 1 to 3. It is notation, and not compared.

    Raises:
        TiledSEError: a size below 1, an unknown squeeze, or one that does not go with the size.

    Example:
        >>> tile = Tile.parse("7xW")
        >>> str(tile), tile.size(56, 56), tile.grid(56, 56), tile.buffer(64, 56, 56)
        ('7xW', (7, 56), (8, 1), 25088)
        >>> Tile.parse("7xW:middle").rows(28)
        (10, 17)
        >>> Tile.parse("1xW:running+2").bounds(5).tolist()
        [[0, 3], [0, 4], [0, 5], [0, 5], [0, 5]]
    """

    height: int | None
    width: int | None
    squeeze: Squeeze = "tiles"
    ahead: int = 0
    above: int | None = None
    axes: int = field(default=2, compare=False)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def parse(cls, text: str | Tile) -> Tile:
        """Read the notation; a Tile is given back as it is.

        Raises:
            TiledSEError: the text is no tile.

        Example:
            >>> Tile.parse("Hx7")
            Tile.parse('Hx7')
            >>> Tile.parse("7x")
            Traceback (most recent call last):
            tiledse.errors.TiledSEError: no tile: '7x'; expected HEIGHTxWIDTH with H or a number...
        """
        if isinstance(text, Tile):
            return text
        return cls(*read(text))

    def __str__(self) -> str:
        return f"{written(self.height, self.width, self.axes)}{self.suffix}"

    def __repr__(self) -> str:
        return f"Tile.parse({str(self)!r})"

    @property
    def suffix(self) -> str:
        """What stands after the size: ``:running+6``, or nothing."""
        if self.squeeze == "tiles":
            return ""
        above = "" if self.above is None else f"-{self.above}"
        ahead = f"{self.ahead:+d}" if self.ahead or self.squeeze == "window" else ""
        return f":{self.squeeze}{above}{ahead}"

    def on(self, axes: int) -> Tile:
        """The same tile as it is written for maps of so many axes behind the channels.

        Example:
            >>> Tile.parse("8xT:running").on(2)
            Tile.parse('8xW:running')
        """
        return self if axes == self.axes else replace(self, axes=axes)

    @property
    def whole(self) -> bool:
        """Whether this is the tile of plain SE, ``HxW`` or ``HxW:two-step``: one gate, by the mean of the whole map."""
        return self.height is None and self.width is None and not self.previous

    @property
    def previous(self) -> bool:
        """Whether a gate is computed from the previous frame as well, so that a block keeps a state."""
        return self.squeeze == "previous"

    @property
    def first(self) -> Tile:
        """The tile of the first frame of a stream, which has no frame before it: rows that have come.

        Example:
            >>> str(Tile.parse("HxW:previous").first), str(Tile.parse("2xW:previous+3").first)
            ('1xW:running', '2xW:running+3')
        """
        return Tile(self.height or 1, None, "running", self.ahead) if self.previous else self

    @property
    def single(self) -> bool:
        """Whether one strip gates the whole map (``upper``, ``middle``)."""
        return self.squeeze in ("upper", "middle")

    @property
    def slides(self) -> bool:
        """Whether a strip's gate sees other rows than the strip's own (``running``, ``window``)."""
        return self.squeeze in ("running", "window")

    @property
    def strips(self) -> bool:
        """Whether these are strips of rows that each have a gate: ``kxW``, with or without other rows seen."""
        return self.height is not None and self.width is None and not self.single and not self.previous

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a full tile in a map of ``height`` x ``width``, never more than the map's.

        It is the map where every gate would see the whole map.
        """
        tall = height if self.height is None else min(self.height, height)
        wide = width if self.width is None else min(self.width, width)
        beyond = self.slides or (self.previous and self.height is not None)
        return (height if beyond and self.sees_all(height) else tall), wide

    def sees_all(self, height: int) -> bool:
        """Whether the gate of each strip sees all rows of the map."""
        assert self.height is not None  # strips of rows
        last = (height - 1) // self.height * self.height
        return self.height + self.ahead >= height and (self.above is None or self.above >= last)

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that one gate scales: a full tile, or the map for ``upper`` and ``middle``."""
        return (height, width) if self.single else self.size(height, width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of gates: ceil(H/h) x ceil(W/w), as figure A1 counts; (1, 1) for a single strip."""
        tall, wide = self.scaled(height, width)
        return -(-height // tall), -(-width // wide)

    def tiles(self, height: int, width: int) -> int:
        """How many gates a channel gets: N of section 3.2."""
        rows, cols = self.grid(height, width)
        return rows * cols

    def effect(self, height: int, width: int) -> tuple[object, ...]:
        """What the tile does to a map of one size: equal for tiles that do the same there.

        Example:
            >>> Tile.parse("7xW").effect(7, 7) == Tile.parse("HxW").effect(7, 7)
            True
        """
        if self.previous:
            this, before = self.shares_of_frames(height)
            return ("previous", str(this.tolist())) if before.any() else ("whole",)
        scaled, seen = self.scaled(height, width), self.bounds(height).tolist()
        return ("whole",) if scaled == (height, width) and seen == [[0, height]] else (scaled, str(seen))

    def rows(self, height: int) -> tuple[int, int]:
        """First row and the row after the last that the first gate is computed from.

        ``middle`` is centred; where it cannot be, it stands one row higher (rounded down).
        """
        if self.slides or self.previous:
            first, stop = self.bounds(height)[0].tolist()
            return first, stop
        tall, _ = self.size(height, 1)
        start = (height - tall) // 2 if self.squeeze == "middle" else 0
        return start, start + tall

    def bounds(self, height: int) -> np.ndarray:
        """Which rows of a map each row of gates is computed from.

        Returns:
            (rows of the grid, 2), int64: the first row, and the row after the last. Read only.

        Example:
            >>> Tile.parse("2xW:window-1+1").bounds(5).tolist()
            [[0, 3], [1, 5], [3, 5]]
        """
        return _bounds(self, height)

    def own_bounds(self, height: int) -> np.ndarray:
        """Which of those rows are the strip's own and later ones: what waits while the gate is computed.

        Where none is (rows above only), they are all that the gate is computed from.

        Returns:
            As ``bounds``.

        Example:
            >>> Tile.parse("1xW:running+2").own_bounds(5).tolist()
            [[0, 3], [1, 4], [2, 5], [3, 5], [4, 5]]
        """
        return _own_bounds(self, height)

    def own_weights(self, height: int) -> np.ndarray:
        """The share of each row in the mean over ``own_bounds``; shape as ``weights``."""
        return _own_weights(self, height)

    def weights(self, height: int) -> np.ndarray:
        """The share of each row in the mean that each row of gates is computed from.

        Returns:
            (rows of the grid, height), float64; each row adds up to 1. Read only.

        Example:
            >>> Tile.parse("1xW:running+1").weights(3).round(2).tolist()
            [[0.5, 0.5, 0.0], [0.33, 0.33, 0.33], [0.33, 0.33, 0.33]]
        """
        return _weights(self, height)

    def shares_of_frames(self, height: int) -> tuple[np.ndarray, np.ndarray]:
        """What the gates of a frame are the mean of, where a frame came before: the share of each row of both.

        A row that has not come counts as the previous frame's, which of ``HxW:previous`` are all.

        Returns:
            Two of (rows of the grid, height), float64: of this frame and of the one before; each row adds up to 1.

        Raises:
            TiledSEError: the tile sees one frame only.

        Example:
            >>> this, before = Tile.parse("1xW:previous-1").shares_of_frames(4)
            >>> this[2].tolist(), before[2].tolist()
            ([0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25])
        """
        if not self.previous:
            raise TiledSEError(f"tile {self}: its gates see one frame only; HxW:previous sees the one before")
        tall, _ = self.size(height, 1)
        tops = np.arange(-(-height // tall)) * tall
        stops = tops * 0 if self.height is None else tops + self.height + self.ahead
        seen = np.arange(height) < stops[:, None]
        return seen / height, ~seen / height

    def elements(self, height: int, width: int) -> np.ndarray:
        """How many elements of a channel each descriptor is the mean of.

        Returns:
            (rows, cols) of the grid, int64.

        Example:
            >>> Tile.parse("7xW:running").elements(16, 10).ravel().tolist()
            [70, 140, 160]
        """
        _, wide = self.scaled(height, width)
        _, cols = self.grid(height, width)
        across = np.diff(np.minimum(np.arange(cols + 1) * wide, width))
        return np.diff(self.bounds(height), axis=1) * across[None]

    def buffer(self, channels: int, height: int, width: int) -> int:
        """Elements that the gate holds until its tile is complete, tiles arriving one after the other.

        min(h, H) * min(w, W) * C: section 3.2, "Buffering". With a look-ahead of L rows, (h + L) rows, at most
        the map's; with rows above only, 0.
        """
        tall, wide = self.size(height, width)
        if self.previous:
            tall = self.held(height)
        elif self.slides and self.height is not None:
            tall = min(self.height + self.ahead, height)
        return tall * wide * channels

    def held(self, height: int) -> int:
        """Rows that a device holds for the gates to which the map comes row by row, at the most.

        Whole rows down to the end of the first tile: k rows for strips and patches, all rows for columns,
        the rows above it as well for ``middle``, (k + L) with a look-ahead. Where only rows above are seen, that is
        the first strip, which has none: k rows at the top of the map, and nothing later.

        With ``previous`` it is what frames after the first need; that one holds what ``first`` does.
        """
        if self.previous:
            return 0 if self.height is None else min(self.height + self.ahead, height)
        if self.single:
            return self.rows(height)[1]
        bounds = self.bounds(height)
        tops = np.arange(len(bounds)) * self.size(height, 1)[0]
        return int(np.max(bounds[:, 1] - tops))

    def state(self, height: int) -> int:
        """Numbers a channel that a block keeps from frame to frame: the mean of its map, or one of each row."""
        return 0 if not self.previous else 1 if self.height is None else height

    def row_sums(self, height: int) -> int:
        """Sums that a device keeps for each channel beside the rows that it holds.

        One for ``running`` and ``previous``, which add up all rows; for a ``window`` one for each row that a gate sees,
        since rows leave it again; else 0. They are not counted as buffer.
        """
        if self.above is None:
            return 1 if self.slides or self.previous else 0
        bounds = self.bounds(height)
        return int(np.max(bounds[:, 1] - bounds[:, 0]))

    def buffer_row_order(self, channels: int, height: int, width: int) -> int:
        """Elements that a device holds to which the map comes row by row: ``held`` rows of the map.

        Sums of rows (``row_sums``) are not counted as buffer.
        """
        return self.held(height) * width * channels


@lru_cache(maxsize=4096)
def _bounds(tile: Tile, height: int) -> np.ndarray:
    if tile.previous:
        raise TiledSEError(
            f"tile {tile}: its gates see the previous frame as well, which one map cannot show"
        )
    if tile.single:
        found = np.array([tile.rows(height)])
    else:
        tall, _ = tile.size(height, 1)
        tops = np.arange(-(-height // tall)) * tall
        starts, stops = tops, np.minimum(tops + tall, height)
        if tile.slides:
            first = tops * 0 if tile.above is None else np.maximum(tops - tile.above, 0)
            assert tile.height is not None  # strips of rows
            last = np.minimum(tops + tile.height + tile.ahead, height)
            some = last > first
            starts, stops = np.where(some, first, starts), np.where(some, last, stops)
        found = np.stack([starts, stops], 1)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=4096)
def _own_bounds(tile: Tile, height: int) -> np.ndarray:
    found = tile.bounds(height).copy()
    if tile.slides:
        tops = np.arange(len(found)) * tile.size(height, 1)[0]
        found[:, 0] = np.where(found[:, 1] > tops, np.maximum(found[:, 0], tops), found[:, 0])
    found.flags.writeable = False
    return found


@lru_cache(maxsize=32)
def _weights(tile: Tile, height: int) -> np.ndarray:
    return _shares(tile.bounds(height), height)


@lru_cache(maxsize=32)
def _own_weights(tile: Tile, height: int) -> np.ndarray:
    return _shares(tile.own_bounds(height), height)


def _shares(bounds: np.ndarray, height: int) -> np.ndarray:
    row = np.arange(height)
    inside = (row >= bounds[:, :1]) & (row < bounds[:, 1:])
    found: np.ndarray = inside / inside.sum(1, keepdims=True)
    found.flags.writeable = False
    return found
