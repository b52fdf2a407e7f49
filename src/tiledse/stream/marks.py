"""Marks: SE blocks written as two operators, squeeze and scale, that stay whole when the network is traced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks.block import TiledBlock
from ..op.correction import correct
from ..op.functional import Reduce, mean, mean_and_max
from ..op.functional import scale as scale_tiles
from ..op.functional import squeeze as squeeze_tiles
from ..op.module import TiledSqueezeExcite
from ..tile import Tile

REDUCES = {"mean": mean, "mean_and_max": mean_and_max}


@torch.library.custom_op("tiledse_stream::squeeze", mutates_args=())
def squeeze(x: Tensor, tile: str, reduce: str, block: str) -> Tensor:
    """Descriptors of the tiles of a block."""
    descriptors = squeeze_tiles(x, tile, REDUCES[reduce])
    return descriptors.expand(-1, -1, *_grid(tile, x)).clone()


@squeeze.register_fake
def _(x: Tensor, tile: str, reduce: str, block: str) -> Tensor:
    return x.new_empty((*x.shape[:2], *_grid(tile, x)))


def _grid(text: str, x: Tensor) -> tuple[int, int]:
    """Rows and columns of gates. Each strip that slides has its own: the map may turn out to be taller."""
    tile = Tile.parse(text)
    height, width = int(x.shape[2]), int(x.shape[3])
    if tile.slides and tile.height is not None:
        return -(-height // tile.height), 1
    return tile.grid(height, width)


@torch.library.custom_op("tiledse_stream::squeeze_corrected", mutates_args=())
def squeeze_corrected(
    x: Tensor,
    own: Tensor,
    running: Tensor | None,
    offset: Tensor,
    tile: str,
    height: int,
    block: str,
) -> Tensor:
    """Descriptors of the row strips of a block calibrated for maps of ``height`` rows; numbers (C, strips, 1)."""
    strips = Tile(Tile.parse(tile).height, None)
    tall = strips.size(x.shape[2], 1)[0]
    return correct(squeeze_tiles(x, strips), x.shape[2], tall, (own, running, offset)).clone()


@squeeze_corrected.register_fake
def _(
    x: Tensor,
    own: Tensor,
    running: Tensor | None,
    offset: Tensor,
    tile: str,
    height: int,
    block: str,
) -> Tensor:
    return x.new_empty((*x.shape[:2], *Tile.parse(tile).grid(int(x.shape[2]), int(x.shape[3]))))


@torch.library.custom_op("tiledse_stream::scale", mutates_args=())
def scale(x: Tensor, gates: Tensor, tile: str, block: str) -> Tensor:
    """Each tile times its gate."""
    parsed = Tile.parse(tile)
    strips = Tile(parsed.height, None) if parsed.slides else parsed  # a gate for each strip: see _grid
    return scale_tiles(x, gates, strips)


@scale.register_fake
def _(x: Tensor, gates: Tensor, tile: str, block: str) -> Tensor:
    return torch.empty_like(x)


class Marked(nn.Module):
    """An SE block, tiled or not, whose squeeze and scale are the two marks, with its name in them."""

    def __init__(self, block: TiledBlock | TiledSqueezeExcite, name: str, known: bool) -> None:
        super().__init__()
        self.block: TiledBlock | TiledSqueezeExcite = block
        self.name, self.known = name, known

    def forward(self, x: Tensor) -> Tensor:
        """As the block does."""
        block = self.block
        nhwc: bool
        reduce: Reduce
        if isinstance(block, TiledSqueezeExcite):
            nhwc, reduce, correction, own = False, mean, None, block.tile
            excite = block.excite
        else:
            made = block.tiledse
            nhwc, reduce = made.dialect.nhwc, made.dialect.squeeze(block)
            correction, own, excite = made.correction, made.tile, block._tiledse_excite
        if nhwc:
            x = x.permute(0, 3, 1, 2)
        # On a map of known height that every gate sees, there is one gate.
        one = self.known and correction is None and own.slides and own.sees_all(int(x.shape[2]))
        tile = "HxW" if one else str(own)
        if isinstance(block, TiledBlock) and correction is not None:
            descriptors = squeeze_corrected(x, *block._tiledse_numbers, tile, correction.height, self.name)
        else:
            descriptors = squeeze(x, tile, reduce.__name__, self.name)
        x = scale(x, excite(descriptors), tile, self.name)
        return x.permute(0, 2, 3, 1) if nhwc else x
