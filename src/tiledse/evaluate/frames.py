"""Frames of videos, evaluated one after the other: which images belong together, and where a stream begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from torch import Tensor

from ..errors import TiledSEError
from ..network import Network
from ..plan import Plan
from .processes import part

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


def frame_of(name: str) -> tuple[str, int]:
    """The sequence that an image belongs to, and its place in it: its name without the last number, and this number.

    Raises:
        TiledSEError: the name has no number.

    Example:
        >>> frame_of("test/0001TP_008550.jpg"), frame_of("clip7/frame12.png")
        (('test/0001TP_.jpg', 8550), ('clip7/frame.png', 12))
    """
    path = PurePath(name)
    match = _NUMBERED.fullmatch(path.stem)
    if match is None:
        raise TiledSEError(
            f"image {name}: frames are named by their sequence and their number, such as 0001TP_008550.jpg; leave "
            "--frames out for images that are none"
        )
    return str(path.with_name(f"{match[1]}{match[3]}{path.suffix}").as_posix()), int(match[2])


def _nothing() -> None:
    """A network without states begins no stream."""


class Frames:
    """SE and one tiled form of a network on the frames of videos, one frame at a time.

    Args:
        network: The network.
        plan: Its tiles.

    Raises:
        TiledSEError: several processes are to share the images.
    """

    def __init__(self, network: Network, plan: Plan) -> None:
        if part() != (0, 1):
            raise TiledSEError(
                "frames are shown one after the other to one process; leave torchrun out, or evaluate each video alone"
            )
        self.se, self.video = network.tiled(network.se), network.tiled(plan)
        self._begin: Callable[[], None] = partial(network.begin, self.video) if plan.previous else _nothing
        self.sequences: list[str] = []
        self._last = -1

    def see(self, names: Sequence[str]) -> None:
        """Be told which frame comes next; begins another stream where it belongs to another video.

        Raises:
            TiledSEError: frames come in another order than that of their numbers.
        """
        (name,) = names
        sequence, number = frame_of(name)
        if not self.sequences or sequence != self.sequences[-1]:
            if sequence in self.sequences:
                raise TiledSEError(
                    f"image {name}: frames of '{sequence}' come in two parts, with another video between; put each "
                    "video in a folder of its own"
                )
            self.sequences.append(sequence)
            self._begin()
        elif number <= self._last:
            raise TiledSEError(
                f"image {name}: frame {number} of '{sequence}' comes after frame {self._last}; number frames with "
                "leading zeros, so that their names are in order"
            )
        self._last = number

    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """What SE gives on a frame, and what the tiled form gives."""
        yield self.se(inputs)
        yield self.video(inputs)
