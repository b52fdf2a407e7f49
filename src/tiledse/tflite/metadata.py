"""What a converted file says of its own tiles; believed only where its operators are those of the tile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..correction import Correction
from ..documents import read_json, write_json
from ..errors import TiledSEError
from ..tile import Tile
from .graph import Quantised
from .schema import schema

_KEY = "tiledse.tiles"


@dataclass(frozen=True)
class Stated:
    """What is stated of one block.

    Attributes:
        tile: Its tile.
        pool: What pooled the whole map: ``MEAN`` or ``AVERAGE_POOL_2D``.
        learnt: The correction of its descriptors.
        mean: The scale and zero point that its descriptors had, where they were not those of the map.
        biases: Biases that were written for the map's scale, and the tensors of the older ones.
    """

    tile: Tile
    pool: str
    learnt: Correction | None = None
    mean: Quantised | None = None
    biases: dict[int, int] = field(default_factory=dict)


def read_stated(tree: Any) -> dict[str, Stated]:
    """What a file states, by block; nothing where that cannot be read."""
    for entry in tree.metadata or ():
        if _text(entry.name) != _KEY or not 0 <= entry.buffer < len(tree.buffers):
            continue
        data = tree.buffers[entry.buffer].data
        try:
            blocks = read_json(bytes(np.asarray(data)).decode("utf-8"))
            return {name: _stated(said) for name, said in blocks.items()}
        except (ValueError, KeyError, TypeError, AttributeError, TiledSEError):
            return {}
    return {}


def write_stated(tree: Any, blocks: dict[str, Stated]) -> None:
    """State the tiles of a file; ``tree`` is that of a clone."""
    tree.metadata = [entry for entry in tree.metadata or () if _text(entry.name) != _KEY]
    if not blocks:
        return
    said = {
        name: {
            "tile": str(one.tile),
            "pool": one.pool,
            "learnt": None if one.learnt is None else one.learnt.to_dict(),
            "mean": None if one.mean is None else [one.mean.scale[0], one.mean.zero[0]],
            "biases": [[new, old] for new, old in one.biases.items()],
        }
        for name, one in blocks.items()
    }
    data = np.frombuffer(write_json(said).encode(), np.uint8)
    tree.buffers.append(schema().BufferT(data=data))
    tree.metadata.append(schema().MetadataT(name=_KEY.encode(), buffer=len(tree.buffers) - 1))


def _stated(said: Any) -> Stated:
    if said["pool"] not in ("MEAN", "AVERAGE_POOL_2D"):
        raise ValueError(said["pool"])
    learnt, mean = said["learnt"], said["mean"]
    return Stated(
        Tile.parse(said["tile"]), said["pool"], None if learnt is None else Correction.from_dict(learnt),
        None if mean is None else Quantised((float(mean[0]),), (int(mean[1]),)),
        {int(new): int(old) for new, old in said["biases"]},
    )  # fmt: skip


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
