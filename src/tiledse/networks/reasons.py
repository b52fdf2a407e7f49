"""Why what pools a whole map is no SE block."""

from __future__ import annotations

from collections.abc import Collection

NOT_MULTIPLIED = "what it pools is not multiplied back onto the map that was pooled"
NO_MEAN = "it gates each channel of a map by numbers that are made of the input, but by no mean that can be followed"
INLINE = "its squeeze, excitation and product are part of a larger forward"


def partial(over: Collection[int], axes: int) -> str:
    """Why a mean over some axes of a map is no squeeze.

    Example:
        >>> partial({3}, 4)
        'it gates its map by means over axis 3 of 4 alone, more than one a channel; expected a mean over all axes ...'
    """
    which = f"ax{'i' if len(over) == 1 else 'e'}s {' and '.join(map(str, sorted(over)))}"
    return (
        f"it gates its map by means over {which} of {axes} alone, more than one a channel; expected a mean over all "
        "axes but batch and channels"
    )


class NoBlock(Exception):
    """Why a block is no SE block; ``inline``: it may be a part of it that is one."""

    def __init__(self, reason: str, inline: bool = False) -> None:
        super().__init__(reason)
        self.inline = inline
