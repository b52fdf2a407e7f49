"""Convert: the same network with the same weights, and the tiles of a plan in place of the global pools."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import TiledSEError, TiledSEWarning
from ..op.formula import mean
from ..op.module import TiledSqueezeExcite
from ..plan import NearMiss, Plan, SEBlock
from ..tile import Tile
from .block import Way, set_tile
from .block_trial import Unproven
from .dialects import Dialect
from .duplicating import duplicate
from .finder import find_dialects
from .frames import begin_all
from .inline import outline_again
from .inline_host import settle
from .inputs import inputs_for
from .makes import looks
from .proof import prove
from .verification import Candidate, Verified
from .verification import verify as verify_blocks

Found = tuple[Plan, tuple[Dialect, ...]]


def convert(model: nn.Module, plan: Plan, *, verify: bool = True, example_inputs: Any = None) -> nn.Module:
    """Give the network the tiles of a plan; ``HxW`` gives plain SE back.

    What was made is tried before it is handed out, on random numbers: each block against the block as it was called on
    each tile alone, in evaluation and in training, and the network with one tile over each map against the network as
    it was, on a small image. A block that fails stays as it was.

    Args:
        model: The network, SE or converted before; it is left as it was.
        plan: From ``find`` on this network, with the tiles wanted.
        verify: Whether to try what was made; `docs/convert.md` has what that costs.
        example_inputs: Those that ``find`` was given, for a network that takes more or other than one image. What was
            made is tried on them, in place of the small image.

    Returns:
        A copy of the network. Parameters and buffers have the same names and values; ``find`` on it gives
        ``plan``, but for blocks that were refused. A converted block is the block that it was in all else: an instance
        of its class, called as it was, with its state and hooks.

    Raises:
        TiledSEError: the plan was made for another network or input size, or has no block; its corrections
            were fitted on other weights; the network cannot be copied; or every block was refused.

    Warns:
        TiledSEWarning: a block was refused; with the reason.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("regnety_002").eval()
        >>> plan = find_dialects(model, (3, 64, 64))[0].with_tile("7xW", "s1.*")
        >>> tse = convert(model, plan)
        >>> str(tse.s1.b1.se.tile), tse.state_dict().keys() == model.state_dict().keys()
        ('7xW', True)
    """
    made = convert_verified(model, plan, verify=verify, example_inputs=example_inputs)
    for miss in made.refused:
        warnings.warn(f"block '{miss.name}' was left as it was: {miss.reason}", TiledSEWarning, stacklevel=2)
    return made.model


@dataclass(frozen=True)
class Converted:
    """A converted network, and what its verification gave.

    Attributes:
        model: The network.
        plan: What was really converted: ``find`` on it gives this.
        refused: Blocks of the plan asked for that were left as they were, with the reason.
        difference: With one tile a map, the largest difference of the outputs on the small image from those of the
            network as it was; None where nothing was verified.
        largest: The largest of these outputs.
        seconds: What verifying took.
    """

    model: nn.Module
    plan: Plan
    refused: tuple[NearMiss, ...] = ()
    difference: float | None = None
    largest: float | None = None
    seconds: float | None = None


def convert_verified(
    model: nn.Module,
    plan: Plan,
    *,
    verify: bool = True,
    example_inputs: Any = None,
    found: Found | None = None,
) -> Converted:
    """``convert``, with what was found out on the way.

    ``found`` is what ``find_dialects`` gave on this very network, for callers that have it.

    Raises:
        TiledSEError: see ``convert``.
    """
    twin = duplicate(model)
    wanted, candidates = _changes(twin, plan, found, example_inputs)
    if not verify:
        _apply(twin, plan, wanted, {})
        settle(twin)
        return Converted(twin, plan)
    start = time.perf_counter()
    inputs = None if example_inputs is None else inputs_for(model, plan.input_size, example_inputs)
    tried = verify_blocks(model, twin, candidates, plan.input_size, inputs) if candidates else Verified()
    seconds = time.perf_counter() - start
    if tried.refused and not tried.ways:
        name, reason = next(iter(tried.refused.items()))
        raise TiledSEError(
            f"no block could be converted: '{name}': {reason}"
            + _others(len(tried.refused))
            + "; leave verifying out "
            "with verify=False (--no-verify) to have them as they are read"
        )
    if tried.refused and plan.calibrated:
        name, reason = next(iter(tried.refused.items()))
        raise TiledSEError(
            f"block '{name}' cannot be converted: {reason}; later blocks are calibrated for its tiles: calibrate again "
            "a plan in which it has HxW"
        )
    tiles = tuple(
        now if b.name in tried.refused else tile for (b, tile), (_, _, now) in zip(plan, wanted, strict=True)
    )
    given = replace(plan, tiles=tiles)
    _apply(twin, given, wanted, tried.ways, tried.refused)
    settle(twin)
    refused = tuple(NearMiss(name, reason) for name, reason in tried.refused.items())
    return Converted(twin, given, refused, tried.difference, tried.largest, seconds)


def _others(count: int) -> str:
    return "" if count == 1 else f" (and {count - 1} more)"


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


def convert_shared(model: nn.Module, plan: Plan, found: Found | None = None) -> nn.Module:
    """``convert`` without a copy of the weights: both networks hold the same parameters and buffers.

    For running two networks side by side; training one changes the other. Its blocks are tried one by one, each once
    for each tile; the network as a whole is not. ``found`` is what ``find_dialects`` gave on this very network, for
    callers that convert it many times. Blocks that are written inline are children of the module that holds them,
    whatever their tiles, so that each block is reached by its name.

    Raises:
        TiledSEError: see ``convert``; also when any block is refused.
    """
    twin = duplicate(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    wanted, candidates = _changes(twin, plan, found)
    _apply(twin, plan, wanted, {c.block.name: way_of(model, twin, c) for c in candidates})
    return twin


_WAYS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Way]] = WeakKeyDictionary()


def way_of(model: nn.Module, made: nn.Module, candidate: Candidate) -> Way:
    """How a block is to be converted; tried once for each tile, while the block stays what it is.

    Args:
        model: The network that it stands in, which lives longer than what is made of it.
        made: A copy in which its name is that of a module, should it be written inline.
        candidate: The block.

    Raises:
        TiledSEError: it cannot be converted; with the reason.
    """
    block = candidate.block
    module = made.get_submodule(block.name)
    try:
        anchor = model.get_submodule(block.name)
    except AttributeError:
        anchor = model.get_submodule(block.name.rpartition(".")[0])
    key = (candidate.tile, block, *(looks(part) for part in anchor.modules()))
    ways = _WAYS.setdefault(anchor, {})
    if key not in ways:
        size = (block.channels, *block.sides)
        try:
            ways[key] = prove(module, candidate.dialect, candidate.tile, size)
        except Unproven as reason:
            raise TiledSEError(
                f"block '{block.name}' cannot be converted: {reason}; give it the tile HxW"
            ) from None
    return ways[key]


def correctable(block: nn.Module, dialect: Dialect) -> bool:
    """Whether the descriptors of a block can be corrected: an SE block that squeezes a mean."""
    return not isinstance(block, TiledSqueezeExcite) and dialect.squeeze(block) is mean


Change = tuple[Dialect, bool, Tile]


def _changes(
    model: nn.Module, plan: Plan, known: Found | None, example_inputs: Any = None
) -> tuple[list[Change], list[Candidate]]:
    """For each block of the plan its dialect, whether it changes, and its tile now; and the blocks to be tried.

    Raises:
        TiledSEError: the plan is none of this network.
    """
    Plan.check(plan)
    if not len(plan):
        raise TiledSEError(
            "the plan has no SE block to convert; `tiledse find` says what was found and what nearly was"
        )
    found, dialects = find_dialects(model, plan.input_size, example_inputs) if known is None else known
    plan.check_network(found)
    outline_again(model, [block.name for block in found.blocks], dialects)
    if plan.calibrated:
        plan.check_weights(fingerprint(model))
    changes, candidates = [], []
    before = zip(found.tiles, found.corrections, strict=True)
    for (block, tile), correction, now, dialect in zip(plan, plan.corrections, before, dialects, strict=True):
        module = model.get_submodule(block.name)
        if (tile.slides or tile.previous) and dialect.squeeze(module) is not mean:
            raise TiledSEError(
                f"block '{block.name}' squeezes a maximum as well as a mean, so {tile} has no meaning for it; "
                "give it a tile without ':running', ':window' or ':previous'"
            )
        if tile.previous:
            _check_frames(block, module, tile)
        if correction is not None and not correctable(module, dialect):
            raise TiledSEError(
                f"block '{block.name}' cannot be corrected: its squeeze is no mean, or it was built with tiles and is "
                "to be trained instead; calibrate the plan again"
            )
        changed = (tile, correction) != now
        changes.append((dialect, changed, now[0]))
        if changed and tile != Tile(None, None) and not isinstance(module, TiledSqueezeExcite):
            candidates.append(Candidate(block, tile, dialect))
    return changes, candidates


def _check_frames(block: SEBlock, module: nn.Module, tile: Tile) -> None:
    """Check that a block meets one map a frame, and can keep its mean."""
    if block.calls > 1:
        raise TiledSEError(
            f"block '{block.name}' is called {block.calls} times a frame, so with {tile} each call would take the map "
            "of another for the previous frame's; give it another tile"
        )
    if isinstance(module, TiledSqueezeExcite):
        raise TiledSEError(
            f"block '{block.name}' was built with tiles (ts.TiledSqueezeExcite), which keeps no state; {tile} goes "
            "with SE blocks that are converted"
        )


def _apply(
    model: nn.Module,
    plan: Plan,
    changes: list[Change],
    ways: Mapping[str, Way],
    refused: Collection[str] = (),
) -> None:
    """Put the tiles into this very network."""
    for (block, tile), correction, (dialect, changed, _) in zip(plan, plan.corrections, changes, strict=True):
        if changed and block.name not in refused:
            set_tile(model.get_submodule(block.name), dialect, tile, correction, ways.get(block.name))
    begin_all(model)
