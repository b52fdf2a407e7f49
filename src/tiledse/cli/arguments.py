"""How MODEL, --tile, --plan and --output become a network, a plan and a file that may be written."""

from __future__ import annotations

from pathlib import Path

from ..errors import TiledSEError
from ..numerals import parse_whole, quoted
from ..plan import Plan
from ..tile import Tile
from .app import say


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """``3x224x224`` as (3, 224, 224), ``80x1000`` as (80, 1000), ``3x16x224x224`` as (3, 16, 224, 224).

    Raises:
        TiledSEError: no such size.
    """
    if text is None:
        return None
    try:
        size = tuple(parse_whole(side, "each side", 1, 10**6) for side in text.split("x"))
        if not 2 <= len(size) <= 4:
            raise ValueError
    except ValueError:
        raise TiledSEError(
            f"no size: --input {quoted(text)}; expected CxHxW of whole numbers up to 1000000, such as 3x224x224 "
            "(CxT of sound, such as 80x1000; CxDxHxW of volumes and video, such as 3x16x224x224)"
        ) from None
    return size


def parse_tiles(text: str | None) -> list[Tile]:
    """``1xW,7xW`` as tiles, each once.

    Raises:
        TiledSEError: none given, or no tile.
    """
    tiles = [Tile.parse(part.strip()) for part in (text or "").split(",") if part.strip()]
    if not tiles:
        raise TiledSEError("give the tiles with --tiles, such as --tiles 1xW,3xW,7xW")
    return list(dict.fromkeys(tiles))


def tell_random(random: bool) -> None:
    """Say that weights are random, where they are."""
    if random:
        say("the weights are random: give --weights FILE or --pretrained for real ones")


def choose_plan(found: Plan, tile: str | None, plan: Path | None) -> Plan:
    """The plan that --tile or --plan asks for, checked against what was found.

    Raises:
        TiledSEError: neither or both were given, or the plan was made for another network or size.
    """
    if (tile is None) == (plan is None):
        raise TiledSEError(
            "give the tiles either with --tile T or with --plan FILE, such as --tile 7xW; `tiledse plan` writes plans"
        )
    found.check_blocks()
    if tile is not None:
        return found.with_tile(tile)
    assert plan is not None
    chosen = Plan.load(plan)
    chosen.check_network(found)
    return chosen
