"""The clock of a step: which rows of each value it brings, and which of them lie in the map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import RowGraph
from ..maps import Linear, Repeat, RowMap, Spread, Strips, Window
from .schedule import Schedule

# A height that is not known yet. Whole numbers up to it are exact in float32 and int32, which some runtimes compute in.
UNKNOWN = 1 << 24


class Clock:
    """Numbers of rows in one step.

    Args:
        graph: The row graph.
        schedule: Of the step.
        first: (1,) int64: the number of the first row of the window.
        height: (1,) int64: rows of the image, or ``UNKNOWN``.
    """

    def __init__(self, graph: RowGraph, schedule: Schedule, first: Tensor, height: Tensor) -> None:
        self.graph, self.schedule = graph, schedule
        self.step = (first + schedule.track(0).kept) // schedule.rows
        self._heights: dict[int, Tensor] = {0: height}
        # By what they are computed from: many layers ask for the same, and each is a handful of operators.
        self._rows: dict[tuple[int, int, int], Tensor] = {}
        self._inside: dict[tuple[int, int, int, int], Tensor] = {}
        self._shares: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, int, int, int], Tensor] = {}
        self._by_map: dict[tuple[int, RowMap], Tensor] = {}

    def height(self, value: int) -> Tensor:
        """Rows of a value, (1,)."""
        if value not in self._heights:
            node = self.graph.nodes[self.graph.values[value].maker]
            how, source = node.maps[0], self.height(node.inputs[0])
            key = id(source), how
            if key not in self._by_map:
                self._by_map[key] = height_of(how, source)
            self._heights[value] = self._by_map[key]
        return self._heights[value]

    def rows(self, value: int, low: int, count: int) -> Tensor:
        """Numbers of rows, (count,): from ``low`` rows after the first of this step on."""
        track = self.schedule.track(value)
        key = track.rows, low - track.lag, count
        if key not in self._rows:
            self._rows[key] = torch.arange(key[1], key[1] + count) + self.step * track.rows
        return self._rows[key]

    def inside(self, value: int, low: int, count: int) -> Tensor:
        """Which of these rows lie in the map."""
        track, height = self.schedule.track(value), self.height(value)
        key = track.rows, low - track.lag, count, id(height)
        if key not in self._inside:
            rows = self.rows(value, low, count)
            self._inside[key] = (rows >= 0) & (rows < height)
        return self._inside[key]

    def share(self, value: int, low: int, count: int) -> Tensor:
        """As ``inside``, as 1 and 0 of the network's type."""
        inside = self.inside(value, low, count)
        key = id(inside)
        if key not in self._shares:
            self._shares[key] = inside.to(self.graph.dtype)
        return self._shares[key]

    def mask(self, value: int, low: int, rows: Tensor) -> Tensor:
        """As ``share`` of some rows (N, C, rows, W), in their shape.

        Spread over the channels by a convolution: its output has the layout in memory that those of other convolutions
        have, so that ONNX Runtime multiplies the two as they lie. A product with (rows, 1) takes the layout apart and
        puts it together again, and all such products take 9 ms of 48 in a step of MobileNetV3-L.
        """
        images, channels, count, columns = rows.shape
        share = self.share(value, low, count)
        key = id(share), images, channels, columns
        if key not in self._masks:
            spread = share.view(1, 1, count, 1).expand(images, 1, count, columns)
            self._masks[key] = F.conv2d(spread, torch.ones(channels, 1, 1, 1, dtype=rows.dtype))
        return self._masks[key]

    def seen(self, value: int) -> Tensor:
        """Rows of the map that have come with this step, (1,)."""
        track = self.schedule.track(value)
        end = (self.step + 1) * track.rows - track.lag
        return torch.minimum(end.clamp(min=0), self.height(value))


def height_of(how: RowMap, height: Tensor) -> Tensor:
    """``how.height`` of a number that a graph computes."""
    if isinstance(how, Window):
        if how.stride == 1 and how.top + how.bottom == how.size - 1:
            return height
        room = height + (how.top + how.bottom - how.size)
        if not how.ceil:
            return room // how.stride + 1
        rows = (room + how.stride - 1) // how.stride + 1
        return rows - ((rows - 1) * how.stride >= height + how.top).to(rows.dtype)
    if isinstance(how, Strips):
        return (height + how.rows - 1) // how.rows
    assert isinstance(how, (Repeat, Spread, Linear))
    return how.height(height)  # type: ignore[arg-type,return-value]  # products and sums, of a tensor as well
