"""Convert: the same network with the same weights, and the tiles of a plan in place of the global pools."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn

from ..errors import TiledSEError
from ..op.functional import mean
from ..op.module import TiledSqueezeExcite
from ..plan import Plan
from .block import set_tile
from .dialects import Dialect
from .finder import find_dialects
from .inline import outline_again
from .inline_host import settle


def convert(model: nn.Module, plan: Plan) -> nn.Module:
    """Give the network the tiles of a plan; ``HxW`` gives plain SE back.

    Args:
        model: The network, SE or converted before; it is left as it was.
        plan: From ``find`` on this network, with the tiles wanted.

    Returns:
        A copy of the network. Parameters and buffers have the same names and values; ``find`` on it gives
        ``plan``.

    Raises:
        TiledSEError: the plan was made for another network or input size, or has no block; or its corrections
            were fitted on other weights.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("regnety_002").eval()
        >>> plan = find_dialects(model, (3, 64, 64))[0].with_tile("7xW", "s1.*")
        >>> tse = convert(model, plan)
        >>> tse.s1.b1.se.tile, tse.state_dict().keys() == model.state_dict().keys()
        (Tile.parse('7xW'), True)
    """
    model = _with_tiles(copy.deepcopy(model), plan)
    settle(model)
    return model


def fingerprint(model: nn.Module) -> str:
    """A name for the weights of a network: of all that its state_dict holds, the same before and after conversion.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> len(before), fingerprint(layer) == before
        (32, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def convert_shared(
    model: nn.Module, plan: Plan, found: tuple[Plan, tuple[Dialect, ...]] | None = None
) -> nn.Module:
    """``convert`` without a copy of the weights: both networks hold the same parameters and buffers.

    For running two networks side by side; training one changes the other. ``found`` is what ``find_dialects`` gave on
    this very network, for callers that convert it many times. Blocks that are written inline are children of the module
    that holds them, whatever their tiles, so that each block is reached by its name.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return _with_tiles(copy.deepcopy(model, memo=tensors), plan, found)


def correctable(block: nn.Module, dialect: Dialect) -> bool:
    """Whether the descriptors of a block can be corrected: an SE block that squeezes a mean."""
    return not isinstance(block, TiledSqueezeExcite) and dialect.squeeze(block) is mean


def _with_tiles(
    model: nn.Module, plan: Plan, known: tuple[Plan, tuple[Dialect, ...]] | None = None
) -> nn.Module:
    """Put the tiles into this very network."""
    if not isinstance(plan, Plan):
        raise TiledSEError(
            f"expected a plan, got {type(plan).__name__} {plan!r:.60}; "
            "find(model, input_size).with_tile('7xW') makes one"
        )
    if not len(plan):
        raise TiledSEError(
            "the plan has no SE block to convert; `tiledse find` says what was found and what nearly was"
        )
    found, dialects = find_dialects(model, plan.input_size) if known is None else known
    plan.check_network(found)
    outline_again(model, [block.name for block in found.blocks], dialects)
    if plan.calibrated:
        plan.check_weights(fingerprint(model))
    before = zip(found.tiles, found.corrections, strict=True)
    for (block, tile), correction, now, dialect in zip(plan, plan.corrections, before, dialects, strict=True):
        module = model.get_submodule(block.name)
        if tile.slides and dialect.squeeze(module) is not mean:
            raise TiledSEError(
                f"block '{block.name}' squeezes a maximum as well as a mean, so {tile} has no meaning for it; "
                "give it a tile without ':running' or ':window'"
            )
        if correction is not None and not correctable(module, dialect):
            raise TiledSEError(
                f"block '{block.name}' cannot be corrected: its squeeze is no mean, or it was built with tiles and is "
                "to be trained instead; calibrate the plan again"
            )
        if (tile, correction) != now:
            set_tile(module, dialect, tile, correction)
    return model
