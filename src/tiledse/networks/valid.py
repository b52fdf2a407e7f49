"""Blocks that take their mean over valid frames only: sounds of several lengths in one batch, filled up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TiledSEError
from ..op.functional import squeeze
from ..tile import Tile


def own_call(block: nn.Module, x: Tensor) -> Any:
    """A block's own forward on a map alone, whether the block is converted or not."""
    made = getattr(block, "tiledse", None)
    source = type(block) if made is None else made.source
    return source.forward(block, x)


@dataclass(frozen=True)
class ValidFrames:
    """What a block does with the lengths or the mask that it is called with beside its map.

    Args:
        frames: ``(block, x, *more) -> mask``, called as the block is: which frames are valid, (N, 1, T),
            (N, 1, D, 1, 1) or the like, of any type; None where all are.
        alone: ``(block, x) -> y``: the block on a map of which all frames are valid.
        zeroed: Whether frames that are not valid come out as 0, and not times their gate.
        passes: Whether the block gives ``(y, *more)`` back, and not y.

    Functions of a module, not lambdas, if converted networks are to be pickled.
    """

    frames: Callable[..., Tensor | None]
    alone: Callable[[nn.Module, Tensor], Any] = own_call
    zeroed: bool = False
    passes: bool = False


def means(x: Tensor, valid: Tensor, tile: Tile) -> Tensor:
    """Means over the valid elements of what each gate sees.

    Args:
        x: Map, (N, C, H, W).
        valid: 1 and 0, (N, 1, H, W), or 1 of a side.
        tile: The tile.

    Returns:
        (N, C, rows, cols); 0 where a gate sees no valid element.

    Example:
        >>> x = torch.tensor([2.0, 4.0, 9.0]).view(1, 1, 3, 1)
        >>> means(x, torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 3, 1), Tile.parse("2xW")).flatten().tolist()
        [3.0, 0.0]
    """
    share = squeeze(valid.expand(-1, -1, *x.shape[2:]), tile)
    # What is not valid may be anything: times 0 it need not be 0.
    seen = squeeze(torch.where(valid > 0, x, torch.zeros((), dtype=x.dtype, device=x.device)), tile)
    return torch.where(share > 0, seen / torch.where(share > 0, share, 1.0), 0.0).to(x.dtype)


def checked(valid: Tensor, x: Tensor, block: nn.Module, channel: int) -> Tensor:
    """A mask as numbers, checked to be one of this map's frames; ``channel`` is the axis of its one channel.

    Raises:
        TiledSEError: it has another shape.
    """
    fits = (
        valid.dim() == x.dim()
        and all(a in (1, b) for a, b in zip(valid.shape, x.shape))
        and valid.shape[channel] == 1
    )
    if not fits:
        raise TiledSEError(
            f"the valid frames of {type(block).__name__} for a map of {tuple(x.shape)}: expected a mask of the same "
            f"axes with one channel, got {tuple(valid.shape)}"
        )
    return valid.to(x.dtype)


def of_shares(block: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor | None:
    """speechbrain: lengths relative to the longest, (N,); each sound is valid before its share of the frames."""
    if lengths is None:
        return None
    frames = x.shape[-1]
    return (torch.arange(frames, device=x.device) < (lengths * frames)[:, None])[:, None]


def of_counts(block: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    """NeMo: lengths in frames, (N,)."""
    return (torch.arange(x.shape[-1], device=x.device) < lengths[:, None])[:, None]


def full_counts(block: nn.Module, x: Tensor) -> Any:
    """NeMo: the block with all frames valid."""
    made = getattr(block, "tiledse", None)
    source = type(block) if made is None else made.source
    return source.forward(block, x, torch.full((len(x),), x.shape[-1], device=x.device))[0]
