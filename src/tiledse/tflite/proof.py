"""Try what was converted before it is handed out, on random numbers in LiteRT, against the network as it was.

Each block runs alone, as it was and converted, on a random map and on the map that a random image gives it. Then the
network runs with one strip over each map, written by the code of tiles; products and outputs must be what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..blame import blamed
from ..errors import TiledSEError
from ..plan import Plan
from ..tile import Tile
from .block_trial import FLOAT, WHOLE, BlockTrial, Trial
from .cutting import with_outputs
from .finder import Finding, locate
from .model import TfliteModel
from .running import Runner, feeds_of
from .tiling import with_tiles

# Layers magnify what rounding makes of a block.
_NETWORK = 10.0


@dataclass
class Proof:
    """What was found out about the blocks that were converted.

    Attributes:
        figures: By block, the largest relative difference from itself as it was.
        refused: By block, why it is not to be converted.
        difference: With one strip over each map, the largest difference of any output; its relative twin.
        relative: The same, relative to the largest output.
    """

    figures: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0
    relative: float = 0.0


def prove(found: Finding, plan: Plan, converted: TfliteModel, changed: Sequence[str]) -> Proof:
    """Try the changed blocks of a converted network.

    Args:
        found: What ``locate`` gave on the network.
        plan: The tiles.
        converted: The network with them.
        changed: The names of the blocks to try.

    Raises:
        TiledSEError: LiteRT does not run the network as it was, or that gives numbers that are not finite.
    """
    size = found.plan.input_size
    plain = replace(
        found.plan.uncalibrated,
        tiles=tuple(Tile(None, None) if b.name in changed else t for b, t in found.plan),
    )
    before = locate(with_tiles(found, plain), size)
    after = locate(converted, size)
    plan.check_network(after.plan)
    proof = Proof()
    whole = _Whole(before)
    random = np.random.default_rng(0)
    names = []
    parts = zip(plan, plan.corrections, before.places, after.places)
    for number, ((block, tile), learnt, old, new) in enumerate(parts):
        if block.name not in changed or tile.effect(block.height, block.width) == ("whole",):
            continue
        if after.plan.tiles[number] != tile:
            proof.refused[block.name] = "what was written is not read back as its tile"
            continue
        trial = BlockTrial(Trial(block, tile, learnt, old, new), before, after)
        far = 0.0
        for x in (trial.random_map(random), trial.within(whole.values[old.source])):
            off, why = trial.fault(x)
            far = max(far, off)
            if why is not None:
                proof.refused[block.name] = why
                break
        proof.figures[block.name] = far
        if block.name not in proof.refused:
            names.append(block.name)

    def one_strip(chosen: Sequence[str]) -> tuple[tuple[float, float], str]:
        return whole.compare(with_tiles(before, before.plan, frozenset(chosen)))

    difference, refused = blamed(names, one_strip)
    proof.refused.update(refused)
    proof.difference, proof.relative = difference or (0.0, 0.0)
    return proof


class _Whole:
    """The network as it was, run once."""

    def __init__(self, before: Finding) -> None:
        self.before, self.graph, model = before, before.graph, before.model
        products = [int(place.product.outputs[0]) for place in before.places]
        sources = [place.source for place in before.places]
        self.taps = [*dict.fromkeys([*products, *sources])]
        self.outputs = self.graph.outputs
        self.image = before.image
        # A mean with a scale of its own is finer than one in the map's: then no output is what it was.
        self.finer = any(
            before.graph.quantised(p.source) != before.graph.quantised(p.descriptors) for p in before.places
        )
        self.whole = any(self.graph.dtype(tensor).kind in "iu" for tensor in self.taps)
        self.feeds = feeds_of(model, self.image.tensor, random_image(before))
        self.values = self._run(model, self.feeds)
        for tensor, value in self.values.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise TiledSEError(
                    f"{model.name} gives numbers that are not finite on a random image ('{self.graph.name(tensor)}'), "
                    "so a conversion of it cannot be verified; look at its weights, or leave verifying out with "
                    "verify=False (--no-verify)"
                )
        self.model = model
        self._moved: dict[int, np.ndarray] | None = None

    def _run(self, model: TfliteModel, feeds: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        tapped = with_outputs(model, self.taps)
        given = [int(t) for t in tapped.tree.subgraphs[0].outputs]
        runner = Runner(tapped, exact=True)
        return dict(zip(given, runner(feeds), strict=True))

    def compare(self, other: TfliteModel) -> tuple[tuple[float, float], str]:
        """Run another network on the same: the largest difference of any output, its relative twin, what is wrong."""
        difference = relatively = 0.0
        if (moved := _moved_outside(self.before, other)) is not None:
            wrong = f"with one strip over its map {moved} is not as it was, and lies outside of it"
            return (difference, relatively), wrong
        got = self._run(other, self.feeds)
        for tensor, expected in self.values.items():
            a, b = self._real(tensor, expected), self._real(tensor, got[tensor])
            if a.shape != b.shape or not np.isfinite(b).all():
                wrong = (
                    f"with one strip over its map '{self.graph.name(tensor)}' is none of the network's own"
                )
                return (difference, relatively), wrong
            largest = float(np.abs(a).max(initial=0.0)) or 1.0
            off = float(np.abs(a - b).max(initial=0.0))
            if tensor in self.outputs:
                difference, relatively = max(difference, off), max(relatively, off / largest)
            limit = (WHOLE if self.whole else FLOAT) * _NETWORK
            if self.finer:
                continue
            if off / largest > limit and off / largest > 3 * _NETWORK * self._magnified(tensor):
                return (difference, relatively), (
                    f"with one strip over its map the network as it was is {off / largest:.1e} off at "
                    f"'{self.graph.name(tensor)}', relative to the largest number, where {limit:.0e} is allowed"
                )
        return (difference, relatively), ""

    def _magnified(self, tensor: int) -> float:
        """What becomes of a change of the image by its rounding: a millionth, or one step of whole numbers."""
        if self._moved is None:
            near, random = dict(self.feeds), np.random.default_rng(1)
            image = near[self.image.tensor]
            if image.dtype.kind == "f":
                moved = image * (1 + 1e-6 * random.standard_normal(image.shape))
            else:
                limits = np.iinfo(image.dtype)
                moved = np.clip(
                    image.astype(int) + random.integers(-1, 2, image.shape), limits.min, limits.max
                )
            near[self.image.tensor] = moved.astype(image.dtype)
            self._moved = self._run(self.model, near)
        a, b = (self._real(tensor, values[tensor]) for values in (self.values, self._moved))
        return float(np.abs(a - b).max(initial=0.0)) / (float(np.abs(a).max(initial=0.0)) or 1.0)

    def _real(self, tensor: int, array: np.ndarray) -> np.ndarray:
        quantised = self.graph.quantised(tensor)
        if quantised is None or array.dtype.kind == "f":
            return array.astype(np.float64)
        return quantised.real(array).astype(np.float64)


def _moved_outside(before: Finding, other: TfliteModel) -> str | None:
    """An operator outside the blocks that another form of a network has not as it was; None where all are."""
    after = locate(other, before.plan.input_size)

    def outside(found: Finding) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        own = {
            id(op) for p in found.places for op in (*p.squeeze, *p.excitation.operators, *p.repeat, p.product)
        }
        rest = [op for op in found.graph.operators if id(op) not in own]
        return [
            (found.graph.kind(op), tuple(map(int, op.inputs)), tuple(map(int, op.outputs))) for op in rest
        ]

    kept = set(outside(after))
    # What only a reshape within a block took is gone with it.
    needed = {t for _, inputs, _ in kept for t in inputs} | set(before.graph.outputs)
    lost = [op for op in outside(before) if op not in kept and any(t in needed for t in op[2])]
    return None if not lost else f"{lost[0][0]} '{before.graph.name(lost[0][2][0])}'"


def random_image(found: Finding) -> np.ndarray:
    """A batch of random numbers for the image of a network."""
    graph, image, random = found.graph, found.image, np.random.default_rng(0)
    x = random.standard_normal(image.shape)
    quantised, dtype = graph.quantised(image.tensor), graph.dtype(image.tensor)
    if quantised is not None:
        return quantised.whole(x, dtype)
    return (np.abs(x) * 64).astype(dtype) if dtype.kind in "iu" else x.astype(dtype)
