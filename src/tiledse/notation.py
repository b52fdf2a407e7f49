"""How tiles and maps are written: ``7xW`` on (C, H, W), ``8xT`` on (C, T), ``4xHxW`` on (C, D, H, W)."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from .errors import TiledSEError

Squeeze = Literal["tiles", "upper", "middle", "running", "window", "two-step", "previous"]

# By the number of axes behind the channels: their names, and all of them but the first, which tiles divide.
AXES = {1: ("T",), 2: ("H", "W"), 3: ("D", "H", "W")}
REST = {1: "T", 2: "W", 3: "HxW"}

_NUMBER = r"\d{1,10}"
_PATTERN = re.compile(
    rf"(?:(?P<frames>{_NUMBER})xT|(?P<sound>T)|(?P<depth>D|{_NUMBER})xHxW|(?P<height>H|{_NUMBER})x(?P<width>W|{_NUMBER}))"
    r"(?::(?:(?P<seen>running|previous)(?P<below>[+-]\d{1,9})|window-(?P<above>\d{1,9})(?P<after>[+-]\d{1,9})|(?P<word>[a-z]+(?:-[a-z]+)?)))?"
)


class Written(NamedTuple):
    """A tile's text, read: what ``Tile`` takes, unchecked."""

    height: int | None
    width: int | None
    squeeze: Squeeze
    ahead: int
    above: int | None
    axes: int


def read(text: Any) -> Written:
    """Read the notation of a tile.

    Raises:
        TiledSEError: the text is no tile.

    Example:
        >>> read("8xT:running+2")
        Written(height=8, width=None, squeeze='running', ahead=2, above=None, axes=1)
    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise TiledSEError(
            f"no tile: {text!r:.80}; expected HEIGHTxWIDTH with H or a number of rows and W or a number of "
            "columns, such as 7xW, Hx7, 7x7 or HxW, and after kxW one of :upper, :middle, :running, "
            ":running+6, :window-6+6, :previous+6; or HxW:previous; of sound (C, T) kxT, of volumes "
            "and video (C, D, H, W) kxHxW"
        )
    part = match.groupdict()
    axes = 1 if part["frames"] or part["sound"] else 3 if part["depth"] else 2
    height, width = (
        int(side) if side and side.isdigit() else None
        for side in (part["frames"] or part["depth"] or part["height"], part["width"])
    )
    if part["below"] is not None:
        return Written(height, width, part["seen"], int(part["below"]), None, axes)  # type: ignore[arg-type]  # of two
    if part["above"] is not None:
        return Written(height, width, "window", int(part["after"]), int(part["above"]), axes)
    return Written(height, width, part["word"] or "tiles", 0, None, axes)  # type: ignore[arg-type]  # checked later


def written(height: int | None, width: int | None, axes: int) -> str:
    """The size of a tile as text.

    Example:
        >>> written(8, None, 1), written(7, None, 2), written(None, None, 3)
        ('8xT', '7xW', 'DxHxW')
    """
    if axes == 1:
        return "T" if height is None else f"{height}xT"
    first = AXES[axes][0] if height is None else str(height)
    return f"{first}x{REST[axes] if width is None else width}"


def shape(axes: int) -> str:
    """The shape of a map or of an input, in letters.

    Example:
        >>> shape(1), shape(3)
        ('(C, T)', '(C, D, H, W)')
    """
    return f"(C, {', '.join(AXES[axes])})"
