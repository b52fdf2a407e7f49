"""How well a tile stands in for the whole map: correlation after the squeeze and after the excitation.

Source: section 3.3 and figure 4 of the paper. Every block of the SE network is looked at as it stands, that is, with
plain SE in all others: its map gives the global descriptor, and the descriptor of each tile; the block's own excitation
gives their gates. Pairs (global, tile) of all images, channels and tiles are gathered in one pass; no map is kept.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TiledSEError
from ..files import written_whole
from ..plan import SEBlock
from ..tile import Tile
from .images import ImageSet
from .moments import Moments
from .processes import gather, part, together
from .subject import Subject
from .tasks import Progress, check_finite

PAIRS_AN_IMAGE = 8
IMAGES_DRAWN = 400


def centre_tiles(tile: Tile, height: int, width: int) -> np.ndarray:
    """Which tiles of a map are the centre half (figure 4: "the 50% of the centred tiles").

    Half of the tiles, rounded up, whose centres lie nearest to the map's; all that lie as near as the last of
    them belong to it. Nearness counts the farther of both axes, each relative to the map's side.

    Returns:
        (rows * cols,) of bool, in reading order.

    Example:
        >>> centre_tiles(Tile.parse("7xW"), 56, 56).tolist()
        [False, False, True, True, True, True, False, False]
    """
    rows, cols = tile.grid(height, width)
    if tile.single:
        return np.ones(1, bool)
    tall, wide = tile.size(height, width)

    def away(length: int, size: int, count: int) -> np.ndarray:
        starts = np.arange(count) * size
        ends = np.minimum(starts + size, length)
        return np.abs((starts + ends) / 2 - length / 2) / length

    far = np.maximum(away(height, tall, rows)[:, None], away(width, wide, cols)[None]).ravel()
    return far <= np.sort(far)[-(-len(far) // 2) - 1] + 1e-9


def tile_elements(tile: Tile, height: int, width: int) -> np.ndarray:
    """How many elements of a channel each descriptor is the mean of: (rows * cols,).

    Example:
        >>> tile_elements(Tile.parse("7xW:running"), 16, 10).tolist()
        [70, 140, 160]
    """
    if tile.single:
        first, stop = tile.rows(height)
        return np.array([(stop - first) * width])
    rows, cols = tile.grid(height, width)
    tall, wide = tile.size(height, width)
    high = np.diff(np.minimum(np.arange(rows + 1) * tall, height))
    across = np.diff(np.minimum(np.arange(cols + 1) * wide, width))
    if tile.squeeze == "running":
        high = np.cumsum(high)
    return (high[:, None] * across[None]).ravel()


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


class _Gathered:
    """What is kept of one block and tile while the images pass."""

    def __init__(self) -> None:
        self.squeeze: Moments | None = None
        self.excite: Moments | None = None
        self.delta = 0.0
        self.expected = 0.0
        self.sigma = 0.0
        self.number = 0
        self.pairs: list[np.ndarray] = []

    def merge(self, other: _Gathered) -> None:
        if other.squeeze is None or other.excite is None:
            return
        if self.squeeze is None or self.excite is None:
            self.squeeze, self.excite = other.squeeze, other.excite
        else:
            self.squeeze.merge(other.squeeze)
            self.excite.merge(other.excite)
        self.delta += other.delta
        self.expected += other.expected
        self.sigma += other.sigma
        self.number += other.number
        self.pairs += other.pairs


def correlate(
    subject: Subject,
    images: ImageSet,
    tiles: Sequence[Sequence[Tile]],
    *,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Correlation:
    """Correlate tiles with whole maps, in every SE block of a network, in one pass over the images.

    Memory does not grow with the images: it is some numbers for each channel and tile, and the pairs drawn for
    figures. Under torchrun each process takes its part; sums are then added in another order, so that the last digits
    may differ.

    Args:
        subject: The network.
        images: The images; labels are not looked at.
        tiles: For each block, the tiles to look at.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go.
        progress: Called with (images done, images in all or None) of this process.

    Raises:
        TiledSEError: an image cannot be read, outputs or maps are not finite (the image is named), there is no image.

    Example:
        >>> import tempfile, timm
        >>> from PIL import Image
        >>> from tiledse.measure.classification import open_unlabelled
        >>> from tiledse.measure.subject import TorchSubject
        >>> folder = Path(tempfile.mkdtemp())
        >>> for seed in range(4):
        ...     noise = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)
        ...     Image.fromarray(noise).save(folder / f"{seed}.png")
        >>> as_tensor = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        >>> subject = TorchSubject(timm.create_model("regnety_002").eval(), (3, 32, 32))
        >>> tiles = [[Tile.parse("HxW")]] * len(subject.plan)
        >>> found = correlate(subject, open_unlabelled(folder, as_tensor), tiles)
        >>> found.n, found.blocks[0].squeeze.all, found.blocks[0].delta
        (4, 1.0, 0.0)
    """
    if len(tiles) != len(subject.plan):
        raise TiledSEError(f"expected tiles for {len(subject.plan)} blocks, got {len(tiles)}")
    device = torch.device(device)

    def own() -> tuple[int, dict[tuple[int, int], _Gathered], list[tuple[float, tuple[int, ...]]]]:
        kept = {(b, t): _Gathered() for b in range(len(tiles)) for t in range(len(tiles[b]))}
        done, total = 0, images.count(max(batch_size, 1), part())
        drawn: list[tuple[float, tuple[int, ...]]] = []
        for batch in images.batches(batch_size, workers, part(), pin_memory=device.type == "cuda"):
            places = [tuple(place) for place in batch.places.tolist()]
            keys = [(float(np.random.default_rng([3, *place]).random()), place) for place in places]
            chosen = sorted([*drawn, *keys])[:IMAGES_DRAWN]
            # Images that others have pushed out give their pairs back.
            drawn = chosen

            def see(
                number: int, x: Tensor, names: Any = batch.names, keys: Any = keys, chosen: Any = chosen
            ) -> None:
                _look(subject, number, x, tiles[number], kept, names, keys, set(chosen))

            output = subject.observe(batch.inputs.to(device), see)
            check_finite(output, batch.names, "SE")
            done += len(batch.names)
            if progress is not None:
                progress(done, total)
        return done, kept, drawn

    parts = gather(together(own))
    number = sum(done for done, _, _ in parts)
    if number == 0:
        raise TiledSEError("no image to look at: the set is empty")
    whole: dict[tuple[int, int], _Gathered] = {}
    for _, kept, _ in parts:
        for key, gathered in kept.items():
            whole.setdefault(key, _Gathered()).merge(gathered)
    winners = {key for key, _ in sorted(entry for _, _, drawn in parts for entry in drawn)[:IMAGES_DRAWN]}
    entries = []
    for b, block in enumerate(subject.plan.blocks):
        for t, tile in enumerate(tiles[b]):
            entries.append(_entry(block, tile, whole[b, t], winners))
    return Correlation(number, tuple(entries))


def _look(
    subject: Subject,
    number: int,
    x: Tensor,
    tiles: Sequence[Tile],
    kept: dict[tuple[int, int], _Gathered],
    names: Sequence[str],
    keys: Sequence[tuple[float, tuple[int, ...]]],
    chosen: set[tuple[float, tuple[int, ...]]],
) -> None:
    """Take in the map of one block."""
    x = x.float()
    check_finite(x, names, "SE")
    height, width = x.shape[2:]
    whole = subject.squeeze(number, x, Tile.parse("HxW"))
    gates = subject.excite(number, whole)
    variance = x.double().var((2, 3), correction=0).cpu().numpy()
    first, first_gate = (_cells(value) for value in (whole, gates))
    for t, tile in enumerate(tiles):
        descriptors = subject.squeeze(number, x, tile)
        tiled, tiled_gate = _cells(descriptors), _cells(subject.excite(number, descriptors))
        share = 1 / tile_elements(tile, height, width) - 1 / (height * width)
        new = _Gathered()
        new.squeeze, new.excite = Moments.of(first, tiled), Moments.of(first_gate, tiled_gate)
        new.delta = float(((tiled - first) ** 2).sum())
        new.expected = float((variance[:, :, None] * share).sum())
        new.sigma = float(variance.sum()) * tiled.shape[2]
        new.number = tiled.size
        centre = centre_tiles(tile, height, width)
        for image, key in enumerate(keys):
            if key in chosen:
                rng = np.random.default_rng([5, *key[1]])
                c = rng.integers(0, tiled.shape[1], PAIRS_AN_IMAGE)
                j = rng.integers(0, tiled.shape[2], PAIRS_AN_IMAGE)
                rows = [
                    first[image, c, 0],
                    tiled[image, c, j],
                    first_gate[image, c, 0],
                    tiled_gate[image, c, j],
                ]
                keyed = np.stack([*rows, centre[j], np.full(len(c), key[0])], 1)
                new.pairs.append(keyed.astype(np.float64))
        into = kept[number, t]
        into.merge(new)
        if len(into.pairs) > 2 * IMAGES_DRAWN:
            into.pairs = sorted(into.pairs, key=lambda rows: rows[0, 5])[:IMAGES_DRAWN]


def _cells(values: Tensor) -> np.ndarray:
    """(N, C, rows, cols) as (N, C, tiles), float64."""
    return values.flatten(2).double().cpu().numpy()


def _entry(block: SEBlock, tile: Tile, gathered: _Gathered, winners: set[float]) -> BlockCorrelation:
    assert gathered.squeeze is not None
    assert gathered.excite is not None
    centre = centre_tiles(tile, block.height, block.width)
    pairs = [rows[:, :5] for rows in gathered.pairs if rows[0, 5] in winners]
    n = gathered.number
    return BlockCorrelation(
        block,
        tile,
        Agreement.of(gathered.squeeze, centre),
        Agreement.of(gathered.excite, centre),
        centre,
        float(np.sqrt(gathered.delta / n)),
        float(np.sqrt(max(gathered.expected, 0) / n)),
        float(np.sqrt(gathered.sigma / n)),
        np.concatenate(pairs) if pairs else np.zeros((0, 5)),
    )
