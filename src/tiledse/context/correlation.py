"""How well a tile stands in for the whole map: correlation after the squeeze and after the excitation.

Source: section 3.3 and figure 4 of the paper. Every block of the SE network is looked at as it stands, that is, with
plain SE in all others: its map gives the global descriptor, and the descriptor of each tile; the block's own excitation
gives their gates. Pairs (global, tile) of all images, channels and tiles are gathered in one pass; no map is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageSet
from ..errors import TiledSEError
from ..evaluate.processes import gather, part, together
from ..evaluate.tasks import Progress, check_finite
from ..network import Network
from ..opening import open as open_network
from ..plan import SEBlock
from ..tile import Tile
from .agreement import Agreement, BlockCorrelation, Correlation
from .moments import Moments
from .tile_grid import centre_tiles

PAIRS_AN_IMAGE = 8
IMAGES_DRAWN = 400


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
    model: Any,
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
        model: The network, or what ``tiledse.open`` takes.
        images: The images; labels are not looked at.
        tiles: For each block, the tiles to look at.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go.
        progress: Called with (images done, images in all or None) of this process.

    Raises:
        TiledSEError: an image cannot be read, outputs or maps are not finite (the image is named), there is no image.

    Example:
        >>> import tempfile, tiledse, timm
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from tiledse.evaluate.classification import open_unlabelled
        >>> folder = Path(tempfile.mkdtemp())
        >>> for seed in range(4):
        ...     noise = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)
        ...     Image.fromarray(noise).save(folder / f"{seed}.png")
        >>> as_tensor = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        >>> network = tiledse.open(timm.create_model("regnety_002").eval(), (3, 32, 32))
        >>> tiles = [[Tile.parse("HxW")]] * len(network.plan)
        >>> found = correlate(network, open_unlabelled(folder, as_tensor), tiles)
        >>> found.n, found.blocks[0].squeeze.all, found.blocks[0].delta
        (4, 1.0, 0.0)
    """
    network = open_network(model)
    if len(tiles) != len(network.plan):
        raise TiledSEError(f"expected tiles for {len(network.plan)} blocks, got {len(tiles)}")
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
                _look(network, number, x, tiles[number], kept, names, keys, set(chosen))

            output = network.observe(batch.inputs.to(device), see)
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
    for b, block in enumerate(network.plan.blocks):
        for t, tile in enumerate(tiles[b]):
            entries.append(_entry(block, tile, whole[b, t], winners))
    return Correlation(number, tuple(entries))


def _look(
    network: Network,
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
    whole = network.squeeze(number, x, Tile.parse("HxW"))
    gates = network.excite(number, whole)
    variance = x.double().var((2, 3), correction=0).cpu().numpy()
    first, first_gate = (_cells(value) for value in (whole, gates))
    for t, tile in enumerate(tiles):
        descriptors = network.squeeze(number, x, tile)
        tiled, tiled_gate = _cells(descriptors), _cells(network.excite(number, descriptors))
        share = 1 / tile.elements(height, width).ravel() - 1 / (height * width)
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
