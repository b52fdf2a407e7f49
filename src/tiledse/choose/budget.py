"""Budgets of buffer: what is counted against them, what each tile adds to it, and which choices fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..plan import Plan, SEBlock
from ..tile import Tile
from .exact import Choice

# Single tiles that are tried to use up what a sum of shares left of a budget.
_MOST_CHANGES = 100


def gate_buffer(plan: Plan) -> int:
    """Sum of the gate buffers of a plan, in elements (the paper's, section 3.2): ``cost(plan).tse.buffer``."""
    return sum(_held(block, tile) for block, tile in plan)


def _held(block: SEBlock, tile: Tile) -> int:
    """Each call of a block holds its own map."""
    return block.calls * tile.buffer(block.channels, block.height, block.width)


class Order(NamedTuple):
    """What a budget is a budget of.

    Args:
        name: ``gates`` or ``pipeline``.
        of: Elements that a plan holds.
    """

    name: str
    of: Callable[[Plan], int]


GATES = Order("gates", gate_buffer)


def with_tiles(plan: Plan, tiles: Sequence[Tile]) -> Plan:
    """The same plan with these tiles, one a block, without corrections."""
    return replace(plan, tiles=tuple(tiles), corrections=())


def shares(plan: Plan, options: Sequence[Sequence[Tile]], order: Order) -> tuple[int, list[list[int]]]:
    """What each tile of each block holds, and what is held whatever the tiles are.

    In the smallest plan every block has its smallest tile. A tile's share is the gate buffer of its block in that plan,
    plus what the whole plan holds more when this block gets the tile. Gate buffers are their own shares, and they add
    up. Those of a pipeline add up too where each shortcut passes one block, for what waits there waits for that block
    alone. Where a shortcut passes several blocks, their sum is more than is held.

    Returns:
        The rest, and for each block one number a tile.

    Example:
        >>> from tiledse.plan import SEBlock
        >>> block = SEBlock("se", 8, 2, 7, 10, "timm.SEModule")
        >>> plan = Plan((block,), (Tile.parse("HxW"),), (3, 56, 80))
        >>> shares(plan, [[Tile.parse("2xW"), Tile.parse("HxW")]], GATES)
        (0, [[160, 560]])
    """
    smallest = [min(own, key=lambda t: _held(b, t)) for b, own in zip(plan.blocks, options, strict=True)]
    least = with_tiles(plan, smallest)
    held, gates = order.of(least), gate_buffer(least)
    found = []
    for number, (block, own) in enumerate(zip(plan.blocks, options, strict=True)):
        first = _held(block, smallest[number])
        row = []
        for tile in own:
            tiles = [*smallest[:number], tile, *smallest[number + 1 :]]
            row.append(first + order.of(with_tiles(plan, tiles)) - held)
        found.append(row)
    return held - gates, found


def fitting(
    choices: Sequence[Choice],
    holds: Callable[[Sequence[int]], int],
    costs: Sequence[Sequence[float]],
    budget: int,
    count: int,
) -> list[tuple[int, ...]]:
    """The choices of least summed cost that fit a budget, each counted as a whole.

    Args:
        choices: From ``best_choices``; the first of them fits.
        holds: Elements that a choice of options holds.
        costs: For each block, the cost of each option.
        budget: Elements.
        count: How many are wanted.

    Returns:
        Options of each. Where sums of shares are more than is held, the best is followed by what it becomes when
        tiles of single blocks use up the rest.
    """
    low, high = 0, len(choices)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(choices[middle].options) <= budget:
            low = middle
        else:
            high = middle
    found: list[tuple[int, ...]] = []
    for choice in reversed(choices[: low + 1]):
        if holds(choice.options) <= budget:
            found.append(choice.options)
        if len(found) == count:
            break
    fuller = _filled(found[0], holds, costs, budget)
    return found if fuller == found[0] else [*found, fuller]


def _filled(
    options: tuple[int, ...],
    holds: Callable[[Sequence[int]], int],
    costs: Sequence[Sequence[float]],
    budget: int,
) -> tuple[int, ...]:
    """Change tiles of single blocks, the largest fall of cost first, as long as the budget is kept."""
    for _ in range(_MOST_CHANGES):
        better = sorted(
            (cost - own[options[n]], n, o)
            for n, own in enumerate(costs)
            for o, cost in enumerate(own)
            if cost < own[options[n]]
        )
        for _, number, option in better:
            tried = (*options[:number], option, *options[number + 1 :])
            if holds(tried) <= budget:
                options = tried
                break
        else:
            break
    return options
