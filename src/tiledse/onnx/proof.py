"""Try what was converted before it is handed out, on random numbers, against the network as it was.

Each block runs alone, as it was and converted: on a map of its own shape and, where the file leaves a side or the batch
free, on the map that it gets at a second size. A gate of the converted block must be the gate that the block as it was
gives for those rows and columns alone, repeated over a whole map. Then the network runs with one tile larger than any
map, by the tiled code; all products and outputs must be what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..blame import blamed
from ..errors import TiledSEError, first_line
from ..plan import Plan
from .comparing import HALF, distance, feeds_of, relative, rounding
from .cutting import Arrays, CutOut, Ends, tapped
from .finder import Finding
from .model import OnnxModel
from .proof_frames import prove_frames
from .scales import quantised, scale_of_map
from .shapes import Image, batched
from .trial import Tiles, Trial, random_map

# A network's layers magnify the rounding of its blocks.
_NETWORK = 10.0
# Of a block whose descriptors are quantised a mean between two steps is rounded up here and down there: what it makes
# is less than what a step up or down in every channel does, by this.
_STEPS = 2.0
# A second size is larger by this: strides of most networks. Its sides are no longer than needed.
_STEP, _LONG = 32, 256
# Their results jump where a number moves by its rounding.
_JUMPS = {"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK", "Unique", "RoiAlign"}


@dataclass
class Proof:
    """What was found out about the blocks that were converted.

    Attributes:
        figures: By block, the largest relative difference of its product from that of the block as it was.
        refused: By block, why it is not to be converted.
        difference: With one tile over each map, the largest difference of any output; its relative twin.
        relative: The same, relative to the largest output.
        sizes: The shapes of the batches of images that were tried.
    """

    figures: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0
    relative: float = 0.0
    sizes: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def worst_block(self) -> float:
        """The largest of ``figures``, of the blocks that are converted."""
        return max((far for name, far in self.figures.items() if name not in self.refused), default=0.0)


def prove(
    before: OnnxModel,
    found: Finding,
    plan: Plan,
    converted: OnnxModel,
    one_tile: Callable[[Sequence[str]], OnnxModel],
    changed: Sequence[str],
) -> Proof:
    """Try the changed blocks of a converted network.

    Args:
        before: The network, with plain SE in them.
        found: Where its blocks stand.
        plan: The tiles.
        converted: The network with them.
        one_tile: Gives the network with one tile larger than any map in the named blocks, by the tiled code.
        changed: The names of the blocks to try.

    Raises:
        TiledSEError: ONNX Runtime does not run the network as it was, or that gives numbers that are not finite.
    """
    trials = [
        Trial(block, tile, learnt, place)
        for (block, tile), learnt, place in zip(plan, plan.corrections, found.places)
        if block.name in changed
    ]
    proof = Proof()
    whole = _Whole(before, found, [t.ends for t in trials])
    generator = np.random.default_rng(0)
    videos = [t for t in trials if t.tile.previous]
    own = batched(found.shapes.image, found.shapes.image.batch)
    for sides in dict.fromkeys([own[1:], whole.shape[1:]]) if videos else ():
        figures, refused = prove_frames(before, converted, found, videos, sides)
        proof.figures.update({n: max(far, proof.figures.get(n, 0.0)) for n, far in figures.items()})
        proof.refused.update(refused)
    single = [t for t in trials if not t.tile.previous]
    alone = _Alone(before, converted, found, proof)
    alone.try_all(single, {t.ends.source: random_map(t, found, generator) for t in single})
    maps = {t.ends.source: whole.values[t.ends.source] for t in trials}
    proof.sizes += [own] if own == whole.shape else [own, whole.shape]
    alone.try_all([t for t in single if t.block.name not in proof.refused], maps)
    left = [t.block.name for t in trials if t.block.name not in proof.refused]
    difference, refused = blamed(left, lambda names: whole.compare(one_tile(names)))
    proof.refused.update(refused)
    proof.difference, proof.relative = difference or (0.0, 0.0)
    return proof


def check_upgrade(older: OnnxModel, newer: OnnxModel, image: Image) -> None:
    """Check that a network in a newer opset gives what it gave.

    Raises:
        TiledSEError: it does not, or ONNX Runtime does not run it.
    """
    feeds = feeds_of(older, image, batched(image, image.batch))
    try:
        before, after = (tapped(m, [])(feeds) for m in (older, newer))
    except Exception as error:
        raise TiledSEError(
            f"{older.name} uses ONNX opset {older.opset}, and ONNX Runtime does not run it, or what onnx's version "
            f"converter made of it: {first_line(error, 120)}; export it again with opset {newer.opset} or newer"
        ) from error
    far = max((relative(a, after[name]) for name, a in before.items()), default=0.0)
    if not far <= rounding(ir.DataType.FLOAT) * _NETWORK:
        raise TiledSEError(
            f"{older.name} uses ONNX opset {older.opset}, and what onnx's version converter makes of it is {far:.1e} "
            f"off; export it again with opset {newer.opset} or newer"
        )


class _Whole:
    """The network as it was, run once: at a second size where it leaves one free, else at that of the plan."""

    def __init__(self, model: OnnxModel, found: Finding, ends: Sequence[Ends]) -> None:
        self.model, self.found = model, found
        self.taps = list(dict.fromkeys(name for end in ends for name in end))
        self.limit = max(rounding(found.shapes.type(p.squeeze.source)) for p in found.places) * _NETWORK
        # Where numbers are rounded to steps, a millionth moves none of them, or one by a step.
        self.nudge = 1e-6
        if any(node.op_type == "QuantizeLinear" for node in model.ir.graph):
            self.nudge = 1e-3
            self.limit = max(self.limit, HALF)  # a step of the scale, where a number lies between two
        self.jumps = any(node.op_type in _JUMPS for node in model.ir.graph)
        self.outputs = [v.name or "" for v in model.ir.graph.outputs]
        run = tapped(model, self.taps)
        error: Exception | None = None
        for shape in _shapes(model, found):
            self.shape, self.feeds = shape, feeds_of(model, found.shapes.image, shape)
            try:
                self.values = run(self.feeds)
            except Exception as failed:  # whatever ONNX Runtime says of a size that the network does not take
                error = failed
                continue
            self._check_finite()
            return
        raise TiledSEError(
            f"ONNX Runtime cannot run {model.name} as it is on an input of {self.shape}, so a conversion of it cannot "
            f"be verified: {first_line(error or Exception(), 140)}; leave verifying out with verify=False (--no-verify)"
        ) from error

    def _check_finite(self) -> None:
        for name, value in self.values.items():
            if value.dtype.kind == "f" and np.isnan(value).any():
                raise TiledSEError(
                    f"{self.model.name} gives numbers that are not finite on a random image ('{name}'), so a "
                    "conversion of it cannot be verified; look at its weights, or leave verifying out with "
                    "verify=False (--no-verify)"
                )

    def compare(self, other: OnnxModel) -> tuple[tuple[float, float], str]:
        """Run another network on the same: the largest difference of any output, its relative twin, what is wrong."""
        difference = relatively = 0.0
        try:
            got = tapped(other, self.taps)(self.feeds)
        except Exception as error:
            failed = f"with one tile over its map ONNX Runtime fails: {first_line(error, 120)}"
            return (difference, relatively), failed
        for name, expected in self.values.items():
            output = name in self.outputs
            if output and (self.jumps or expected.dtype.kind != "f"):
                continue
            far = relative(expected, got[name])
            if output:
                relatively = max(relatively, far)
                difference = max(difference, distance(expected, got[name]))
            if not far <= max(self.limit, 30 * self._magnified(name)):
                return (difference, relatively), (
                    f"with one tile over its map the network as it was is {far:.1e} off at '{name}', relative to the "
                    f"largest number, where {self.limit:.0e} is allowed"
                )
        return (difference, relatively), ""

    def _magnified(self, name: str) -> float:
        """What becomes of a relative change of the image by a millionth, or by what moves quantised numbers."""
        if not hasattr(self, "_moved"):
            near = dict(self.feeds)
            image = self.found.shapes.image.name
            if near[image].dtype.kind == "f":
                noise = np.random.default_rng(1).standard_normal(near[image].shape)
                near[image] = (near[image] * (1 + self.nudge * noise)).astype(near[image].dtype)
            self._moved = tapped(self.model, self.taps)(near)
        return relative(self.values[name], self._moved[name])


class _Alone:
    """Blocks cut out of the network as it was, and of the converted one."""

    def __init__(self, before: OnnxModel, converted: OnnxModel, found: Finding, proof: Proof) -> None:
        self.before, self.converted, self.found, self.proof = before, converted, found, proof
        self._cuts: dict[tuple[Ends, ...], tuple[CutOut, CutOut]] = {}

    def try_all(self, trials: Sequence[Trial], maps: Arrays) -> None:
        """Try blocks on their maps, all at once; where that does not run, one by one."""
        if not trials:
            return
        try:
            self._try(trials, maps)
        except Exception as error:
            if len(trials) == 1:
                reason = first_line(error, 160)
                self.proof.refused[trials[0].block.name] = f"it cannot be tried: {reason}"
                return
            for trial in trials:
                self.try_all([trial], maps)

    def _try(self, trials: Sequence[Trial], maps: Arrays) -> None:
        shapes = self.found.shapes
        ends = tuple(t.ends for t in trials)
        if ends not in self._cuts:
            self._cuts[ends] = CutOut(self.before, ends, shapes), CutOut(self.converted, ends, shapes)
        old, new = self._cuts[ends]
        given = {end.source: maps[end.source] for end in ends}
        got = new.run(given)
        tried = [Tiles(t, given[t.ends.source]) for t in trials]
        gates: list[list[np.ndarray]] = [[] for _ in tried]
        off = [0.0] * len(tried)
        for round_ in range(max(t.rounds for t in tried)):
            alike = {t.trial.ends.source: t.maps(round_) for t in tried}
            products = old.run(alike)
            for i, t in enumerate(tried):
                found, residue = t.gates(alike[t.trial.ends.source], products[t.trial.ends.product])
                gates[i].append(found)
                off[i] = max(off[i], residue)
        for i, t in enumerate(tried):
            name, limit = t.trial.block.name, rounding(self.found.shapes.type(t.trial.place.squeeze.source))
            if quantised(t.trial.place):
                limit = max(HALF, _STEPS * self._stepped(t))
            far = t.difference(np.concatenate(gates[i]), got[t.trial.ends.product])
            self.proof.figures[name] = max(far, self.proof.figures.get(name, 0.0))
            if not off[i] <= limit:
                self.proof.refused[name] = (
                    f"as it was, its product is no map times one gate a channel: {off[i]:.1e} off"
                )
            elif not far <= limit:
                self.proof.refused[name] = (
                    f"with tile {t.trial.tile} it is {far:.1e} off from itself on each tile alone, relative to its "
                    f"largest number, where {limit:.0e} is allowed"
                )

    def _stepped(self, tried: Tiles) -> float:
        """How far gates move where the mean of each channel moves by a step of its scale, up or down."""
        place, maps = tried.trial.place, tried.maps(0)
        scale = scale_of_map(place)
        steps = None if not scale else self.found.constants.array(scale[0])
        if steps is None:
            return 0.0
        axis = place.squeeze.axes[0]
        sides = [d if i == axis else 1 for i, d in enumerate(maps.shape)]
        up = np.random.default_rng(0).choice([-1.0, 1.0], sides)
        moved = (maps + up * float(steps.reshape(-1)[0])).astype(maps.dtype)
        source, product = tried.trial.ends
        cut = CutOut(self.before, [tried.trial.ends], self.found.shapes)
        gates = [tried.gates(each, cut.run({source: each})[product])[0] for each in (maps, moved)]
        return float(np.abs(gates[1] - gates[0]).max())


def _shapes(model: OnnxModel, found: Finding) -> Iterator[tuple[int, ...]]:
    """Shapes of batches to run, the best first: a second size where one is free; the plan's own last."""
    image = found.shapes.image
    own = batched(image, image.batch)
    value = next(v for v in model.ir.graph.inputs if v.name == image.name)
    free = [not (isinstance(d, int) and d > 0) for d in value.shape or ()]
    sides = [i for i in range(1, len(own)) if i != image.channel_axis and free[i]]
    batches = [2, 1] if free[0] else [own[0]]
    tried: list[tuple[int, ...]] = []
    for batch in batches:
        for longer in (lambda d: min(d, _LONG) + _STEP, lambda d: d + _STEP, lambda d: 2 * d, lambda d: d):
            shape = (batch, *(longer(d) if i in sides else d for i, d in enumerate(own) if i))
            if shape not in tried:
                tried.append(shape)
    yield from tried
