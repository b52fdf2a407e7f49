"""Try blocks that are gated by the previous frame: a stream of random frames, in the whole converted network.

Each block's product in every frame is compared with the block as it was, cut out of the network as it was and run on
maps that have the means wanted. Streams of a batch are tried side by side, and one of them begins again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import first_line
from .comparing import distance, feeds_of, rounding
from .cutting import CutOut, tapped
from .finder import Finding
from .model import OnnxModel
from .states import states_of
from .trial import Trial

_FRAMES = 4


def prove_frames(
    before: OnnxModel, converted: OnnxModel, found: Finding, trials: Sequence[Trial], sides: Sequence[int]
) -> tuple[dict[str, float], dict[str, str]]:
    """Try blocks.

    Args:
        before: The network, with plain SE in them.
        converted: The network with their tiles.
        found: Where blocks stand in ``before``.
        trials: The blocks.
        sides: Of a frame, without its batch.

    Returns:
        By name, the largest relative difference, and why a block is not to be converted.
    """
    figures: dict[str, float] = {}
    refused: dict[str, str] = {}
    try:
        frames = _run(converted, found, trials, sides)
    except Exception as error:  # whatever ONNX Runtime says
        reason = f"on a stream of frames ONNX Runtime fails: {first_line(error, 120)}"
        return figures, {t.block.name: reason for t in trials}
    for trial in trials:
        name, limit = trial.block.name, rounding(found.shapes.type(trial.place.squeeze.source))
        try:
            far = _difference(_Block(before, found, trial), frames)
        except Exception as error:
            refused[name] = f"it cannot be tried: {first_line(error, 160)}"
            continue
        figures[name] = far
        if not far <= limit:
            refused[name] = (
                f"with tile {trial.tile} a frame of a stream is {far:.1e} off from itself gated by the frame before, "
                f"relative to its largest number, where {limit:.0e} is allowed"
            )
    return figures, refused


def _run(
    converted: OnnxModel, found: Finding, trials: Sequence[Trial], sides: Sequence[int]
) -> list[dict[str, np.ndarray]]:
    """Maps and products of some frames; before the last one, the first stream begins again."""
    states = states_of(converted.ir)
    names = list(dict.fromkeys(name for t in trials for name in t.ends))
    run = tapped(converted, [*names, *(s.output for s in states)])
    image = found.shapes.image
    value = next(v for v in converted.ir.graph.inputs if v.name == image.name)
    free = value.shape is not None and not isinstance(value.shape[0], int)
    shape = (2 if free else image.batch, *sides)
    types = {v.name: v.dtype.numpy() for v in converted.ir.graph.inputs if v.dtype is not None}
    kept = {s.input: np.full((shape[0], *s.shape), np.nan, types[s.input]) for s in states}
    frames = []
    for number in range(_FRAMES):
        feeds = feeds_of(converted, image, shape, seed=number) | kept
        got = run(feeds)
        frames.append({name: got[name] for name in names})
        kept = {s.input: got[s.output].copy() for s in states}
        if number == _FRAMES - 2:
            for array in kept.values():
                array[0] = np.nan
    return frames


class _Block:
    """A block as it was, asked for its gates."""

    def __init__(self, before: OnnxModel, found: Finding, trial: Trial) -> None:
        self.trial = trial
        self.source, self.product = trial.ends
        self.axes = (0, *trial.place.squeeze.axes)
        self.back = np.argsort(self.axes)
        self.layout = np.argsort(trial.place.layout)
        self._dtype = found.shapes.type(trial.place.squeeze.source).numpy()
        self._cut = CutOut(before, [trial.ends], found.shapes)

    def map(self, frame: dict[str, np.ndarray]) -> np.ndarray:
        """Its map in a frame, (N, C, H, W)."""
        return frame[self.source].transpose(self.axes).astype(np.float64)

    def gated(self, frame: dict[str, np.ndarray]) -> np.ndarray:
        """Its product in a frame, (N, C, H, W)."""
        return frame[self.product].transpose(self.layout).astype(np.float64)

    def gates(self, means: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Gates (N, C) for descriptors (N, C), in maps as large as another: pairs at equal distances from them."""
        n, channels, height, width = like.shape
        steps = np.where(np.arange(height * width) % 2, -1.0, 1.0)
        if steps.size % 2:
            steps[-1] = 0
        spread = like.std((2, 3))[:, :, None] + 1e-3
        maps = (means[:, :, None] + steps * spread).reshape(n, channels, height, width)
        given = maps.transpose(self.back).astype(self._dtype)
        made = self._cut.run({self.source: given})[self.product].transpose(self.layout).astype(np.float64)
        gates: np.ndarray = (made * maps).sum((2, 3)) / (maps * maps).sum((2, 3))
        return gates


def _difference(block: _Block, frames: list[dict[str, np.ndarray]]) -> float:
    """The largest relative difference over all frames, in some strips of each."""
    far = 0.0
    for number, frame in enumerate(frames):
        x, y = block.map(frame), block.gated(frame)
        begins = np.zeros(len(x), bool)
        begins[: len(x) if number == 0 else 1 if number == _FRAMES - 1 else 0] = True
        before = block.map(frames[max(number - 1, 0)])
        largest = float(np.abs(y).max(initial=0.0)) or 1.0
        for row in sorted({0, 1, x.shape[2] // 2, x.shape[2] - 1} & set(range(x.shape[2]))):
            means = np.where(
                begins[:, None], _first(block.trial, x, row), _later(block.trial, x, row, before)
            )
            expected = x[:, :, row] * block.gates(means, x)[:, :, None]
            far = max(far, distance(expected, y[:, :, row]) / largest)
    return far


def _first(trial: Trial, x: np.ndarray, row: int) -> np.ndarray:
    """What a row's gate is computed from where no frame came before: the mean of the rows that have come."""
    tall, ahead = trial.tile.height or 1, trial.tile.ahead
    strip = row // tall * tall
    seen = [r for r in range(x.shape[2]) if r < strip + tall + ahead]
    rows = seen or [r for r in range(x.shape[2]) if strip <= r < strip + tall]
    return np.asarray(x[:, :, rows].mean((2, 3)))


def _later(trial: Trial, x: np.ndarray, row: int, before: np.ndarray) -> np.ndarray:
    """What it is computed from after another frame: each row that has not come counts as that frame's."""
    height, tall = x.shape[2], trial.tile.height
    stop = 0 if tall is None else row // tall * tall + tall + trial.tile.ahead
    total = np.zeros(x.shape[:2])
    for r in range(height):
        total += (x if r < stop else before)[:, :, r].mean(2)
    return total / height
