"""TiledBlock: an SE block of somebody else's network, with tiles."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..correction import Correction
from ..errors import TiledSEError
from ..op.correction import correct
from ..op.functional import direct, scale, squeeze, tiled_squeeze_excite
from ..op.module import TiledSqueezeExcite
from ..tile import Tile
from .dialects import Dialect, Layers
from .inline_block import holder

Module = TypeVar("Module", bound=nn.Module)

# Buffers of a corrected block; not in its state_dict, whose keys stay those of the SE block.
_NUMBERS = ("_own", "_running", "_offset")


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
    correction: Correction | None

    @classmethod
    def of(
        cls, block: nn.Module, dialect: Dialect, tile: Tile, correction: Correction | None = None
    ) -> TiledBlock:
        """The block with a tile; parameters are shared with it, not copied."""
        tiled = _twin(block, cls)
        tiled.tile, tiled.dialect, tiled.source, tiled.correction = tile, dialect, type(block), correction
        if correction is not None:
            like = next(iter(holder(block).parameters()), torch.empty(0))
            for name, array in zip(_NUMBERS, (correction.own, correction.running, correction.offset)):
                numbers = None if array is None else torch.tensor(array)[:, :, None].to(like)
                tiled.register_buffer(name, numbers, persistent=False)
        return tiled

    def restore(self) -> nn.Module:
        """The SE block that this one replaces; parameters are shared with it, not copied."""
        block = _twin(self, self.source)
        for name in ("tile", "dialect", "source", "correction"):
            del block.__dict__[name]
        for name in _NUMBERS:
            block._buffers.pop(name, None)
            block._non_persistent_buffers_set.discard(name)
        return block

    @property
    def numbers(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of a corrected block: what ``correct`` takes, each (C, strips, 1)."""
        return self._own, self._running, self._offset  # type: ignore[return-value]

    def excite(self, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape, by the layers of the block."""
        return self.dialect.excite(self, descriptors)

    def layers(self) -> tuple[nn.Module, ...] | None:
        """What ``excite`` calls, in order, where it is layers in a row on channels in the second axis."""
        named = self.dialect.excite
        if not isinstance(named, Layers) or named.channels_last:
            return None
        return tuple(getattr(self, name) for name in named.names)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each tile by the gate computed from that tile."""
        reduce = self.dialect.squeeze(self)
        if self.dialect.nhwc:
            x = x.permute(0, 3, 1, 2)
        if self.correction is None:
            x = tiled_squeeze_excite(x, self.excite, self.tile, reduce)
        else:
            gates = direct(self.excite, x)(self._corrected(x, self.correction))
            x = scale(x, gates, self.tile)
        return x.permute(0, 2, 3, 1) if self.dialect.nhwc else x

    def _corrected(self, x: Tensor, correction: Correction) -> Tensor:
        """Descriptors by the numbers of the calibration."""
        if x.dim() != 4 or x.shape[2] != correction.height:
            raise TiledSEError(
                f"this block is calibrated for maps of {correction.height} rows, but got a map of {tuple(x.shape)}; "
                "give the network images of the size that it was calibrated with, or calibrate for this size"
            )
        own = squeeze(x, Tile(self.tile.height, None))
        tall, _ = self.tile.size(correction.height, 1)
        return correct(own, correction.height, tall, self.numbers)

    def extra_repr(self) -> str:
        """Tile and dialect, for print(model)."""
        calibrated = "" if self.correction is None else ", calibrated"
        return f"tile={self.tile}, dialect={self.dialect.name}{calibrated}"


def _twin(block: nn.Module, cls: type[Module]) -> Module:
    """An instance of ``cls`` with the state of ``block``: tables of its own, the same tensors and layers."""
    twin = cls.__new__(cls)
    twin.__dict__ = {
        key: value.copy() if isinstance(value, (dict, set)) else value for key, value in vars(block).items()
    }
    return twin


def with_tile(
    block: nn.Module, dialect: Dialect, tile: Tile, correction: Correction | None = None
) -> nn.Module:
    """The same SE block with another tile, whatever it has now; ``HxW`` gives plain SE back.

    Args:
        block: A plain SE block, a TiledBlock or a TiledSqueezeExcite.
        dialect: The dialect of a plain block; a tiled one knows its own.
        tile: The tile.
        correction: Of its descriptors, from a calibration.

    Returns:
        A new module that shares the parameters.
    """
    if isinstance(block, TiledSqueezeExcite):
        twin = _twin(block, type(block))
        twin.tile = tile
        return twin
    if isinstance(block, TiledBlock):
        dialect, block = block.dialect, block.restore()
    return block if tile.whole else TiledBlock.of(block, dialect, tile, correction)
