"""Why what pools a whole map is no SE block."""

from __future__ import annotations

NOT_MULTIPLIED = "what it pools is not multiplied back onto the map that was pooled"
NO_MEAN = "it gates each channel of a map by numbers that are made of the input, but by no mean that can be followed"
INLINE = "its squeeze, excitation and product are part of a larger forward"


class NoBlock(Exception):
    """Why a block is no SE block; ``inline``: it may be a part of it that is one."""

    def __init__(self, reason: str, inline: bool = False) -> None:
        super().__init__(reason)
        self.inline = inline
