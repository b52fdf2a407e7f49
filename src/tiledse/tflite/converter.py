"""Convert: the same TensorFlow Lite network with the tiles of a plan. Nothing outside its SE blocks is touched."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TiledSEError
from ..plan import NearMiss, Plan
from ..tile import Tile
from .finder import Finding, fingerprint, locate
from .graph import Graph
from .metadata import write_stated
from .model import TfliteModel
from .rewriting import restated, rewrite


@dataclass(frozen=True)
class Converted:
    """A converted network, and what its verification gave.

    Attributes:
        model: The network.
        plan: What was really converted.
        refused: Blocks that were left as they were, with the reason.
        figures: By block, the largest relative difference from itself as it was, on each tile alone.
        difference: With one tile over each map, the largest difference of any output; its relative twin.
        relative: The same, relative to the largest output.
        seconds: What verifying took; None where nothing was verified.
    """

    model: TfliteModel
    plan: Plan
    refused: tuple[NearMiss, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    difference: float | None = None
    relative: float | None = None
    seconds: float | None = None

    @property
    def worst_block(self) -> float:
        """The largest of ``figures``, of the blocks that are converted."""
        refused = {miss.name for miss in self.refused}
        return max((far for name, far in self.figures if name not in refused), default=0.0)


def convert_verified(found: Finding, plan: Plan, *, verify: bool = True) -> Converted:
    """Give a network the tiles of a plan, and try what was made in LiteRT.

    Args:
        found: What ``locate`` gave on the network.
        plan: The tiles.
        verify: Whether to try it.

    Raises:
        TiledSEError: the plan was made for another network or has no block; its corrections were fitted on other
            weights; LiteRT does not run the network as it was; or every block was refused.
    """
    if not len(plan):
        raise TiledSEError(
            "the plan has no SE block to convert; `tiledse find` says what was found and what nearly was"
        )
    plan.check_network(found.plan)
    if plan.calibrated:
        plan.check_weights(fingerprint(found))
    now = found.plan
    changed = [
        block.name
        for (block, tile), was, learnt, before in zip(plan, now.tiles, plan.corrections, now.corrections)
        if (tile, learnt) != (was, before) and not tile.whole
    ]
    result = with_tiles(found, plan)
    if not verify or not changed:
        return Converted(result, plan, seconds=0.0 if verify else None)
    from .proof import prove

    start = time.perf_counter()
    proof = prove(found, plan, result, changed)
    seconds = time.perf_counter() - start
    refused = tuple(NearMiss(name, reason) for name, reason in proof.refused.items())
    if refused:
        plan = _without(plan, now, refused, len(changed))
        result = with_tiles(found, plan)
    figures = tuple(proof.figures.items())
    return Converted(result, plan, refused, figures, proof.difference, proof.relative, seconds)


def _without(plan: Plan, now: Plan, refused: tuple[NearMiss, ...], asked: int) -> Plan:
    """A plan in which refused blocks have the tiles that they have now.

    Raises:
        TiledSEError: none is left, or later blocks are calibrated for what is refused.
    """
    first = refused[0]
    if len(refused) == asked:
        more = "" if asked == 1 else f" (and {asked - 1} more)"
        raise TiledSEError(
            f"no block could be converted: '{first.name}': {first.reason}{more}; leave verifying out with "
            "verify=False (--no-verify) to have them as they are read"
        )
    if plan.calibrated:
        raise TiledSEError(
            f"block '{first.name}' cannot be converted: {first.reason}; later blocks are calibrated for its tiles: "
            "calibrate again a plan in which it has HxW"
        )
    names = {miss.name for miss in refused}
    tiles = tuple(was if b.name in names else tile for (b, tile), was in zip(plan, now.tiles))
    return replace(plan, tiles=tiles)


def with_tiles(found: Finding, plan: Plan, forced: frozenset[str] = frozenset()) -> TfliteModel:
    """A clone of a network with the tiles of a plan for it.

    Args:
        found: What ``locate`` gave on the network.
        plan: The tiles.
        forced: Blocks that are written again as one strip over the map, by the code of tiles.
    """
    clone = found.model.clone()
    own = locate(clone, found.plan.input_size)
    graph, clone = own.graph, own.model
    stated = {}
    for (block, tile), learnt, place, was in zip(plan, plan.corrections, own.places, own.plan.corrections):
        same = tile.effect(block.height, block.width) == place.stated.tile.effect(block.height, block.width)
        if block.name in forced:
            # Not by the pool that it had: a mean in the map's own scale, as strips have it.
            strip = replace(place, stated=replace(place.stated, pool="AVERAGE_POOL_2D"))
            stated[block.name] = rewrite(graph, strip, block.name, Tile(block.height, None), None)
        elif same and learnt == was:
            stated[block.name] = restated(place, tile, learnt)
        else:
            stated[block.name] = rewrite(graph, place, block.name, tile, learnt)
    kept = {
        name: one for name, one in stated.items() if not one.tile.whole or one.mean is not None or one.biases
    }
    write_stated(clone.tree, kept)
    _fix_size(graph, own)
    shapes = tuple(graph.shape(tensor) for tensor in range(len(graph.tensors)))
    return replace(clone, shapes=shapes if found.model.shapes is not None else None)


def _fix_size(graph: Graph, found: Finding) -> None:
    """Fix the size of the image, where the file leaves it open: tiles are written for maps of one size."""
    stored = graph.tensors[found.image.tensor]
    signature = stored.shapeSignature
    if signature is None or not (np.asarray(signature)[1:] < 0).any():
        return
    shape = found.image.shape
    stored.shape = np.array(shape, np.int32)
    stored.shapeSignature = np.array([signature[0], *shape[1:]], np.int32)
