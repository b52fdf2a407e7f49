"""Tile: the part of a map that one gate is computed from, in the paper's notation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import TiledSEError

Squeeze = Literal["tiles", "upper", "middle", "running"]

_PATTERN = re.compile(r"(H|\d+)x(W|\d+)(?::([a-z]+))?")


@dataclass(frozen=True)
class Tile:
    """The tile of a tiled squeeze-and-excite block: its size, and which rows are squeezed.

    Written as in the paper (section 3.2, table 1), and printed back as it was written:

    ========================  ==========================================================================
    ``HxW``                   the whole map: plain SE
    ``7xW`` ``Hx7``           strips of 7 rows, of 7 columns
    ``7x7`` ``1x1``           patches; ``1x1`` is no pooling at all
    ``7xW:upper``             the first 7 rows gate the whole map (table 1, "upper")
    ``7xW:middle``            the 7 rows about the middle gate the whole map (table 1, "middle")
    ``7xW:running``           strip j is gated by the mean of all rows down to its own end
    ========================  ==========================================================================

    A tile larger than the map is the map. Tiles at the lower and right edge are smaller where the size
    does not divide the map's, and are averaged over the elements that they have.

    Args:
        height: Rows of a tile, or None for all rows of the map (``H``).
        width: Columns of a tile, or None for all columns of the map (``W``).
        squeeze: ``tiles`` (each tile by its own mean), ``upper``, ``middle`` or ``running``; the last
            three take strips of rows only.

    Raises:
        TiledSEError: a size below 1, an unknown squeeze, or one that does not go with the size.

    Example:
        >>> tile = Tile.parse("7xW")
        >>> str(tile), tile.size(56, 56), tile.grid(56, 56), tile.buffer(64, 56, 56)
        ('7xW', (7, 56), (8, 1), 25088)
        >>> Tile.parse("7xW:middle").rows(28)
        (10, 17)
    """

    height: int | None
    width: int | None
    squeeze: Squeeze = "tiles"

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < 1):
                raise TiledSEError(
                    f"tile {self}: expected sides of at least 1, got {side}; write kxW, Hxk, kxk or HxW"
                )
        if self.squeeze not in get_args(Squeeze):
            raise TiledSEError(
                f"tile {self}: expected 'upper', 'middle' or 'running' after the colon, got '{self.squeeze}'"
            )
        if self.squeeze != "tiles" and (self.height is None or self.width is not None):
            raise TiledSEError(
                f"tile {self}: ':{self.squeeze}' goes with strips of rows only; write kxW:{self.squeeze}, "
                f"for example 7xW:{self.squeeze}"
            )

    @classmethod
    def parse(cls, text: str | Tile) -> Tile:
        """Read the notation; a Tile is given back as it is.

        Raises:
            TiledSEError: the text is no tile.

        Example:
            >>> Tile.parse("Hx7")
            Tile(height=None, width=7, squeeze='tiles')
            >>> Tile.parse("7x")
            Traceback (most recent call last):
            tiledse.errors.TiledSEError: no tile: '7x'; expected HEIGHTxWIDTH with H or a number...
        """
        if isinstance(text, Tile):
            return text
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise TiledSEError(
                f"no tile: {text!r}; expected HEIGHTxWIDTH with H or a number of rows and W or a number of "
                "columns, such as 7xW, Hx7, 7x7 or HxW, and after kxW one of :upper, :middle, :running"
            )
        height, width, squeeze = match.groups()
        return cls(
            None if height == "H" else int(height),
            None if width == "W" else int(width),
            squeeze or "tiles",  # type: ignore[arg-type]  # checked when made
        )

    def __str__(self) -> str:
        suffix = "" if self.squeeze == "tiles" else f":{self.squeeze}"
        return f"{'H' if self.height is None else self.height}x{'W' if self.width is None else self.width}{suffix}"

    @property
    def whole(self) -> bool:
        """Whether this is ``HxW``, the tile of plain SE."""
        return self.height is None and self.width is None

    @property
    def single(self) -> bool:
        """Whether one strip gates the whole map (``upper``, ``middle``)."""
        return self.squeeze in ("upper", "middle")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a full tile in a map of ``height`` x ``width``, never more than the map's."""
        tall = height if self.height is None else min(self.height, height)
        wide = width if self.width is None else min(self.width, width)
        return tall, wide

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of gates: ceil(H/h) x ceil(W/w), as figure A1 counts; (1, 1) for a single strip."""
        if self.single:
            return 1, 1
        tall, wide = self.size(height, width)
        return -(-height // tall), -(-width // wide)

    def tiles(self, height: int, width: int) -> int:
        """How many gates a channel gets: N of section 3.2."""
        rows, cols = self.grid(height, width)
        return rows * cols

    def rows(self, height: int) -> tuple[int, int]:
        """First row and the row after the last that the first gate is computed from.

        ``middle`` is centred; where it cannot be, it stands one row higher (rounded down).
        """
        tall, _ = self.size(height, 1)
        start = (height - tall) // 2 if self.squeeze == "middle" else 0
        return start, start + tall

    def buffer(self, channels: int, height: int, width: int) -> int:
        """Elements that the gate holds until its tile is complete, tiles arriving one after the other.

        min(h, H) * min(w, W) * C: section 3.2, "Buffering".
        """
        tall, wide = self.size(height, width)
        return tall * wide * channels

    def buffer_row_order(self, channels: int, height: int, width: int) -> int:
        """Elements that a device holds to which the map comes row by row.

        Whole rows down to the end of the first tile: k rows for strips and patches, all rows for columns,
        the rows above it as well for ``middle``. ``running`` holds k rows; its sums (one a channel) are
        not counted as buffer.
        """
        return self.rows(height)[1] * width * channels
