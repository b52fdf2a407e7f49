"""What a step says of itself, in the metadata of its file: shapes, state, outputs, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from ...documents import read_json, write_json
from ...errors import TiledSEError
from .module import State

FORMAT = "tiledse.step/2"
KEY = "tiledse.step"


@dataclass(frozen=True)
class Head:
    """An output of the network.

    Args:
        name: Where it stands among the outputs.
        shape: Of what a step gives.
        row_dim: The axis of its rows; None for one that comes once, when the image has ended.
    """

    name: str
    shape: tuple[int, ...]
    row_dim: int | None


@dataclass(frozen=True)
class Header:
    """What a runner must know of a step.

    Args:
        rows: Rows of the image for a step: each begins so many after the one before.
        unit: The fewest that it could be.
        window: Rows of the image that it is given, some of them once more.
        begin: The number of the first of them in the first step: 0, or below.
        images: Images at once.
        channels: Of the image.
        width: Of the image.
        height: Rows of each image; None where it may be any.
        multiple: What the height must be a multiple of.
        least: The fewest rows of an image.
        latency: Rows of the image after which its first rows have come through to every output.
        middle_from: The first row of the image from which the step without edges may be taken.
        states: What it hands to the next.
        heads: Its outputs.
        tiles: By block.
        identity: Of the network, its weights, the tiles and the schedule; a state goes with no other.
        versions: Of what made it.
        sides: The axes behind the rows: (W,) of images, () of sound, (H, W) of clips; None is (W,).
    """

    rows: int
    unit: int
    window: int
    begin: int
    images: int
    channels: int
    width: int
    height: int | None
    multiple: int
    least: int
    latency: int
    middle_from: int
    states: tuple[State, ...]
    heads: tuple[Head, ...]
    tiles: Mapping[str, str]
    identity: str
    versions: Mapping[str, str]
    sides: tuple[int, ...] | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The axes behind the rows."""
        return (self.width,) if self.sides is None else self.sides

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Of the input ``image``."""
        return self.images, self.channels, self.window, *self.row_shape

    @property
    def state_elements(self) -> int:
        """Numbers of the whole state."""
        total = 0
        for state in self.states:
            count = 1
            for side in state.shape:
                count *= side
            total += count
        return total

    def to_json(self) -> str:
        """As JSON."""
        return write_json({"format": FORMAT, **asdict(self)})


def read_header(text: str | None, name: str) -> Header:
    """The header of a file.

    Raises:
        TiledSEError: the file is no step, or its header was changed.
    """
    if text is None:
        raise TiledSEError(
            f"{name} is no step; make one with: tiledse stream MODEL --tile T --rows R --export {name}"
        )
    try:
        given = read_json(text)
        if given.pop("format") != FORMAT:
            raise ValueError(f"expected {FORMAT}")
        given["states"] = tuple(State(**{**s, "shape": _shape(s["shape"])}) for s in given["states"])
        given["heads"] = tuple(Head(**{**h, "shape": _shape(h["shape"])}) for h in given["heads"])
        sides = given.pop("sides", None)
        header = Header(**given, sides=None if sides is None else _shape(sides))
        _check(header)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TiledSEError(f"{name} has a damaged header ({error}); export the step again") from error
    return header


def _shape(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(side) is int and side > 0 for side in given):
        raise ValueError(f"expected a shape, got {given!r:.60}")
    return tuple(given)


def _check(header: Header) -> None:
    for name in ("rows", "unit", "window", "images", "channels", "width", "multiple", "least"):
        number = getattr(header, name)
        if type(number) is not int or number < 1:
            raise ValueError(f"expected {name} to be a number from 1 on, got {number!r:.60}")
    if prod(header.row_shape) != header.width:
        raise ValueError(f"its rows have {header.width} numbers a channel, and the shape {header.row_shape}")
    if header.rows % header.unit or not header.heads or type(header.begin) is not int or header.begin > 0:
        raise ValueError("its rows and outputs do not go together")
