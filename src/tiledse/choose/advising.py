"""Advise: what a target gains from exact SE in two steps, from tiles and from sliding tiles; and which plan to take.

Gains are what the target's own tools said of networks in its form (``Target.measured``), at the image sizes that they
were run at: they are quoted with their source and never computed here. Where nothing was measured, that is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..cost import cost
from ..errors import TiledSEError
from ..network import Network
from ..opening import open as open_network
from ..plan import Plan
from ..targets import Measured, Target, beyond_two_step
from ..targets import load as load_target
from ..tile import Tile

if TYPE_CHECKING:
    from ..data.images import ImageSet
    from ..evaluate.comparison import TaskComparison
    from ..evaluate.evaluation import Evaluation
    from ..evaluate.tasks import Task

Word = Literal["gains", "nothing", "unclear", "unknown"]
TWO_STEP, WHOLE = Tile.parse("HxW:two-step"), Tile.parse("HxW")

# Less than this is no gain: compilers' own models are no finer.
LEAST = 1.0
# A network whose image has so many times the pixels is another case: what gains nothing on small maps may there.
_FAR = 4


@dataclass(frozen=True)
class Gain:
    """What a target's tools say of one form, for images of one size.

    Attributes:
        word: ``gains``, ``nothing``, ``unclear`` (networks differ), or ``unknown`` (nothing comparable was measured).
        evidence: The figures that say so.
    """

    word: Word
    evidence: tuple[Measured, ...]

    def __str__(self) -> str:
        if not self.evidence:
            return "not measured"
        low, high = min(m.gain for m in self.evidence), max(m.gain for m in self.evidence)
        span = f"{low:+.1f} %" if round(low, 1) == round(high, 1) else f"{low:+.1f} to {high:+.1f} %"
        at = " and ".join(dict.fromkeys("x".join(map(str, m.input)) for m in self.evidence))
        return {
            "gains": f"gains {span} (measured at {at})",
            "nothing": f"gains nothing here: {span} at {at}",
            "unclear": f"unclear: {span} at {at}",
            "unknown": f"not measured at this size: {span} at {at}",
        }[self.word]


@dataclass(frozen=True)
class BlockAdvice:
    """What to do with one block.

    Attributes:
        name: The block.
        height: Rows of its map.
        width: Columns.
        take: The tile to give it.
        why: The reason.
        buffers: Elements that its gate holds row by row: plain SE, the tile, the sliding tile.
    """

    name: str
    height: int
    width: int
    take: Tile
    why: str
    buffers: tuple[int, int, int]


@dataclass(frozen=True)
class Advice:
    """What a target gains, and the plan to take.

    Attributes:
        target: The target.
        plan: The plan to take.
        two_step: What exact SE in two steps gains.
        tiles: What tiles gain.
        sliding: What sliding tiles gain.
        beyond: Percentage points that tiles gain beyond two-step SE, on a network where both were measured; None where
            no network was.
        tile: The tile that was looked at.
        slide: The sliding tile that was looked at.
        blocks: Each block.
        summary: One line: what to do.
        accuracy: What the tile, and the sliding tile, cost on images, by tile; empty where none were given.
    """

    target: Target
    plan: Plan
    two_step: Gain
    tiles: Gain
    sliding: Gain
    beyond: float | None
    tile: Tile
    slide: Tile
    blocks: tuple[BlockAdvice, ...]
    summary: str
    accuracy: dict[str, Evaluation | TaskComparison]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of ``advise``."""
        gains = {"two_step": self.two_step, "tiles": self.tiles, "sliding": self.sliding}
        return {
            "target": self.target.name,
            "tile": str(self.tile),
            "slide": str(self.slide),
            "gains": {
                kind: {
                    "verdict": gain.word,
                    "measured": [
                        {"network": m.network, "input": list(m.input), "form": m.form, "se": m.se, "value": m.value,
                         "unit": m.unit, "source": m.source}
                        for m in gain.evidence
                    ],
                }
                for kind, gain in gains.items()
            },
            "beyond_two_step": self.beyond,
            "blocks": [
                {"name": b.name, "height": b.height, "width": b.width, "take": str(b.take), "why": b.why,
                 "buffer": dict(zip(("se", "tile", "slide"), b.buffers))}
                for b in self.blocks
            ],
            "accuracy": {tile: done.to_dict() for tile, done in self.accuracy.items()},
            "summary": self.summary,
            "plan": self.plan.to_dict(),
        }  # fmt: skip


def gain_of(target: Target, kind: str, pixels: int) -> Gain:
    """What a target's tools say of one kind of form for an image of so many pixels.

    Example:
        >>> ethos = load_target("ethos-u")
        >>> gain_of(ethos, "two-step", 512 * 1024).word, gain_of(ethos, "sliding", 512 * 1024).word
        ('gains', 'gains')
    """
    known = [m for m in target.measured if m.kind == kind]
    below = [m for m in known if m.pixels <= pixels]
    if not known:
        return Gain("unknown", ())
    nearest = max(m.pixels for m in below) if below else min(m.pixels for m in known)
    evidence = tuple(m for m in known if m.pixels == nearest)
    gains = [m.gain for m in evidence]
    if min(gains) >= LEAST:
        return Gain("gains" if below else "unknown", evidence)
    if max(gains) >= LEAST:
        return Gain("unclear", evidence)
    return Gain("nothing" if nearest * _FAR >= pixels else "unknown", evidence)


def advise(
    model: Any,
    target: str | Path | Target,
    *,
    input_size: Sequence[int] | None = None,
    tile: Tile | str | None = None,
    slide: Tile | str = "1xW:running+6",
    images: ImageSet | Task[Any] | None = None,
    max_drop: float = 0.5,
    batch_size: int = 16,
) -> Advice:
    """Say what a target gains from two-step SE, tiles and sliding tiles, and which plan to take.

    Args:
        model: The network, or what ``tiledse.open`` takes.
        target: A target, its name or its file.
        input_size: (C, H, W), where the network does not say it.
        tile: The tile to look at; left out, strips of the height that the target runs best, else 7xW.
        slide: The sliding tile to look at.
        images: Images with labels, or a task: what the tiles cost is measured on them.
        max_drop: Percentage points that tiles may cost there.
        batch_size: Images in a batch.

    Raises:
        TiledSEError: no SE block, an unknown target, or see ``open`` and ``evaluate``.

    Example:
        >>> advice = advise("timm:regnety_008", "rockchip")
        >>> advice.summary
        'tiles gain nothing here on rockchip: leave plain SE as it is'
    """
    target = load_target(target)
    network = open_network(model, input_size)
    network.plan.check_blocks()
    chosen = Tile.parse(tile) if tile is not None else Tile(min(target.heights, default=7), None)
    sliding = Tile.parse(slide)
    if chosen.whole or chosen.previous or not sliding.slides:
        raise TiledSEError(
            f"advise compares tiles such as 7xW and sliding tiles such as 1xW:running+6; got {chosen} and {sliding}"
        )
    _, height, width = network.se.image_size
    two, tiles, slides = (gain_of(target, kind, height * width) for kind in ("two-step", "tiles", "sliding"))
    # Where nothing is known at this size, that at any.
    more = beyond_two_step(two.evidence, tiles.evidence) or beyond_two_step(target.measured, target.measured)
    beyond = min(more, default=None)
    accuracy = {} if images is None else _accuracy(network, (chosen, sliding), images, batch_size)
    kind, summary = _decide(
        target, two, tiles, beyond, accuracy.get(str(chosen)), max_drop, network.se, chosen
    )
    exactly = {
        "gains": "the same numbers, in fewer cycles",
        "unclear": "the same numbers; it gained on some networks, and cost none a percent",
    }.get(two.word, "the same numbers; its gain at this size was not measured")
    blocks = tuple(
        _block(network.se, i, target, kind, chosen, sliding, exactly) for i in range(len(network.se))
    )
    plan = replace(network.se, tiles=tuple(b.take for b in blocks))
    if kind == "HxW" and any(b.take == TWO_STEP for b in blocks):
        summary += "; maps beyond its pooling window take their mean in two steps"
    return Advice(target, plan, two, tiles, slides, beyond, chosen, sliding, blocks, summary, accuracy)


def _decide(
    target: Target, two: Gain, tiles: Gain, beyond: float | None, cost_of: Evaluation | TaskComparison | None,
    max_drop: float, se: Plan, tile: Tile,
) -> tuple[str, str]:  # fmt: skip
    """Which form to take for the network, and why in one line."""
    name = target.name
    exact = "two-step" if two.word == "gains" or target.two_step else "HxW"
    fall = "exact SE in two steps" if exact == "two-step" else "plain SE"
    drop = None if cost_of is None else cost_of.to_dict()["drop"]
    worth = target.streams or (tiles.word == "gains" and (beyond is None or beyond >= LEAST))
    if worth and drop is not None and drop > max_drop:
        return (
            exact,
            f"tiles cost {drop:.2f} points on these images, more than {max_drop:g}: take {fall} on {name}",
        )
    cost_known = "" if drop is not None else "; what they cost in accuracy was not measured: give --data"
    if target.streams:
        before, after = (cost(plan).tse.buffer_row_order for plan in (se, se.with_tile(tile)))
        return "tiles", (
            f"{name} runs row by row: with {tile} its gates hold {after:,} elements, with plain SE {before:,}; cycles "
            f"were not measured{cost_known}"
        )
    if worth:
        more = "" if beyond is None else f", {beyond:.1f} points beyond two-step SE"
        return "tiles", f"tiles gain on {name}{more}: take {tile}{cost_known}"
    if two.word == "unclear":
        gains = [m.gain for m in two.evidence]
        least, most = min(gains), max(gains)
        if least > -LEAST:
            return "two-step", (
                f"take exact SE in two steps on {name}: no loss at all; it gained up to {most:.1f} % on one network, "
                f"on another nothing ({least:+.1f} %)"
            )
        return "HxW", (
            f"exact SE in two steps gained {most:.1f} % on one network and lost {-least:.1f} % on another on {name}: "
            "have its compiler judge both before you take either; else leave plain SE as it is, unconverted"
        )
    if two.word == "gains" or (tiles.word == "gains" and beyond is not None):
        what = "what tiles gain more was not measured"
        if beyond is not None:
            what = f"tiles gain nothing more ({beyond:+.1f} points where both were measured)"
        return "two-step", f"take exact SE in two steps on {name}: no loss at all, and {what}"
    rest = (
        "take exact SE in two steps, which is its form" if exact == "two-step" else "leave plain SE as it is"
    )
    if tiles.word == "nothing":
        return exact, f"tiles gain nothing here on {name}: {rest}"
    return exact, f"what tiles gain on {name} at this size is not known: {rest}"


def _block(
    se: Plan, number: int, target: Target, kind: str, tile: Tile, slide: Tile, exactly: str
) -> BlockAdvice:
    block = se.blocks[number]
    h, w = block.height, block.width
    buffers = tuple(t.buffer_row_order(block.channels, h, w) for t in (WHOLE, tile, slide))
    beyond = not target.whole and (
        (target.window is not None and max(h, w) > target.window)
        or (target.window_product is not None and h * w > target.window_product)
    )
    take, why = WHOLE, "nothing is known to gain"
    if kind == "tiles" and tile.size(h, w) != (h, w):
        take, why = tile, "its gates hold fewer rows" if target.streams else "tiles gain"
    elif kind == "tiles":
        take, why = (
            (TWO_STEP, "one tile covers the map") if target.two_step else (WHOLE, "one tile covers the map")
        )
    elif kind == "two-step":
        take, why = TWO_STEP, exactly
    if take.whole and beyond:
        take, why = (
            TWO_STEP,
            f"{why}; a pool of {h}x{w} is beyond its window"
            if kind == "two-step"
            else (f"a pool of {h}x{w} is beyond its window"),
        )
    return BlockAdvice(block.name, h, w, take, why, buffers)  # type: ignore[arg-type]


def _accuracy(
    network: Network, tiles: Sequence[Tile], images: ImageSet | Task[Any], batch_size: int
) -> dict[str, Evaluation | TaskComparison]:
    from ..evaluate.comparison import evaluate

    return {str(t): evaluate(network, network.se.with_tile(t), images, batch_size=batch_size) for t in tiles}
