"""Correlations as values: of one block with one tile, and of a network; section 3.3 and figure 4 of the paper."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import written_whole
from ..plan import SEBlock
from ..tile import Tile
from .moments import Moments


@dataclass(frozen=True)
class Agreement:
    """Pearson's r between global and tile values.

    Args:
        all: Over all images, channels and tiles.
        centre: Over the centre half of the tiles.
        channels: Of each channel, over images and tiles; not-a-number where it does not vary.
        channels_centre: Likewise over the centre half.
        tiles: Of each tile, over images and channels, in reading order.
    """

    all: float
    centre: float
    channels: np.ndarray
    channels_centre: np.ndarray
    tiles: np.ndarray

    @classmethod
    def of(cls, moments: Moments, centre: np.ndarray) -> Agreement:
        """From moments in cells (channels, tiles)."""
        middle = moments.at(centre)
        return cls(
            float(moments.pooled((0, 1)).correlation()),
            float(middle.pooled((0, 1)).correlation()),
            moments.pooled(1).correlation(),
            middle.pooled(1).correlation(),
            moments.pooled(0).correlation(),
        )

    @property
    def channel(self) -> float:
        """Median over the channels that vary."""
        return _median(self.channels)

    @property
    def channel_centre(self) -> float:
        """Median over the channels that vary, centre half."""
        return _median(self.channels_centre)


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True)
class BlockCorrelation:
    """One block with one tile.

    Args:
        block: The block.
        tile: The tile.
        squeeze: Descriptors.
        excite: Gates.
        centre: Which tiles are the centre half.
        delta: Root mean square of (tile mean - global mean), over images, channels and tiles.
        expected: What that would be were the elements of a channel independent of each other: the root of the mean of
            sigma^2 * (1/n - 1/N), sigma^2 the variance in the channel's map, n elements in the tile and N in the map.
        sigma: Root mean square of the standard deviation in a channel's map.
        pairs: Drawn for figures, (number, 5): global and tile descriptor, global and tile gate, whether the tile is
            one of the centre half.
    """

    block: SEBlock
    tile: Tile
    squeeze: Agreement
    excite: Agreement
    centre: np.ndarray
    delta: float
    expected: float
    sigma: float
    pairs: np.ndarray = field(repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """delta / expected: 1 where elements are independent, above it where neighbours are alike."""
        return self.delta / self.expected if self.expected > 0 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; what is not a number is null."""
        return {
            "name": self.block.name,
            "tile": str(self.tile),
            "squeeze": _number(self.squeeze.all),
            "excite": _number(self.excite.all),
            "squeeze_centre": _number(self.squeeze.centre),
            "excite_centre": _number(self.excite.centre),
            "squeeze_channel": _number(self.squeeze.channel),
            "excite_channel": _number(self.excite.channel),
            "squeeze_channel_centre": _number(self.squeeze.channel_centre),
            "excite_channel_centre": _number(self.excite.channel_centre),
            "constant_gates": int(np.isnan(self.excite.channels).sum()),
            "tiles": len(self.centre),
            "centre_tiles": int(self.centre.sum()),
            "squeeze_tiles": [_number(r) for r in self.squeeze.tiles],
            "excite_tiles": [_number(r) for r in self.excite.tiles],
            "delta": self.delta,
            "delta_expected": self.expected,
            "sigma": self.sigma,
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Correlation:
    """The correlations of a network's blocks.

    Args:
        n: Images.
        blocks: One entry for each block and tile, blocks in order.
    """

    n: int
    blocks: tuple[BlockCorrelation, ...]

    def exponents(self) -> dict[str, float | None]:
        """For each block, how delta falls with the tile: the slope of log delta over log of 1/n - 1/N.

        Section 3.3 says delta is proportional to sqrt(sigma^2 / n): 0.5, independent elements. Tiles that cover the map
        have no delta and do not count; blocks with fewer than two others have no slope. One-strip tiles and running
        strips do not count.
        """
        found: dict[str, float | None] = {}
        for name in dict.fromkeys(entry.block.name for entry in self.blocks):
            points = [
                (np.log(e.expected), np.log(e.delta))
                for e in self.blocks
                if e.block.name == name and e.expected > 0 and e.delta > 0 and e.tile.squeeze == "tiles"
            ]
            x: np.ndarray = np.array(points).reshape(-1, 2)
            varied = len(x) > 1 and np.ptp(x[:, 0]) > 1e-9
            # log expected is half the log of (1/n - 1/N), but for sigma, which is the block's own.
            found[name] = float(np.polyfit(x[:, 0], x[:, 1], 1)[0] / 2) if varied else None
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "n": self.n,
            "blocks": [entry.to_dict() for entry in self.blocks],
            "delta_exponents": self.exponents(),
        }

    def save_channels(self, path: str | Path) -> None:
        """Write the correlations of each channel as CSV: block, tile, channel, squeeze, excite, and centre halves.

        Raises:
            TiledSEError: the file cannot be written.
        """
        with written_whole(path) as part_file, part_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["block", "tile", "channel", "squeeze", "excite", "squeeze_centre", "excite_centre"]
            )
            for e in self.blocks:
                columns = (
                    e.squeeze.channels,
                    e.excite.channels,
                    e.squeeze.channels_centre,
                    e.excite.channels_centre,
                )
                for channel, values in enumerate(zip(*columns)):
                    cells = ["" if np.isnan(v) else f"{v:.6f}" for v in values]
                    writer.writerow([e.block.name, str(e.tile), channel, *cells])
