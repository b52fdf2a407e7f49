"""What is refused in the same words for networks of every kind, and what is left of a plan without it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace

from .errors import TiledSEError, TiledSEWarning
from .plan import NearMiss, Plan


def warn_of(refused: Sequence[NearMiss]) -> None:
    """Warn the caller of a network's ``convert`` of each block that was left as it was."""
    for miss in refused:
        warnings.warn(f"block '{miss.name}' was left as it was: {miss.reason}", TiledSEWarning, stacklevel=4)


def without_refused(plan: Plan, now: Plan, refused: Sequence[NearMiss], asked: int) -> Plan:
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


def partial_mean(over: Collection[int], axes: int) -> str:
    """Why a mean over some axes of a map is no squeeze.

    Example:
        >>> partial_mean({3}, 4)
        'it gates its map by means over axis 3 of 4 alone, more than one a channel; expected a mean over all axes ...'
    """
    which = f"ax{'i' if len(over) == 1 else 'e'}s {' and '.join(map(str, sorted(over)))}"
    return (
        f"it gates its map by means over {which} of {axes} alone, more than one a channel; expected a mean over all "
        "axes but batch and channels"
    )
