"""What a tile may be: sizes, what stands after the colon, and how the two go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from .errors import TiledSEError
from .notation import AXES, REST, Squeeze, shape, written

if TYPE_CHECKING:
    from .tile import Tile


def check(tile: Tile) -> None:
    """Check a tile.

    Raises:
        TiledSEError: a size below 1, an unknown squeeze, or one that does not go with the size.
    """
    if tile.axes not in AXES:
        raise TiledSEError(f"tile: expected 1 to 3 axes behind the channels, got {tile.axes!r}")
    if tile.axes != 2 and tile.width is not None:
        raise TiledSEError(f"tile {tile}: tiles of maps {shape(tile.axes)} divide the first axis only")
    rest = f"x{REST[tile.axes]}"
    for side in (tile.height, tile.width):
        if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < 1):
            raise TiledSEError(
                f"tile {tile}: expected sides of at least 1, got {side}; write "
                f"{'kxW, Hxk, kxk or HxW' if tile.axes == 2 else f'k{rest}'}"
            )
    if tile.squeeze not in get_args(Squeeze):
        raise TiledSEError(
            f"tile {tile}: expected 'upper', 'middle', 'running', 'window', 'previous' or 'two-step' after the colon, "
            f"got '{tile.squeeze}'"
        )
    if tile.squeeze == "two-step":
        if (tile.height, tile.width) != (None, None):
            raise TiledSEError(
                f"tile {tile}: ':two-step' is a form of the whole map's mean; write "
                f"{written(None, None, tile.axes)}:two-step"
            )
    elif tile.previous and tile.axes != 2:
        raise TiledSEError(
            f"tile {tile}: ':previous' is of frames that come to a network for images one at a time; for "
            f"maps {shape(tile.axes)} write 1{rest}:running, which goes on from frame to frame"
        )
    elif tile.previous and (tile.height, tile.width) == (None, None):
        if tile.ahead:
            raise TiledSEError(
                f"tile {tile}: a look-ahead needs strips of rows; write HxW:previous or 1xW:previous{tile.ahead:+d}"
            )
        return
    elif tile.squeeze != "tiles" and (tile.height is None or tile.width is not None):
        raise TiledSEError(
            f"tile {tile}: ':{tile.squeeze}' goes with strips of rows only; write k{rest}{tile.suffix}, "
            f"for example 7{rest}{tile.suffix}"
        )
    _check_rows_seen(tile)


def _check_rows_seen(tile: Tile) -> None:
    """Check look-ahead and rows above."""
    rest = f"x{REST[tile.axes]}"
    for number in (tile.ahead, 0 if tile.above is None else tile.above):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TiledSEError(f"tile: expected whole numbers of rows ahead and above, got {number!r}")
    if not tile.slides and not tile.previous:
        if tile.ahead or tile.above is not None:
            raise TiledSEError(
                f"tile {tile}: look-ahead and rows above go with ':running' and ':window' of row strips, not "
                f"with '{tile.squeeze}'; write for example 1{rest}:running+6 or 1{rest}:window-6+6"
            )
        return
    assert tile.height is not None  # checked before: strips of rows
    if (tile.squeeze == "window") != (tile.above is not None):
        raise TiledSEError(
            f"tile {tile}: ':window' needs the rows above and below, and ':running' sees all rows above; "
            f"write for example 1{rest}:window-6+6 or 1{rest}:running+6"
        )
    if tile.above is not None and tile.above < 0:
        raise TiledSEError(
            f"tile {tile}: expected rows above of 0 or more, got {tile.above}; "
            f"write for example 1{rest}:window-6+6"
        )
    if tile.ahead < -tile.height:
        raise TiledSEError(
            f"tile {tile}: expected a look-ahead of at least {-tile.height} (the rows above a strip of "
            f"{tile.height}), got {tile.ahead}"
        )
    if tile.above == 0 and tile.ahead <= 0:
        if tile.ahead == 0:
            raise TiledSEError(
                f"tile {tile}: a window without rows about the strip is the strip; write {tile.height}{rest}"
            )
        raise TiledSEError(
            f"tile {tile}: a negative look-ahead needs rows above the strip; write for example "
            f"{tile.height}{rest}:window-6{tile.ahead} or {tile.height}{rest}:running{tile.ahead}"
        )
