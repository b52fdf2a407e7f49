"""Read the squeeze: which nodes take means over tiles of a map, or over all of it.

Recognised are the pools of the exporters, and what ``emit.py`` writes in their place: the two files are two sides of
one table. ``steps.py`` reads the means of tiles, ``descriptors.py`` what follows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..tile import Tile
from .constants import Constants
from .descriptors import DescriptorReader, Learnt
from .frames import FrameReader
from .nodes import Miss, integer, ints, only_user
from .shapes import Shapes
from .sliding import SlidingReader
from .states import State
from .steps import Step, StepReader
from .views import ViewReader

WHOLE = Tile(None, None)
_OTHER_POOLS = {
    "GlobalMaxPool": "a maximum",
    "GlobalLpPool": "a norm",
    "ReduceMax": "a maximum",
    "ReduceSum": "a sum",
    "ReduceL1": "a norm",
    "ReduceL2": "a norm",
    "ReduceLogSumExp": "a log-sum-exp",
    "ReduceSumSquare": "a sum of squares",
}


@dataclass(frozen=True)
class Squeeze:
    """A squeeze, as it stands in a graph.

    Attributes:
        node: The node that the block is named after.
        source: The map.
        axes: The axes of ``source`` that are channels, rows and columns.
        tile: What is averaged.
        descriptors: The value that holds the descriptors.
        plain: Whether each channel gives one value, so that the descriptors may have any number of axes.
        crop: For a strip cut out of the map (``upper``, ``middle``), the Slice node.
        learnt: The numbers of a calibration, where the descriptors are corrected.
        state: What the block keeps from frame to frame, where its tile says so.
    """

    node: ir.Node
    source: ir.Value
    axes: tuple[int, int, int]
    tile: Tile
    descriptors: ir.Value
    plain: bool
    crop: ir.Node | None = None
    learnt: Learnt | None = None
    state: State | None = None

    def nodes(self, model: ir.Model) -> set[ir.Node]:
        """The nodes that take means of the map, for descriptors and for a state; they are no layers of the network."""
        waiting = [self.descriptors]
        if self.state is not None:
            waiting += [value for value in model.graph.outputs if value.name == self.state.output]
        found = {self.node}
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node not in found and node.op_type not in ("Shape", "Conv"):
                found.add(node)
                waiting += [value for value in node.inputs if value is not None and value is not self.source]
        return found


class SqueezeReader:
    """Reads the squeezes of one graph."""

    def __init__(self, constants: Constants, shapes: Shapes, frames: FrameReader) -> None:
        self.constants = constants
        self.shapes = shapes
        self.frames = frames
        self.views = ViewReader(constants, shapes.type)
        self.steps = StepReader(constants, shapes, self.views)
        self.descriptors = DescriptorReader(constants)
        self.slides = SlidingReader(constants, shapes, self.views, self.descriptors)

    def read(self, node: ir.Node) -> Squeeze | None:
        """Read a node as the pool of a squeeze; None where it pools no map.

        Raises:
            Miss: it pools a whole map, but not as a mean.
        """
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
            return None
        x = node.inputs[0]
        shape = self.shapes.of(x)
        if shape is not None and len(shape) == 3 and node.op_type == "ReduceMean":
            return self._flat(node, x, shape)
        if shape is None or len(shape) != 4 or x in self.constants:
            return None
        if node.op_type in _OTHER_POOLS:
            whole = node.op_type.startswith("Global") or self.views.reduced_axes(node, 4) in ({2, 3}, {1, 2})
            if whole:
                raise Miss(f"its squeeze takes {_OTHER_POOLS[node.op_type]} ({node.op_type}), not a mean")
            return None
        if node.op_type == "GlobalAveragePool":
            return self._whole(node, x, {2, 3}, plain=True)
        if node.op_type == "ReduceMean":
            reduced = self.views.reduced_axes(node, 4)
            if len(reduced) == 1 and (slid := self._sliding(node, x, *reduced)) is not None:
                return slid
            return self._whole(node, x, reduced, plain=True) if reduced and reduced <= {1, 2, 3} else None
        if node.op_type == "AveragePool":
            return self._average(node, x, shape)
        if node.op_type == "Identity":
            view = self.views.trace(x)
            first, *axes = view.axes
            if first != 0:
                return None
            return Squeeze(node, view.root, (axes[0], axes[1], axes[2]), Tile(1, 1), node.outputs[0], False)
        return None

    def _sliding(self, node: ir.Node, x: ir.Value, axis: int) -> Squeeze | None:
        """Read a mean over columns as the first step of strips that slide."""
        if not integer(node, "keepdims", 1):
            return None
        rows, user = node.outputs[0], only_user(node.outputs[0])
        if axis == 2 and user is not None and ints(user, "perm", ()) == (0, 3, 1, 2):
            rows = user.outputs[0]
        elif axis != 3:
            return None
        view = self.views.trace(x)
        axes = tuple(view.axes[a] for a in ((3, 1, 2) if axis == 2 else (1, 2, 3)))
        if view.axes[0] != 0 or axes not in ((1, 2, 3), (3, 1, 2)):
            return None
        seen = self.frames.read(node, rows, lambda cast: self.slides.sums(cast, view.root, axes[1]))
        if seen is not None:
            return Squeeze(node, view.root, axes, seen[0], seen[1], False, state=seen[2])
        read = self.slides.read(rows, view.root, axes[1])
        if read is None:
            return None
        tile, descriptors, learnt = read
        return Squeeze(node, view.root, axes, tile, descriptors, False, learnt=learnt)

    def _whole(self, node: ir.Node, x: ir.Value, reduced: set[int], plain: bool) -> Squeeze | None:
        view = self.views.trace(x, through_means=True)
        if view.axes[0] != 0:
            return None
        pooled = {view.axes[a] for a in reduced} | view.collapsed
        rest = {1, 2, 3} - pooled
        if len(pooled) != 2 or len(rest) != 1 or 0 in pooled:
            return None
        (channel,) = rest
        if channel == 2:
            return None  # a mean over channels and columns
        axes = (1, 2, 3) if channel == 1 else (3, 1, 2)
        known = self.shapes.of(view.root)
        source = known is not None and len(known) == 4
        cut = None if not source else self._cut(view.root, axes[1])
        if cut is not None:
            crop, tile = cut
            return Squeeze(node, crop.inputs[0], axes, tile, node.outputs[0], plain, crop)  # type: ignore[arg-type]
        return Squeeze(node, view.root, axes, WHOLE, node.outputs[0], plain)

    def _flat(self, node: ir.Node, x: ir.Value, shape: tuple[int, ...]) -> Squeeze | None:
        """Read a mean over rows and columns that were made one axis, or of which one was averaged and dropped."""
        before, reduced = x.producer(), self.views.reduced_axes(node, 3)
        source = None if before is None or not before.inputs else before.inputs[0]
        known = self.shapes.of(source)
        if before is None or source is None or known is None or len(known) != 4 or len(reduced) != 1:
            return None
        (axis,) = reduced
        if before.op_type == "Reshape":
            joined = {
                2: ((*known[:2], known[2] * known[3]), {2, 3}),
                1: ((known[0], known[1] * known[2], known[3]), {1, 2}),
            }
            flat, pooled = joined.get(axis, ((), set()))
            return self._whole(node, source, pooled, plain=True) if shape == flat else None
        if before.op_type != "ReduceMean" or integer(before, "keepdims", 1):
            return None
        first = self.views.reduced_axes(before, 4)
        left = [a for a in range(4) if a not in first]
        pooled = first | {left[axis]} if len(left) == 3 else set()
        return self._whole(node, source, pooled, plain=True) if len(pooled) == 2 and 0 not in pooled else None

    def _cut(self, value: ir.Value, rows: int) -> tuple[ir.Node, Tile] | None:
        """Read a Slice of some rows: the tiles ``upper`` and ``middle``."""
        node = value.producer()
        if node is None or node.op_type != "Slice" or len(node.inputs) < 4 or node.inputs[0] is None:
            return None
        shape = self.shapes.of(node.inputs[0])
        if shape is None or self.constants.ints(node.inputs[3]) != (rows,):
            return None
        if (
            len(node.inputs) > 4
            and node.inputs[4] is not None
            and self.constants.ints(node.inputs[4]) != (1,)
        ):
            return None
        height = shape[rows]
        starts, ends = self.constants.ints(node.inputs[1]), self.constants.ints(node.inputs[2])
        if starts is not None and ends is not None and len(starts) == len(ends) == 1:
            if starts[0] < 0 or ends[0] <= starts[0]:
                return None
            tile = Tile(ends[0] - starts[0], None, "upper" if starts[0] == 0 else "middle")
            fits = starts[0] == 0 or tile.rows(height) == (starts[0], ends[0])
            return (node, tile) if fits else None
        end, start = (v.producer() if v is not None else None for v in (node.inputs[2], node.inputs[1]))
        if end is None or start is None or end.op_type != "Add" or start.op_type != "Div":
            return None
        k = self.constants.ints(end.inputs[1])
        if k is None or len(k) != 1 or k[0] < 1 or end.inputs[0] is not node.inputs[1]:
            return None
        if not self._half(start, node.inputs[0], rows, k[0]):
            return None
        return node, Tile(k[0], None, "middle")

    def _half(self, div: ir.Node, source: ir.Value, rows: int, k: int) -> bool:
        """Whether a node computes (max(H, k) - k) / 2."""
        sub = div.inputs[0].producer() if div.inputs[0] is not None else None
        if self.constants.ints(div.inputs[1]) != (2,) or sub is None or sub.op_type != "Sub":
            return False
        top = sub.inputs[0].producer() if sub.inputs[0] is not None else None
        if self.constants.ints(sub.inputs[1]) != (k,) or top is None or top.op_type != "ReduceMax":
            return False
        both = top.inputs[0].producer() if top.inputs[0] is not None else None
        if both is None or both.op_type != "Concat" or len(both.inputs) != 2:
            return False
        if self.constants.ints(both.inputs[1]) != (k,):
            return False
        return self.views.is_length(both.inputs[0], source, rows)

    def _average(self, node: ir.Node, x: ir.Value, shape: tuple[int, ...]) -> Squeeze | None:
        """Read an AveragePool, and the steps about it that give the means of tiles with it."""
        step = self._last_step(node)
        if step is None:
            if self.steps.window(node) == shape[2:] and self.steps.part_of(node) is None:
                raise Miss(
                    "its AveragePool is as large as the map at this input size only, and the file leaves the size "
                    "free; fix height and width in the file"
                )
            return None
        sides, value = list(step.sides), step.source
        if step.result is node.outputs[0] and sides == [None, None]:
            return self._whole(node, x, {2, 3}, plain=True)
        before = self.steps.step(value)
        if before is not None:
            # Along the other side, whose tiles are complete, or which was ragged as well.
            for side in (0, 1):
                if before.sides[side] != 1:
                    if sides[side] != 1 or before.running:
                        return None
                    sides[side] = before.sides[side]
            value = before.source
        view = self.views.trace(value, through_means=True)
        if view.axes[0] != 0:
            return None
        axes: Any = view.axes[1:]
        if axes not in ((1, 2, 3), (3, 1, 2)):
            return None
        for side, axis in enumerate(axes[1:]):
            if axis in view.collapsed:
                if sides[side] not in (1, None):
                    return None
                sides[side] = None
        if step.running:
            return self._tiled(node, view.root, axes, sides, step.result, True)
        known = self.shapes.of(view.root)
        if known is None:
            return None
        channels, height = known[axes[0]], known[axes[1]]
        learnt = self.descriptors.learnt(step.result, (sides[0], sides[1]), channels, height)
        if learnt is not None:
            numbers, descriptors = learnt
            return self._tiled(
                node, view.root, axes, sides, descriptors, numbers.running is not None, numbers
            )
        running = None
        if sides[0] is not None and sides[1] == 1 and self.shapes.fixed(view.root, axes[2]) == 1:
            narrow = self.descriptors.running(only_user(step.result), sides[0], height)
            running, sides[1] = narrow, None if narrow is not None else 1
        elif sides[0] is not None and sides[1] is None:
            running = self.descriptors.running(only_user(step.result), sides[0], height)
        return self._tiled(node, view.root, axes, sides, running or step.result, running is not None)

    def _last_step(self, node: ir.Node) -> Step | None:
        """The step that an AveragePool belongs to; None where it is but the pool of a ragged rest."""
        joined = self.steps.part_of(node)
        if joined is not None:
            return self.steps.step(joined.outputs[0]) if joined.inputs[0] is node.outputs[0] else None
        user = only_user(node.outputs[0])
        if user is not None and user.op_type == "CumSum":
            user = only_user(user.outputs[0])
        if (
            user is not None
            and user.op_type == "Div"
            and (step := self.steps.step(user.outputs[0])) is not None
        ):
            pool = user.inputs[0].producer() if user.inputs[0] is not None else None
            pool = pool.inputs[0].producer() if pool is not None and step.running and pool.inputs[0] else pool
            return step if pool is node else None
        return self.steps.step(node.outputs[0])

    def _tiled(
        self, node: ir.Node, root: ir.Value, axes: tuple[int, int, int], sides: list[int | None],
        descriptors: ir.Value, running: bool, learnt: Learnt | None = None,
    ) -> Squeeze | None:  # fmt: skip
        if running and (sides[0] is None or sides[1] is not None):
            return None
        tile = Tile(sides[0], sides[1], "running" if running else "tiles")
        return Squeeze(node, root, axes, tile, descriptors, False, learnt=learnt)
