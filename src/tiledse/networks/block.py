"""TiledBlock: an SE block of somebody else's network, with tiles."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from ..op.functional import tiled_squeeze_excite
from ..op.module import TiledSqueezeExcite
from ..tile import Tile
from .dialects import Dialect

Module = TypeVar("Module", bound=nn.Module)


class TiledBlock(nn.Module):
    """An SE block whose squeeze is tiled; in all else it is the block that it replaces.

    It holds the layers, parameters, buffers, hooks and attributes of that block under the same names, so the
    state_dict keys stay and code that reaches into the block goes on working. ``restore`` gives the block back.

    Shape:
        (N, C, H, W) to (N, C, H, W); (N, H, W, C) where the block that it replaces has it so.
    """

    tile: Tile
    dialect: Dialect
    source: type[nn.Module]

    @classmethod
    def of(cls, block: nn.Module, dialect: Dialect, tile: Tile) -> TiledBlock:
        """The block with a tile; parameters are shared with it, not copied."""
        tiled = _twin(block, cls)
        tiled.tile, tiled.dialect, tiled.source = tile, dialect, type(block)
        return tiled

    def restore(self) -> nn.Module:
        """The SE block that this one replaces; parameters are shared with it, not copied."""
        block = _twin(self, self.source)
        for name in ("tile", "dialect", "source"):
            del block.__dict__[name]
        return block

    def excite(self, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape, by the layers of the block."""
        return self.dialect.excite(self, descriptors)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each tile by the gate computed from that tile."""
        reduce = self.dialect.squeeze(self)
        if self.dialect.nhwc:
            x = x.permute(0, 3, 1, 2)
        x = tiled_squeeze_excite(x, self.excite, self.tile, reduce)
        return x.permute(0, 2, 3, 1) if self.dialect.nhwc else x

    def extra_repr(self) -> str:
        """Tile and dialect, for print(model)."""
        return f"tile={self.tile}, dialect={self.dialect.name}"


def _twin(block: nn.Module, cls: type[Module]) -> Module:
    """An instance of ``cls`` with the state of ``block``: tables of its own, the same tensors and layers."""
    twin = cls.__new__(cls)
    twin.__dict__ = {
        key: value.copy() if isinstance(value, (dict, set)) else value for key, value in vars(block).items()
    }
    return twin


def with_tile(block: nn.Module, dialect: Dialect, tile: Tile) -> nn.Module:
    """The same SE block with another tile, whatever it has now; ``HxW`` gives plain SE back.

    Args:
        block: A plain SE block, a TiledBlock or a TiledSqueezeExcite.
        dialect: The dialect of a plain block; a tiled one knows its own.
        tile: The tile.

    Returns:
        A new module that shares the parameters.
    """
    if isinstance(block, TiledSqueezeExcite):
        twin = _twin(block, type(block))
        twin.tile = tile
        return twin
    if isinstance(block, TiledBlock):
        dialect, block = block.dialect, block.restore()
    return block if tile.whole else TiledBlock.of(block, dialect, tile)
