"""Step: a network on R rows of an image at a time, as a module of fixed shapes that takes and gives its state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import Node, RowGraph
from ..maps import Linear, RowMap, Spread, Window
from .clock import Clock
from .descriptors import LOWEST, Descriptors
from .reach import first, until
from .schedule import Schedule
from .sums import add

# Shape, start value and meaning of what is kept.
Kept = tuple[tuple[int, ...], float, str]
# Far from the first row, so that nothing pads.
_FAR = 1 << 20
# Rows more than that are cut, for a crop takes a multiply-add each; maps of fewer channels are cut and masked as they
# lie.
_WIDEST_CROP = 7
_NARROWEST_CROP = 8


@dataclass(frozen=True)
class State:
    """What a step hands to the next.

    Args:
        name: After the layer.
        layer: The layer that made it.
        shape: Its shape, always the same.
        start: What it is filled with before the first step.
        meaning: What it holds.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    start: float
    meaning: str


class Held:
    """The rows of a value that are there in a step.

    Args:
        rows: Those that the step brings, and before them those that it made once more.
        before: Those that were kept.
        again: How many were made once more.
        count: Rows that the step brings.
        dim: The axis of the rows; None where it has none.
    """

    def __init__(self, rows: Tensor, before: Tensor | None, again: int, count: int, dim: int | None) -> None:
        self.rows, self.before, self.again, self.count, self.dim = rows, before, again, count, dim
        self._parts: dict[tuple[int, int], Tensor] = {}

    @property
    def new(self) -> Tensor:
        """The rows that the step brings."""
        return self.rows if self.dim is None else self.read(0, self.count)

    def read(self, low: int, count: int) -> Tensor:
        """Rows from ``low`` rows after the first that the step brings; what needs no copy is not copied."""
        assert self.dim is not None
        if (low, count) not in self._parts:
            self._parts[low, count] = self._read(low, count, self.dim)
        return self._parts[low, count]

    def _read(self, low: int, count: int, dim: int) -> Tensor:
        if self.before is None:
            top = low + self.again
            if dim == 2 and self.again and self.rows.dim() == 4 and self.rows.shape[1] >= _NARROWEST_CROP:
                return _cropped(self.rows, top, count)
            return _cut(self.rows, top, count, dim)
        parts = []
        if low < 0:
            parts.append(_cut(self.before, low + self.before.shape[dim], min(count, -low), dim))
        if low + count > 0:
            parts.append(_cut(self.rows, max(low, 0), count - (parts[0].shape[dim] if parts else 0), dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _cut(rows: Tensor, low: int, count: int, dim: int) -> Tensor:
    return rows if low == 0 and count == rows.shape[dim] else rows.narrow(dim, low, count)


def _cropped(rows: Tensor, low: int, count: int) -> Tensor:
    """Some rows, by a convolution that picks one row of its window.

    Convolutions keep the layout in memory that the layers before and after have; cutting changes it there and back.
    """
    size = rows.shape[2] - count + 1
    if size == 1:
        return rows
    if size > _WIDEST_CROP:
        return rows.narrow(2, low, count)
    pick = torch.zeros(rows.shape[1], 1, size, 1, dtype=rows.dtype)
    pick[:, :, low] = 1
    return F.conv2d(rows, pick, groups=rows.shape[1])


class Step(nn.Module):
    """One step of a network: ``step(image, first, height, *state)`` gives outputs, a table of rows and the new state.

    Args:
        graph: The row graph.
        schedule: Of the step.
        edges: Whether rows of a step may lie outside of the maps. Without, a step is for the middle of an image.

    Shape:
        image (N, C, window, W), of sound (N, C, window), with zeros for rows outside of it; first, height (1,) int64.
        Each output with as many rows as a step brings; rows (heads, 3) int64: of each output the first row that is one,
        the row after the last, and how many come later.
    """

    def __init__(self, graph: RowGraph, schedule: Schedule, edges: bool = True) -> None:
        super().__init__()
        self.graph, self.schedule, self.edges = graph, schedule, edges
        self.states: list[State] = []
        self._place: dict[tuple[str, int], dict[str, int]] = {}
        self._descriptors: dict[int, Descriptors] = {}
        self._names: dict[str, int] = {}
        for index, track in enumerate(schedule.tracks):
            if track is not None and track.kept and not track.again:
                value = graph.values[index]
                assert value.row_dim is not None
                shape = list(value.shape)
                shape[value.row_dim] = track.kept
                what = f"the last {track.kept} rows"
                self._keep(("rows", index), value.name, {"rows": (tuple(shape), 0.0, what)})
        for index, node in enumerate(graph.nodes):
            if node.kind == "squeeze":
                source = graph.values[node.inputs[0]]
                made = Descriptors(
                    node, schedule.track(node.inputs[0]), schedule.track(node.output), source.shape[3]
                )
                self._descriptors[index] = made
                self._keep(("node", index), str(node.block), made.states(*source.shape[:2]))
            elif node.absorbs:
                self._keep(("node", index), node.name, self._total_states(node))

    def _keep(self, key: tuple[str, int], layer: str, kept: dict[str, Kept]) -> None:
        places = self._place[key] = {}
        for what, (shape, start, meaning) in kept.items():
            name = f"{layer}:{what}"
            number = self._names[name] = self._names.get(name, 0) + 1
            name = name if number == 1 else f"{name}:{number}"
            places[what] = len(self.states)
            self.states.append(State(name, layer, shape, start, meaning))

    def _total_states(self, node: Node) -> dict[str, Kept]:
        value = self.graph.values[node.inputs[0]]
        part = torch.zeros((1,), dtype=self.graph.dtype).expand(value.shape)
        shape = tuple(node.run(part, None)[0].shape)
        if node.kind == "amax":
            return {"largest": (shape, LOWEST, "the largest of all rows so far")}
        if node.kind == "softmax":
            sums, none = tuple(node.run(part, None)[1].shape), "the same of what rounding left out"
            return {
                "largest": (shape, LOWEST, "the largest logit of all rows so far"),
                "sum": (sums, 0.0, "the sums of weights, relative to the largest, and of what they weigh"),
                "rest": (sums, 0.0, none),
            }
        return {
            "sum": (shape, 0.0, "the sum of all rows so far"),
            "rest": (shape, 0.0, "what rounding left out of that sum"),
        }

    @property
    def descriptors(self) -> list[Descriptors]:
        """The squeezes."""
        return list(self._descriptors.values())

    def start(self) -> list[Tensor]:
        """The state before the first step."""
        return [torch.full(s.shape, s.start, dtype=self.graph.dtype) for s in self.states]

    def forward(self, image: Tensor, first: Tensor, height: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """See Step."""
        graph, tracks = self.graph, self.schedule.tracks
        clock = Clock(graph, self.schedule, first, height)
        new: list[Tensor] = list(state)
        values: dict[int, Held] = {}
        complete: dict[int, Tensor] = {}

        def hold(index: int, rows: Tensor) -> None:
            track, dim = tracks[index], graph.values[index].row_dim
            again = 0 if track is None or not track.again else track.kept
            held = values[index] = Held(rows, None, again, 0 if track is None else track.rows, dim)
            if track is not None and track.kept and not track.again:
                place = self._place["rows", index]["rows"]
                held.before = state[place]
                new[place] = held.read(track.rows - track.kept, track.kept)

        # Frames of sound have no columns, those of a clip two axes of them.
        hold(0, image if image.dim() == 4 else image.reshape(*image.shape[:3], -1))
        for index, node in enumerate(graph.nodes):
            if index in self._descriptors:
                places = self._place["node", index]
                kept = {what: state[place] for what, place in places.items()}
                source = values[node.inputs[0]]
                rows, kept = self._descriptors[index](source.rows, source.again, clock, kept, self.edges)
                for what, place in places.items():
                    new[place] = kept[what]
            elif node.absorbs:
                rows = self._total(index, node, values, clock, state, new)
                complete[node.output] = clock.seen(node.inputs[0]) >= clock.height(node.inputs[0])
            elif tracks[node.output] is None:
                rows = node.run([values[i].rows for i in node.inputs], 0, graph.values[node.output].height)
                ready = [complete[i] for i in node.inputs]
                complete[node.output] = ready[0] if len(ready) == 1 else torch.stack(ready).all(0)
            else:
                rows = self._rows(node, values, clock)
            for step in node.tail:
                rows = step(rows)
            hold(node.output, rows)
        outputs = [values[index].new for index in graph.outputs]
        table = torch.stack([self._valid(index, clock, complete) for index in graph.outputs])
        return (*outputs, table, *new)

    def _rows(self, node: Node, values: dict[int, Held], clock: Clock) -> Tensor:
        """The rows of a node that is local in rows."""
        out = self.schedule.track(node.output)
        again = out.kept if out.again else 0
        parts = []
        for index, how in zip(node.inputs, node.maps):
            source = self.schedule.track(index)
            low = first(how, -out.lag - again) + source.lag
            high = until(how, out.rows - out.lag) + source.lag
            parts.append(self._read(index, low, high - low, node, how, clock, values))
        start = out.rows * _FAR - out.lag
        rows: Tensor = node.run(parts, start - again, start + out.rows)
        if self.edges and node.outside == float("-inf"):
            # A maximum over no row of the map is no number to go on with.
            inside = clock.inside(node.output, -again, out.rows + again)
            rows = torch.where(inside.view(1, 1, -1, *[1] * (rows.dim() - 3)), rows, 0.0)
        if self.edges and not node.counted and reads_outside(node.maps[0]):
            rows = rows * self._share(node, again, clock).to(rows.dtype)
        return rows

    def _read(
        self,
        index: int,
        low: int,
        count: int,
        node: Node,
        how: RowMap,
        clock: Clock,
        values: dict[int, Held],
    ) -> Tensor:
        """Rows of a value, from ``low`` rows after the first of this step on; as the node sees those outside."""
        track, dim = self.schedule.track(index), self.graph.values[index].row_dim
        assert dim is not None
        if self.edges and reads_outside(how) and node.outside is None:
            # The nearest row of the map, as far as it is there; what is not, no row of the map asks for.
            height = clock.height(index)
            rows = torch.minimum(clock.rows(index, low, count).clamp(min=0), height - 1)
            place = rows - clock.rows(index, -track.kept, 1)
            count = self.schedule.window if index == 0 else track.kept + track.rows
            there = values[index].read(-track.kept, count)
            return there.index_select(dim, place.clamp(0, count - 1))
        part = values[index].read(low, count)
        assert node.outside is not None or not (self.edges and reads_outside(how))
        if not self.edges or not reads_outside(how) or (index == 0 and node.outside == 0):
            return part
        assert node.outside is not None
        shape = [1] * part.dim()
        shape[dim] = count
        if node.outside == 0:
            # Runtimes are three times as fast at a product as at a choice. Rows outside are finite, as those of a
            # black image are; what is not shows in the output.
            if dim == 2 and part.dim() == 4 and part.shape[1] >= _NARROWEST_CROP:
                return part * clock.mask(index, low, part)
            return part * clock.share(index, low, count).view(shape)
        outside = max(node.outside, LOWEST)
        return torch.where(clock.inside(index, low, count).view(shape), part, outside)

    def _share(self, node: Node, again: int, clock: Clock) -> Tensor:
        """Of means over the rows that are there: what a mean over whole windows is to be multiplied with."""
        how, out = node.maps[0], self.schedule.track(node.output)
        assert isinstance(how, Window)
        height = clock.height(node.inputs[0])
        tops = clock.rows(node.output, -again, out.rows + again) * how.stride - how.top
        ends = torch.minimum(tops + how.size, height)
        rows = (ends - tops.clamp(min=0)).clamp(min=1)
        return (how.size / rows.to(torch.float32)).view(1, 1, -1, 1)

    def _total(
        self, index: int, node: Node, values: dict[int, Held], clock: Clock, state: tuple[Tensor, ...],
        new: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """A mean, sum or maximum over all rows so far."""
        source = node.inputs[0]
        part, track, dim = (
            values[source].new,
            self.schedule.track(source),
            self.graph.values[source].row_dim,
        )
        assert dim is not None
        if node.kind == "softmax":
            return self._softmax(index, node, part, clock, state, new)
        if self.edges:
            shape = [1] * part.dim()
            shape[dim] = track.rows
            outside = LOWEST if node.kind == "amax" else 0.0
            part = torch.where(clock.inside(source, 0, track.rows).view(shape), part, outside)
        now, elements = node.run(part, None)
        places = self._place["node", index]
        assert node.finish is not None
        if node.kind == "amax":
            largest = torch.maximum(state[places["largest"]], now)
            new[places["largest"]] = largest
            return node.finish((largest, 0))
        total = add((state[places["sum"]], state[places["rest"]]), now)
        new[places["sum"]], new[places["rest"]] = total
        count = clock.seen(source).clamp(min=1).to(now.dtype) * (elements // track.rows)
        return node.finish((total[0] + total[1], count))

    def _softmax(
        self, index: int, node: Node, part: Tensor, clock: Clock, state: tuple[Tensor, ...], new: list[Tensor]
    ) -> Tensor:
        """A sum weighed by a softmax over all rows so far."""
        source, places = node.inputs[0], self._place["node", index]
        track, dim = self.schedule.track(source), self.graph.values[source].row_dim
        assert dim is not None
        inside = None
        if self.edges:
            shape = [1] * (part.dim() - 1)  # the last axis is that of logits and what they weigh
            shape[dim] = track.rows
            inside = clock.inside(source, 0, track.rows).view(shape)
        top, now, _ = node.run(part, None, inside)
        most = torch.maximum(state[places["largest"]], top)
        before, after = (
            torch.exp(state[places["largest"]] - most)[..., None],
            torch.exp(top - most)[..., None],
        )
        total = add((state[places["sum"]] * before, state[places["rest"]] * before), now * after)
        new[places["largest"]] = most
        new[places["sum"]], new[places["rest"]] = total
        count = clock.seen(source).clamp(min=1).to(now.dtype)
        assert node.finish is not None
        return node.finish((most, total[0] + total[1], count))

    def _valid(self, index: int, clock: Clock, complete: dict[int, Tensor]) -> Tensor:
        """Of an output: the first row that is one, the row after the last, and how many come later."""
        track = self.schedule.tracks[index]
        if track is None:
            done = complete[index].to(torch.int64)
            return torch.cat([torch.zeros_like(done), done, 1 - done])
        start = clock.rows(index, 0, 1)
        left = clock.height(index) - start
        low = (-start).clamp(0, track.rows)
        high = torch.maximum(left.clamp(0, track.rows), low)
        return torch.cat([low, high, (left - track.rows).clamp(min=0)])


def reads_outside(how: RowMap) -> bool:
    """Whether rows of the map are made from rows outside of the map that is read."""
    if isinstance(how, Window):
        return how.top > 0 or how.bottom > 0 or how.ceil
    if isinstance(how, Spread):
        return how.size > how.stride or how.top > 0 or how.bottom < 0
    return isinstance(how, Linear) and how.factor > 1
