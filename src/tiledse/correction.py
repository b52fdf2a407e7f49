"""Correction: the numbers with which calibration brings what a strip knows closer to the mean of the whole map."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import TiledSEError
from .numerals import text_of, whole
from .tile import Tile


@dataclass(frozen=True, eq=False)
class Correction:
    """A linear map for each channel and strip of one block, from what the strip knows to its descriptor.

    ``descriptor = own * mean over Tile.own_bounds + running * mean over Tile.bounds + offset``: of the rows that wait
    for the strip's gate (for ``kxW`` and ``kxW:running`` the strip), and of all rows seen. The numbers belong to
    strips at their places. So they hold for one tile and maps of one height, in a network with the weights that they
    were fitted on.

    Args:
        own: (C, strips), float32.
        running: Factor of the rows seen, (C, strips), float32; None for strips that see only their own (``kxW``).
        offset: (C, strips), float32.
        height: H of the maps.
        weights: What ``fingerprint`` says of the network's weights.
        tile: The tile; None in files that do not state it, which are older than look-ahead and windows.

    Raises:
        TiledSEError: arrays of different shapes, or numbers that are not finite.

    Example:
        >>> ones = np.ones((8, 4), np.float32)
        >>> Correction(0 * ones, ones, 0 * ones, 28, "").strips  # changes nothing for running strips
        4
    """

    own: np.ndarray
    running: np.ndarray | None
    offset: np.ndarray
    height: int
    weights: str
    tile: Tile | None = None

    def __post_init__(self) -> None:
        for name in ("own", "running", "offset"):
            array = getattr(self, name)
            if array is None and name == "running":
                continue
            array = np.ascontiguousarray(array, np.float32)
            if array.ndim != 2 or array.shape != np.shape(self.own) or not np.isfinite(array).all():
                raise TiledSEError(
                    f"a correction needs finite numbers of shape (channels, strips): '{name}' is {array.shape}, "
                    f"'own' is {np.shape(self.own)}; calibrate again"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.own.shape[0])

    @property
    def strips(self) -> int:
        """Strips of a map."""
        return int(self.own.shape[1])

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return self.own.size * (2 if self.running is None else 3)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; arrays as base64 of little-endian float32."""
        return {
            "height": self.height,
            "weights": self.weights,
            "tile": None if self.tile is None else str(self.tile),
            "shape": [self.channels, self.strips],
            "own": _text(self.own),
            "running": None if self.running is None else _text(self.running),
            "offset": _text(self.offset),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Correction:
        """Read what ``to_dict`` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        channels, strips = (whole(side, "shape", 1, 2**31 - 1) for side in data["shape"])
        shape = (channels, strips)
        running = None if data["running"] is None else _array(data["running"], shape)
        own, offset = _array(data["own"], shape), _array(data["offset"], shape)
        height, weights = whole(data["height"], "height"), text_of(data["weights"], "weights")
        tile = None if data.get("tile") is None else Tile.parse(data["tile"])
        return cls(own, running, offset, height, weights, tile)

    def _key(self) -> tuple[Any, ...]:
        running = None if self.running is None else self.running.tobytes()
        return (
            self.own.shape,
            self.own.tobytes(),
            running,
            self.offset.tobytes(),
            self.height,
            self.weights,
            self.tile,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Correction) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _array(text: str, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(shape).astype(np.float32)
