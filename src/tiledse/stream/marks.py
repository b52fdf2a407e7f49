"""Marks: SE blocks written as three operators, squeeze, excite and scale, that stay whole when the network is traced.

So the row graph does not depend on how a block is written: views, expands and transposes of its forward are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..networks.block import TiledBlock
from ..op.formula import mean, mean_and_max
from ..op.functional import correct
from ..op.functional import scale as scale_tiles
from ..op.functional import squeeze as squeeze_tiles
from ..op.module import TiledSqueezeExcite
from ..tile import Tile

Block = TiledBlock | TiledSqueezeExcite
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
    return correct(x, Tile.parse(tile), (own, running, offset)).clone()


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


@torch.library.custom_op("tiledse_stream::excite", mutates_args=())
def excite(descriptors: Tensor, block: str) -> Tensor:
    """Gates of the tiles of a block, by the layers that it has; it stands in a trace, and gates.py runs it."""
    raise NotImplementedError(f"the excitation of '{block}' is known to the row graph only")


@excite.register_fake
def _(descriptors: Tensor, block: str) -> Tensor:
    return torch.empty_like(descriptors)


@torch.library.custom_op("tiledse_stream::scale", mutates_args=())
def scale(x: Tensor, gates: Tensor, tile: str, block: str) -> Tensor:
    """Each tile times its gate."""
    parsed = Tile.parse(tile)
    strips = Tile(parsed.height, None) if parsed.slides else parsed  # a gate for each strip: see _grid
    return scale_tiles(x, gates, strips)


@scale.register_fake
def _(x: Tensor, gates: Tensor, tile: str, block: str) -> Tensor:
    return torch.empty_like(x)


def mark_block(block: Block, name: str, known: bool) -> None:
    """Make this very block call the marks, with its name in them; in all else it stays what it is.

    An excitation with a kernel over the grid of tiles is no mark: its convolutions are traced like any others.
    """
    forward = partial(_forward, block, name, known)
    object.__setattr__(block, "_tiledse_forward" if isinstance(block, TiledBlock) else "forward", forward)


def _forward(block: Block, name: str, known: bool, x: Tensor) -> Tensor:
    """As the block does."""
    if isinstance(block, TiledSqueezeExcite):
        tile = one_gate(block.tile, x.shape[2], known)
        descriptors = squeeze(x, tile, mean.__name__, name)
        gates = excite(descriptors, name) if _tile_by_tile(block) else block.excite(descriptors)
        return scale(x, gates, tile, name)
    made, given = block.tiledse, x
    dialect = made.dialect
    x = dialect.rows(x)
    tile = one_gate(made.tile, x.shape[2], known and made.correction is None)
    if made.correction is not None:
        descriptors = squeeze_corrected(x, *block._tiledse_numbers, tile, made.correction.height, name)
    else:
        descriptors = squeeze(x, tile, made.dialect.squeeze(block).__name__, name)
    x = scale(x, excite(descriptors, name), tile, name)
    if dialect.nhwc or dialect.axes != 2:
        x = dialect.native(x, dialect.sides(given))
    return given.copy_(x) if made.way.inplace else x


def one_gate(tile: Tile, height: int, known: bool) -> str:
    """The tile as text: ``HxW`` where each gate sees all rows of a map whose height is known."""
    return "HxW" if known and tile.slides and tile.sees_all(int(height)) else str(tile)


def excitation(block: Block) -> Callable[[Tensor], Tensor]:
    """Descriptors (N, C, rows, cols) to gates, as the block does it."""
    return block._tiledse_excite if isinstance(block, TiledBlock) else block.excite


def _tile_by_tile(block: TiledSqueezeExcite) -> bool:
    """Whether a gate depends on the descriptor of its own tile and on no other."""
    layers = block.layers()
    return layers is not None and all(
        layer.kernel_size == (1, 1) for layer in layers if isinstance(layer, nn.Conv2d)
    )
