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
    """A block, cut out of both networks.

    Args:
        trial: It.
        before: The network as it was, with plain SE.
        after: The converted network.
    """

    def __init__(self, trial: Trial, before: Finding, after: Finding) -> None:
        self.trial, self.graph = trial, before.graph
        x, y = trial.old.source, int(trial.old.product.outputs[0])
        self.old = Runner(cut(before.model, [x], [trial.old.excitation.gate, y]), exact=True)
        self.new = Runner(cut(after.model, [x], [trial.new.excitation.gate, y]), exact=True)
        self.gate_scales = tuple(
            g.quantised(p.excitation.gate)
            for g, p in ((before.graph, trial.old), (after.graph, trial.new))
        )

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

    def _range(self) -> tuple[float, float]:
        """The least and the largest mean that both the map's scale and the descriptors' can hold."""
        graph, found = self.graph, []
        for tensor in (self.trial.old.source, self.trial.old.descriptors):
            quantised = graph.quantised(tensor)
            if quantised is not None:
                limits = np.iinfo(graph.dtype(tensor))
                found.append(quantised.real(np.array([limits.min, limits.max])))
        return float(max(low for low, _ in found)), float(min(high for _, high in found))

    def fault(self, x: np.ndarray) -> tuple[float, str | None]:
        """Try it on a map: how far it is off, and the reason why it is not to be converted."""
        trial, source = self.trial, self.trial.old.source
        gates, product = self.new({source: x})
        gates = _real(gates, self.gate_scales[1])
        rows, cols = trial.tile.grid(*x.shape[1:3])
        gates = gates.reshape(x.shape[0], rows, cols, -1)
        count = rows * cols
        far, limit = 0.0, WHOLE if self.whole else FLOAT
        for number in sorted({0, count // 2, count - 1}):
            row, col = divmod(number, cols)
            alike, steps = self._alike(x, row, col)
            expected, _ = self._old(alike)
            largest = float(np.abs(expected).max()) or 1.0
            off = float(np.abs(expected - gates[:, row, col]).max()) / largest
            if self.quantised is not None and off > limit:
                step = max(float(np.abs(self._old(near)[0] - expected).max()) for near in steps) / largest
                off = off if off > 2 * step else limit
            far = max(far, off)
        if not far <= limit:
            return far, (
                f"with tile {trial.tile} its gates are {far:.1e} off from its own on each tile alone, relative to the "
                f"largest, where {limit:.0e} is allowed"
            )
        off = self._product_off(x, gates, product)
        if not off <= limit:
            return off, f"its product is no map times one gate a channel and tile: {off:.1e} off"
        return max(far, off), None

    def _old(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gates (N, C) and product of the block as it was."""
        gates, product = self.old({self.trial.old.source: x})
        return _real(gates, self.gate_scales[0]).reshape(x.shape[0], -1), product

    def _alike(self, x: np.ndarray, row: int, col: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """A map that is everywhere what the gates of one tile are computed from; and some that are a step from it."""
        tile, learnt, (_, height, width, _) = self.trial.tile, self.trial.learnt, x.shape
        wide = width if tile.single else tile.scaled(height, width)[1]
        columns = slice(col * wide, min((col + 1) * wide, width))
        first, stop = tile.bounds(height)[row]
        if learnt is None:
            mean = x[:, first:stop, columns].astype(np.float64).mean((1, 2))
        else:
            mean = self._learnt(x, row, learnt)
        made = np.empty(x.shape, x.dtype)
        if self.quantised is None:
            made[:] = mean[:, None, None]
            return made, []
        limits = np.iinfo(x.dtype)
        whole = np.clip(np.trunc(mean + np.copysign(0.5, mean)), limits.min, limits.max)
        made[:] = whole[:, None, None]
        random = np.random.default_rng(0)
        steps = []
        for _ in range(_DRAWS):
            moved = np.clip(whole + random.choice([-1, 1], whole.shape), limits.min, limits.max)
            steps.append(np.broadcast_to(moved[:, None, None], x.shape).astype(x.dtype))
        return made, steps

    def _learnt(self, x: np.ndarray, row: int, learnt: Correction) -> np.ndarray:
        """The corrected descriptor of a strip, as the map holds its numbers."""
        height, quantised = x.shape[1], self.quantised
        real = x.astype(np.float64) if quantised is None else quantised.real(x)
        rows = real.mean(2)
        total = learnt.own[:, row] * np.einsum("nhc,h->nc", rows, self.trial.tile.own_weights(height)[row])
        if learnt.running is not None:
            seen = np.einsum("nhc,h->nc", rows, self.trial.tile.weights(height)[row])
            total = total + learnt.running[:, row] * seen
        total = total + learnt.offset[:, row]
        return total if quantised is None else total / quantised.scale[0] + quantised.zero[0]

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


