"""What a converted file says of itself: the tiles of its blocks."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from ..documents import read_json
from ..errors import TiledSEError
from ..tile import Tile

METADATA_KEY = "tiledse.tiles"
WEIGHTS_KEY = "tiledse.calibrated_weights"
TARGET_KEY = "tiledse.target"


class Stated(NamedTuple):
    """What a converted file says of a block: its tile, and the operator that pooled the whole map before."""

    tile: Tile
    pool: str


def stated_tiles(model: ir.Model) -> dict[str, Stated]:
    """The tiles that a converted file says it has; the graph decides whether that is so."""
    try:
        entries = read_json(model.metadata_props.get(METADATA_KEY, "{}"))
        return {str(name): Stated(Tile.parse(tile), str(pool)) for name, (tile, pool) in entries.items()}
    except (ValueError, TypeError, AttributeError, TiledSEError):  # not ours: the graph is read without it
        return {}
