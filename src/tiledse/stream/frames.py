"""Frames as rows: sound (C, T), clips and volumes (C, D, H, W) are streamed as images whose rows are frames.

A row graph has four axes. A frame of sound is a row of one column, one of a clip a row of H * W.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from ..plan import Plan


def row_shape(plan: Plan) -> tuple[int, ...]:
    """The axes behind the rows: (W,) of images, () of sound, (H, W) of clips and volumes."""
    return tuple(plan.input_size[2:])


def row_size(plan: Plan) -> tuple[int, int, int]:
    """(C, H, W) of what is streamed row by row: 80x1000 is (80, 1000, 1), and 3x16x224x224 is (3, 16, 50176)."""
    return plan.input_size[0], plan.input_size[1], prod(row_shape(plan))


def words(sides: Sequence[int]) -> tuple[str, str]:
    """What messages call what is streamed, and its rows, by the axes behind them.

    Example:
        >>> words(()), words((224,))
        (('sound', 'frames'), ('image', 'rows'))
    """
    return (("sound", "frames"), ("image", "rows"), ("clip", "frames"))[min(len(sides), 2)]


def as_rows(x: Any, sides: Sequence[int]) -> Any:
    """Frames (N, C, any number, *sides), a tensor or an array, as rows (N, C, any number, W); all else as it is."""
    fits = tuple(getattr(x, "shape", ()))[3:] == tuple(sides) and x.ndim == 3 + len(sides)
    return x.reshape(*x.shape[:3], prod(sides)) if fits and len(sides) != 1 else x


def expected(images: int, channels: int, sides: Sequence[int]) -> str:
    """The shape that frames must have, as messages write it.

    Example:
        >>> expected(1, 80, ()), expected(1, 3, (224,))
        ('(1, 80, frames)', '(1, 3, rows, 224)')
    """
    return f"({', '.join(map(str, (images, channels, words(sides)[1], *sides)))})"


class Frames(nn.Module):
    """A network of sound (N, C, T), or of clips (N, C, D, H, W), as one of images whose rows are frames.

    Args:
        network: The network.
        sides: Of a frame: () of sound, (H, W) of clips.
    """

    def __init__(self, network: nn.Module, sides: Sequence[int]) -> None:
        super().__init__()
        self.network, self.sides = network, tuple(sides)

    def forward(self, x: Any) -> Any:
        """(N, C, frames, product of the sides) to what the network gives for (N, C, frames, *sides)."""
        return self.network(x.reshape(*x.shape[:3], *self.sides))
