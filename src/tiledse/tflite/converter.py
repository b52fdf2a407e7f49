"""Convert: the same TensorFlow Lite network with the tiles of a plan. Nothing outside its SE blocks is touched."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..errors import TiledSEError
from ..plan import NearMiss, Plan
from ..refusing import without_refused
from .finder import Finding, fingerprint
from .model import TfliteModel
from .proof import prove
from .tiling import with_tiles


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
    start = time.perf_counter()
    proof = prove(found, plan, result, changed)
    seconds = time.perf_counter() - start
    refused = tuple(NearMiss(name, reason) for name, reason in proof.refused.items())
    if refused:
        plan = without_refused(plan, now, refused, len(changed))
        result = with_tiles(found, plan)
    figures = tuple(proof.figures.items())
    return Converted(result, plan, refused, figures, proof.difference, proof.relative, seconds)
