"""Search: the tiles that a budget buys, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..correction import Correction
from ..errors import TiledSEError
from ..plan import Plan
from ..tile import Tile
from .budget import GATES, Order, fitting, gate_buffer, shares, with_tiles
from .calibration import calibrate_alone
from .evaluation import Evaluated, Evaluator
from .exact import Choice, best_choices

# Rows that the tiles that are tried hold; a block takes those that do not see its whole map, and HxW. For one buffer
# a gate for each row and all look-ahead comes first; a gate for two rows takes half the excitations; a window forgets
# rows far above, which mislead where the top of an image differs from the rest (docs/calibration.md).
ROWS = (1, 2, 3, 4, 5, 7, 10, 14, 20, 28)
ROWS_BY_TWO = (2, 3, 5, 7, 14)
ROWS_OF_WINDOWS = (3, 7, 14)
# Plans on the front that are measured jointly, for the curve; and the best few under the budget, to choose from.
ON_THE_FRONT = 10
BEST_FEW = 4

Titled = Callable[[str], "AbstractContextManager[Callable[[int, int | None], None]]"]


@dataclass(frozen=True)
class Point:
    """A plan and what was measured of it.

    Args:
        kind: ``uniform``: one tile for all blocks. ``front``: from the search.
        plan: The plan.
        buffer: What the budget counts, in elements: the sum of the gate buffers, or the whole pipeline's.
        measured: On the images.
    """

    kind: str
    plan: Plan
    buffer: int
    measured: Evaluated

    @property
    def calibrated(self) -> bool:
        """Whether the plan has corrections."""
        return self.plan.calibrated

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; drops in percentage points."""
        m = self.measured
        return {
            "kind": self.kind,
            "tiles": [str(tile) for tile in self.plan.tiles],
            "calibrated": self.calibrated,
            "buffer": self.buffer,
            "gate_buffer": gate_buffer(self.plan),
            "divergence": m.divergence,
            "drop": m.drop,
            "drop_ci95": None if m.drop_ci95 is None else list(m.drop_ci95),
        }


@dataclass(frozen=True)
class Found:
    """What a search gave.

    Args:
        points: Uniform tiles and plans of the front, each measured as a whole.
        chosen: The point that is taken.
        metric: What drops are drops of; "" without labels.
        n: Images that the points were measured on.
        options: For each block, its tiles with their share of the buffer, and the divergence of each alone.
        choices: Number of choices that no other beats, by the sums of shares and divergences.
        order: What ``buffer`` counts: ``gates`` or ``pipeline``.
        rest: Elements that are held whatever the tiles are; 0 for gates.
    """

    points: tuple[Point, ...]
    chosen: Point
    metric: str
    n: int
    options: tuple[tuple[tuple[Tile, int, float], ...], ...]
    choices: int
    order: str = GATES.name
    rest: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of the command."""
        chosen = self.chosen.to_dict()
        return {
            "metric": self.metric,
            "n": self.n,
            "buffer_of": self.order,
            "rest": self.rest,
            "points": [point.to_dict() for point in self.points],
            "chosen": {**chosen, "plan": self.chosen.plan.to_dict()},
            "choices": self.choices,
            "options": [
                {
                    "name": block.name,
                    "tiles": [{"tile": str(t), "buffer": b, "divergence": d} for t, b, d in own],
                }
                for block, own in zip(self.chosen.plan.blocks, self.options, strict=True)
            ],
        }


def options_of(plan: Plan, tiles: Sequence[Tile]) -> list[list[Tile]]:
    """For each block, those of some tiles that do not see its whole map, and ``HxW``.

    Of tiles that are the same on a map (a window that reaches its top is ``running``) the first is taken.

    Example:
        >>> from tiledse.plan import SEBlock
        >>> block = SEBlock("se", 8, 2, 7, 7, "timm.SEModule")
        >>> plan = Plan((block,), (Tile.parse("HxW"),), (3, 56, 56))
        >>> [str(tile) for tile in options_of(plan, [Tile.parse("3xW"), Tile.parse("14xW")])[0]]
        ['3xW', 'HxW']
    """
    found = []
    for block in plan.blocks:
        size = (block.height, block.width)
        own: dict[object, Tile] = {}
        for tile in tiles:
            if tile.size(*size) != size:
                own.setdefault((tile.grid(*size), tile.bounds(block.height).tobytes()), tile)
        found.append([*own.values(), Tile(None, None)])
    return found


def default_tiles() -> tuple[Tile, ...]:
    """Sliding strips that hold 1 to 28 rows: of one row, of two, and windows.

    Example:
        >>> [str(tile) for tile in default_tiles()[:3]], str(default_tiles()[-1])
        (['1xW:running', '1xW:running+1', '1xW:running+2'], '1xW:window-13+13')
    """
    return (
        *(Tile(1, None, "running", rows - 1) for rows in ROWS),
        *(Tile(2, None, "running", rows - 2) for rows in ROWS_BY_TWO),
        *(Tile(1, None, "window", rows - 1, rows - 1) for rows in ROWS_OF_WINDOWS),
    )


def search(
    evaluator: Evaluator,
    *,
    max_buffer: int | None = None,
    max_drop: float | None = None,
    tiles: Sequence[Tile] | None = None,
    uniform: Sequence[Tile] = (),
    fitted_on: Evaluator | None = None,
    order: Order = GATES,
    titled: Titled | None = None,
) -> Found:
    """Choose a tile for each block.

    First each block is given each tile alone, and the divergence from the SE network is measured (no labels needed).
    These nearly add up, so the choice with the least sum is found exactly for every buffer at once. Sums are not the
    truth, so the best few under the budget are then measured as whole plans, and the best of those is taken.

    Args:
        evaluator: The network and the images.
        max_buffer: Elements that may be held in all.
        max_drop: Percentage points of the task's metric that may be lost on the images; needs labels.
        tiles: What a block may be given, besides ``HxW``; ``default_tiles`` if left out. Strips of rows.
        uniform: Tiles that are also measured for all blocks at once, to compare with.
        fitted_on: Images to calibrate on, other ones than the evaluator's: each block alone, then the plans that are
            measured. Left out, nothing is calibrated.
        order: What is counted as buffer: ``GATES``, or what counts a whole pipeline. Every plan is counted as a whole;
            sums of the blocks' shares only guide the choice.
        titled: Makes the progress of a step from its title.

    Raises:
        TiledSEError: no budget or two, one below the smallest plan, one that no measured plan keeps, a drop without
            labels, a tile that is no strip.
    """
    network, task = evaluator.network, evaluator.task
    tiles = default_tiles() if tiles is None else tuple(dict.fromkeys(tiles))
    if (max_buffer is None) == (max_drop is None):
        raise TiledSEError("give one budget, --max-buffer N or --max-drop D")
    if max_drop is not None and not task.metric:
        raise TiledSEError("--max-drop needs labelled images; give --max-buffer, or images with labels")
    for tile in (*tiles, *uniform):
        if tile.previous:
            raise TiledSEError(
                f"{tile} keeps a state from frame to frame, and a search shows single images; leave it out, and "
                "measure it with eval --frames"
            )
    for tile in tiles:
        if tile.width is not None:
            raise TiledSEError(
                f"tile {tile}: a search chooses among strips of rows, such as 7xW or 1xW:running+6"
            )
    plan = network.se
    given = options_of(plan, tiles)
    for tile in uniform:
        order.of(plan.with_tile(tile))  # what cannot be counted is refused before anything is measured
    rest, buffers = shares(plan, given, order)
    least = rest + sum(min(own) for own in buffers)
    if max_buffer is not None and max_buffer < least:
        raise TiledSEError(
            f"--max-buffer {max_buffer}: the smallest plan of these tiles holds {least} elements; give more, or "
            "smaller tiles"
        )
    titled = titled or (lambda title: nullcontext(lambda done, total: None))
    alone, where = [], []
    corrections = [[None] * len(own) for own in given]
    if fitted_on is not None:
        with titled("calibrating each block alone"):
            corrections = calibrate_alone(network, given, fitted_on.inputs)  # type: ignore[assignment]
    for number, own in enumerate(given):
        for option, tile in enumerate(own):
            if not tile.whole:
                alone.append(only(plan, number, tile, corrections[number][option]))
                where.append((number, option))
    with titled("each block alone") as progress:
        measured = evaluator.divergences(alone, progress)
    costs = [[0.0] * len(own) for own in given]
    for (number, option), cost in zip(where, measured, strict=True):
        costs[number][option] = cost
    choices = best_choices([list(zip(b, c, strict=True)) for b, c in zip(buffers, costs, strict=True)])

    def made(options: Sequence[int]) -> Plan:
        return with_tiles(plan, [own[o] for own, o in zip(given, options, strict=True)])

    measure = _Measure(evaluator, fitted_on, order, titled)
    points = [
        point
        for tile in dict.fromkeys(uniform)
        for point in measure([plan.with_tile(tile)], "uniform", str(tile))
    ]
    points += measure(
        [made(c.options) for c in _spread(choices, ON_THE_FRONT)], "front", "plans of the front"
    )
    if max_buffer is not None:
        within = fitting(choices, lambda options: order.of(made(options)), costs, max_buffer, BEST_FEW)
        points += measure([made(options) for options in within], "front", "the best few")
        kept = [p for p in points if p.buffer <= max_buffer]
        chosen = min(kept, key=lambda p: (p.measured.divergence, p.buffer))
    else:
        assert max_drop is not None
        points += _bisect(choices, made, measure, max_drop)
        kept = [p for p in points if (p.measured.drop or 0.0) <= max_drop]
        if not kept:
            raise TiledSEError(
                f"--max-drop {max_drop}: no plan that was measured keeps it; allow a larger drop"
            )
        chosen = min(kept, key=lambda p: (p.buffer, p.measured.divergence))
    points = list({(p.kind == "uniform", p.plan): p for p in points}.values())
    points.sort(key=lambda p: (p.buffer, p.measured.divergence))
    options = tuple(tuple(zip(t, b, c, strict=True)) for t, b, c in zip(given, buffers, costs, strict=True))
    return Found(
        tuple(points), chosen, task.metric, chosen.measured.n, options, len(choices), order.name, rest
    )


class _Measure:
    """Measures whole plans, as they are and calibrated."""

    def __init__(
        self, evaluator: Evaluator, fitted_on: Evaluator | None, order: Order, titled: Titled
    ) -> None:
        self.evaluator, self.fitted_on, self.order, self.titled = evaluator, fitted_on, order, titled

    def __call__(self, plans: Sequence[Plan], kind: str, title: str) -> list[Point]:
        plans = list(dict.fromkeys(plans))
        if self.fitted_on is not None:
            tiled = [p for p in plans if any(t.tiles(b.height, b.width) > 1 for b, t in p)]
            with self.titled(f"calibrating {title}") as progress:
                for number, plan in enumerate(tiled):
                    progress(number, len(tiled))
                    plans.append(self.fitted_on.calibrated(plan))
        with self.titled(title) as progress:
            measured = self.evaluator.evaluate(plans, progress)
        return [Point(kind, p, self.order.of(p), m) for p, m in zip(plans, measured, strict=True)]


def only(plan: Plan, number: int, tile: Tile, correction: Correction | None = None) -> Plan:
    """The same plan with a tile, and a correction, for one block."""
    return replace(
        plan,
        tiles=tuple(tile if i == number else t for i, t in enumerate(plan.tiles)),
        corrections=tuple(correction if i == number else None for i in range(len(plan))),
    )


def _spread(choices: Sequence[Choice], count: int) -> list[Choice]:
    """Some choices, from the smallest buffer to the largest in equal ratios."""
    wanted = np.geomspace(max(choices[0].buffer, 1), max(choices[-1].buffer, 1), count)
    at = [int(np.searchsorted([c.buffer for c in choices], w * (1 + 1e-9), side="right")) - 1 for w in wanted]
    return [choices[i] for i in sorted({max(i, 0) for i in at})]


def _bisect(
    choices: Sequence[Choice], made: Callable[[Sequence[int]], Plan], measure: _Measure, max_drop: float
) -> list[Point]:
    """Measure choices towards the smallest buffer that keeps the drop."""
    points: list[Point] = []
    low, high = -1, len(choices) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found = measure([made(choices[middle].options)], "front", f"choice {middle}")
        points += found
        if min(p.measured.drop or 0.0 for p in found) <= max_drop:
            high = middle
        else:
            low = middle
        # Neighbours on a long front differ by a few elements: no measurement of drops tells them apart.
        if choices[high].buffer <= 1.02 * max(choices[max(low, 0)].buffer, 1):
            break
    return points + measure([made(choices[high].options)], "front", f"choice {high}")
