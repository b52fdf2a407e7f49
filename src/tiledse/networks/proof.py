"""Prove a converted block: it gives, on real numbers, what the block as it was gives on each tile alone.

In evaluation and in training; by one tile over the map, too. What the proof finds out on the way is the block's
``Way``: whether it writes into its map, which excitation it has in training, what it reads of itself at each call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..tile import Tile
from .block import Way
from .block_trial import BlockTrial, Spread, Unproven
from .dialects import Dialect
from .inline_block import holder
from .makes import looks, make
from .proof_evaluation import cut, prove_evaluation, writes
from .proof_frames import prove_frames
from .proof_reads import unread
from .proof_training import prove_training
from .proof_valid import prove_valid
from .watching import plain_value

# Relative to the largest number: what lies between this and rounding is computed again in float64.
_DOUBT = 1e-2


@dataclass
class Makes:
    """What was found out about makes of blocks, so that it is looked at once for each.

    Attributes:
        reads: What the own forward reads of itself; by all that blocks are but for numbers, such as of channels.
        trained: How they are trained; by all that they are but for the numbers in their tensors (``makes.make``).
    """

    reads: dict[Any, tuple[tuple[str, str, Any], ...]] = field(default_factory=dict)
    trained: dict[Any, Way] = field(default_factory=dict)


def prove(
    block: nn.Module,
    dialect: Dialect,
    tile: Tile,
    size: tuple[int, ...],
    spread: Spread | None = None,
    makes: Makes | None = None,
) -> Way:
    """Try a block with a tile against the block as it was; nothing of the block is changed.

    Args:
        block: An SE block, plain or tiled.
        dialect: How its excitation is called.
        tile: The tile.
        size: (C, H, W) of its map; (C, T) of sound, (C, D, H, W) of volumes and video.
        spread: Of the numbers that it gets in its network; left out, they are about 0.
        makes: What was found out about blocks of the same make, to be looked up and added to: what they read, keep and
            call, and how they are trained, is looked at once. In evaluation each block is tried.

    Returns:
        How it is to be converted.

    Raises:
        Unproven: the tiled block would give something else; with the figure.

    Example:
        >>> import timm
        >>> from .dialects import known_dialect
        >>> block = timm.layers.SEModule(16)
        >>> prove(block, known_dialect(block), Tile.parse("3xW"), (16, 8, 8)).plain
        True
    """
    parameter = next(holder(block).parameters(), torch.empty(0))
    # Half precision rounds away what is to be seen.
    own = parameter.dtype if parameter.is_floating_point() else torch.float32
    first = torch.float32 if own in (torch.float16, torch.bfloat16) else own
    makes = makes or Makes()

    def proved(dtype: torch.dtype) -> Way:
        # The first frame of a stream is a map like others.
        way = _way(BlockTrial(block, dialect, tile.first, size, spread, dtype), makes)
        if tile.previous:
            prove_frames(BlockTrial(block, dialect, tile, size, spread, dtype), way)
        return way

    try:
        return proved(first)
    except Unproven as error:
        if error.figure is None or not error.figure < _DOUBT or first is torch.float64:
            raise
        # Gates that magnify rounding, or something else than rounding: float64 says which.
        return proved(torch.float64)


def _way(trial: BlockTrial, makes: Makes) -> Way:
    """How a block is to be converted.

    Raises:
        Unproven: in no way.
    """
    made = make(trial.plain)
    x = trial.map(2, *cut(trial.tile, trial.size))
    inplace, y = writes(trial, x)
    plain = Way(inplace=inplace)
    folded = replace(plain, folded=True, folded_training=True)
    way = _first((plain, folded), lambda way: prove_evaluation(trial, way, x, y))
    if trial.dialect.valid is not None:
        prove_valid(trial, way)
    trial.look_for_windows(x)
    kind = _kind(trial, way)
    if kind not in makes.reads:
        makes.reads[kind] = unread(trial, way, x)
    read = ((path, name, _value(trial, path, name)) for path, name, _ in makes.reads[kind])
    way = replace(way, read=tuple(read))
    # Weights do not change what a block does in training: only what it is does.
    key = (kind, made, trial.dtype, trial.filled, (trial.size, trial.sides) if trial.filled else None)
    if key not in makes.trained:
        ways = (way, replace(way, folded_training=True))
        makes.trained[key] = _first(ways, lambda way: prove_training(trial, way))
    return replace(way, folded_training=makes.trained[key].folded_training)


def _first(ways: tuple[Way, ...], check: Callable[[Way], None]) -> Way:
    """The first of some ways that a check lets pass.

    Raises:
        Unproven: none; with the reason of the first.
    """
    reasons = []
    for way in dict.fromkeys(ways):
        try:
            check(way)
        except Unproven as error:
            reasons.append(error)
        else:
            return way
    raise reasons[0]


def _kind(trial: BlockTrial, way: Way) -> tuple[Any, ...]:
    """What blocks of one make have in common: classes, names, hooks, and all values but numbers of channels."""
    parts = [(path, *looks(part, numbers=False)) for path, part in trial.plain.named_modules()]
    # The text of a traced excitation, which has slices, without a hash.
    return way, trial.dialect.name, repr(trial.dialect.excite), *parts


def _value(trial: BlockTrial, path: str, name: str) -> Any:
    """An attribute of a part of the block."""
    return copy.copy(plain_value(trial.plain.get_submodule(path), name)[1])
