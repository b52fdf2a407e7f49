"""Try one converted block alone in LiteRT, against the block as it was on a map made of one tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..correction import Correction
from ..plan import SEBlock
from ..tile import Tile
from .cutting import cut
from .finder import Finding, Place
from .graph import Quantised
from .running import Runner

# The largest relative difference that rounding makes: in float, and in whole numbers or with whole weights.
FLOAT, WHOLE = 2e-4, 2e-2
# Draws of a change by one step in each descriptor, to see what a step makes.
_DRAWS = 3
# The largest value of a fused activation, and the least.
_FUSED = {0: (-np.inf, np.inf), 1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}


@dataclass(frozen=True)
class Trial:
    """A block to try.

    Attributes:
        block: It.
        tile: What it was given.
        learnt: The correction of its descriptors.
        old: Where it stands in the network as it was.
        new: Where it stands in the converted one.
    """

    block: SEBlock
    tile: Tile
    learnt: Correction | None
    old: Place
    new: Place


class BlockTrial:
    """A block: its excitation cut out of the network as it was, and the whole of it out of the converted one.

    Args:
        trial: It.
        before: The network as it was, with plain SE.
        after: The converted network.
    """

    def __init__(self, trial: Trial, before: Finding, after: Finding) -> None:
        self.trial, self.graph = trial, before.graph
        self.given, gate = trial.old.descriptors, trial.old.excitation.gate
        x, y = trial.old.source, int(trial.old.product.outputs[0])
        # The mean itself is not run: a sum of many equal floats drifts, where a tile's few do not.
        self.old = Runner(cut(before.model, [self.given], [gate]), exact=True)
        self.new = Runner(cut(after.model, [x], [trial.new.excitation.gate, y]), exact=True)
        self.gate_scales = before.graph.quantised(gate), after.graph.quantised(trial.new.excitation.gate)

    @property
    def quantised(self) -> Quantised | None:
        """How its map is quantised."""
        return self.graph.quantised(self.trial.old.source)

    @property
    def whole(self) -> bool:
        """Whether whole numbers take part."""
        weights = [int(layer.op.inputs[1]) for layer in self.trial.old.excitation.layers]
        return self.quantised is not None or any(self.graph.dtype(w).kind in "iu" for w in weights)

    def random_map(self, random: np.random.Generator) -> np.ndarray:
        """Random numbers in the shape of its map, whose rows and columns have means of their own."""
        graph, source = self.graph, self.trial.old.source
        shape = graph.shape(source)
        x = random.standard_normal(shape)
        for axis in range(1, 4):
            x = x + random.standard_normal([d if i == axis else 1 for i, d in enumerate(shape)])
        quantised = self.quantised
        if quantised is None:
            return np.ascontiguousarray(x, graph.dtype(source))
        low, high = self._range()
        return quantised.whole((low + high) / 2 + x * (high - low) / 8, graph.dtype(source))

    def within(self, x: np.ndarray) -> np.ndarray:
        """A map whose means the descriptors of the network as it was can hold."""
        quantised = self.quantised
        if quantised is None:
            return x
        low, high = quantised.whole(np.array(self._range()), x.dtype)
        return np.clip(x, low, high)

    def _range(self) -> tuple[float, float]:
        """The least and the largest mean that both the map's scale and the descriptors' can hold."""
        graph, found = self.graph, []
        for tensor in (self.trial.old.source, self.given):
            quantised = graph.quantised(tensor)
            if quantised is not None:
                limits = np.iinfo(graph.dtype(tensor))
                found.append(quantised.real(np.array([limits.min, limits.max])))
        return float(max(low for low, _ in found)), float(min(high for _, high in found))

    def fault(self, x: np.ndarray) -> tuple[float, str | None]:
        """Try it on a map: how far it is off, and the reason why it is not to be converted."""
        tile = self.trial.tile
        gates, product = self.new({self.trial.old.source: x})
        gates = _real(gates, self.gate_scales[1])
        rows, cols = tile.grid(*x.shape[1:3])
        gates = gates.reshape(x.shape[0], rows, cols, -1)
        count = rows * cols
        far, limit = 0.0, WHOLE if self.whole else FLOAT
        for number in sorted({0, count // 2, count - 1}):
            row, col = divmod(number, cols)
            mean = self._descriptor(x, row, col)
            expected = self._excited(mean)
            largest = float(np.abs(expected).max()) or 1.0
            off = float(np.abs(expected - gates[:, row, col]).max()) / largest
            far = max(far, off)
            # A mean may be rounded to another step of the map's scale; what that makes is looked at.
            allowed = limit if off <= limit else max(limit, 2 * self._step(mean, expected) / largest)
            if not off <= allowed:
                return far, (
                    f"with tile {tile} its gates are {off:.1e} off from its own on each tile alone, relative to the "
                    f"largest, where {allowed:.0e} is allowed"
                )
        off = self._product_off(x, gates, product)
        if not off <= limit:
            return off, f"its product is no map times one gate a channel and tile: {off:.1e} off"
        return max(far, off), None

    def _excited(self, mean: np.ndarray) -> np.ndarray:
        """Gates (N, C) of the block as it was for real descriptors (N, C)."""
        graph, quantised = self.graph, self.graph.quantised(self.given)
        dtype = graph.dtype(self.given)
        given = mean.astype(dtype) if quantised is None else quantised.whole(mean, dtype)
        (gates,) = self.old({self.given: given.reshape(graph.shape(self.given))})
        return _real(gates, self.gate_scales[0]).reshape(len(mean), -1)

    def _step(self, mean: np.ndarray, expected: np.ndarray) -> float:
        """What becomes of gates where each descriptor is one step of the map's scale off; 0 in float."""
        if self.quantised is None:
            return 0.0
        random, step = np.random.default_rng(0), self.quantised.scale[0]
        moved = (mean + step * random.choice([-1.0, 1.0], mean.shape) for _ in range(_DRAWS))
        return max(float(np.abs(self._excited(near) - expected).max()) for near in moved)

    def _descriptor(self, x: np.ndarray, row: int, col: int) -> np.ndarray:
        """What the gates of a tile are computed from, real, (N, C): a number that the map's scale has."""
        tile, learnt, (_, height, width, _) = self.trial.tile, self.trial.learnt, x.shape
        quantised = self.quantised
        if learnt is not None:
            mean = self._learnt(x, row, learnt)
            return mean if quantised is None else quantised.real(quantised.whole(mean, x.dtype))
        wide = width if tile.single else tile.scaled(height, width)[1]
        columns = slice(col * wide, min((col + 1) * wide, width))
        first, stop = tile.bounds(height)[row]
        mean = x[:, first:stop, columns].astype(np.float64).mean((1, 2))
        if quantised is None:
            return mean
        return quantised.real(np.trunc(mean + np.copysign(0.5, mean)))  # as the pool rounds: half away from 0

    def _learnt(self, x: np.ndarray, row: int, learnt: Correction) -> np.ndarray:
        """The corrected descriptor of a strip."""
        height, tile = x.shape[1], self.trial.tile
        rows = _real(x, self.quantised).mean(2)
        total = learnt.own[:, row] * np.einsum("nhc,h->nc", rows, tile.own_weights(height)[row])
        if learnt.running is not None:
            total = total + learnt.running[:, row] * np.einsum("nhc,h->nc", rows, tile.weights(height)[row])
        return np.asarray(total + learnt.offset[:, row])

    def _product_off(self, x: np.ndarray, gates: np.ndarray, product: np.ndarray) -> float:
        """How far a product is from the map times gates, relative to the largest number; within a step it is not."""
        y = int(self.trial.old.product.outputs[0])
        height, width = x.shape[1:3]
        tall, wide = (height, width) if self.trial.tile.single else self.trial.tile.scaled(height, width)
        spread = gates.repeat(tall, 1)[:, :height].repeat(wide, 2)[:, :, :width]
        expected = _real(x, self.quantised) * spread
        options = self.trial.old.product.builtinOptions
        low, high = _FUSED[0 if options is None else options.fusedActivationFunction]
        expected, scale = np.clip(expected, low, high), self.graph.quantised(y)
        got = _real(product, scale)
        largest = float(np.abs(expected).max()) or 1.0
        if scale is None:
            return float(np.abs(expected - got).max()) / largest
        limits = scale.real(np.array([np.iinfo(product.dtype).min, np.iinfo(product.dtype).max]))
        off = np.abs(np.clip(expected, *limits) - got) - 1.01 * scale.scale[0]
        return max(0.0, float(off.max())) / largest


def _real(array: np.ndarray, quantised: Quantised | None) -> np.ndarray:
    return array.astype(np.float64) if quantised is None else quantised.real(array).astype(np.float64)
