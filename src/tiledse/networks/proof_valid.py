"""Prove a block whose mean is over valid frames: each gate is that of the block on a tile's valid frames alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .block import TiledBlock, Way, set_tile, untile
from .block_trial import BlockTrial, Unproven, said
from .dialects import Dialect
from .duplicating import duplicate
from .proof_evaluation import ONE_TILE, cut
from .rounding import ROUNDING, relative
from .tilewise import by_two_elements, parts


def prove_valid(trial: BlockTrial, way: Way) -> None:
    """Check a block in eval mode on two sounds, of which one is valid to three fifths.

    The masks of the block itself are those of its network, where the whole is compared with what it was.

    Raises:
        Unproven: with tiles it gives something else.
    """
    if trial.filled:
        raise Unproven("it takes maps of one size only, of which no valid part can be tried alone")
    x = trial.map(2, *cut(trial.tile, trial.size))
    height, width = x.shape[2:]
    lengths = (height, max(1, height * 3 // 5))
    valid = torch.stack([torch.arange(height) < length for length in lengths])[:, None, :, None].to(x)
    dialect, old = trial.dialect, trial.old()
    assert dialect.valid is not None
    new = trial.new(trial.tile, way)
    assert isinstance(new, TiledBlock)
    sides = (height, *(trial.sides[1:] if width == trial.size[2] else (width, 1)))
    mask = dialect.native(valid.expand(-1, -1, -1, width), sides)
    with torch.no_grad(), said("with tiles and valid frames it fails"):
        got = dialect.rows(TiledBlock._tiledse_gated(new, dialect.native(x, sides), mask))
        for image, length in enumerate(lengths):
            one = x[image : image + 1]
            for seen, scaled in parts(trial.tile, height, width):
                stop = min(seen.bottom, length)
                if stop <= seen.top:
                    continue  # no valid frame, and so no gate to compare with
                before = one[:, :, seen.top : stop, seen.left : seen.right]
                wanted = by_two_elements(scaled.of(one), before, trial.call(old, before.clone()))
                ours = scaled.of(got[image : image + 1])
                keep = max(0, length - scaled.top) if dialect.valid.zeroed else ours.shape[2]
                trial.near(
                    ours[:, :, :keep].flatten(), wanted[:, :, :keep].flatten(),
                    "with valid frames it gives other numbers than its own forward on each tile's valid frames", 10,
                )  # fmt: skip


def prove_mask(
    block: nn.Module, dialect: Dialect, way: Way, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Check that the valid frames are those that the block's own forward takes, on a call as its network makes it.

    Args:
        block: The block, plain or tiled.
        dialect: Its dialect.
        way: How it is to be converted.
        args: Of the call, the map first.
        kwargs: Of the call.

    Raises:
        Unproven: with one tile over the map it gives something else.
    """
    old, new = (duplicate(block, {id(p): p for p in block.parameters()}).eval() for _ in range(2))
    if isinstance(old, TiledBlock):
        untile(old)
    set_tile(new, dialect, ONE_TILE, way=way)
    x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
    rows = dialect.rows(x)
    # Frames that differ in their means, so that it is seen which are taken.
    slope = torch.linspace(-3, 3, rows.shape[2])[:, None]
    noise = 3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(3)) + slope
    noise = dialect.native(noise.to(rows), dialect.sides(x))

    def called(module: nn.Module) -> Tensor:
        given = [noise.clone() if a is x else a for a in args]
        y = module(*given, **{key: noise.clone() if a is x else a for key, a in kwargs.items()})
        return y[0] if dialect.valid is not None and dialect.valid.passes else y

    with torch.no_grad(), said("with its lengths or mask it fails"):
        figure = relative(called(new), called(old))
    if not figure <= 10 * ROUNDING[noise.dtype]:
        raise Unproven(
            f"its valid frames are not those that its own forward takes: with one tile it gives other numbers "
            f"({figure:.1e} of the largest)"
        )
