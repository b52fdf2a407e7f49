"""Read the squeeze: which nodes take means over tiles of a map, or over all of it.

Recognised are the pools of the exporters, and what ``emit.py`` writes in their place: the two files are two sides of
one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from ..tile import Tile
from .constants import Constants
from .shapes import Shapes

WHOLE = Tile(None, None)
# The last two axes changed over: about the product that gives running means.
SWAPPED = (0, 1, 3, 2)
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


class Learnt(NamedTuple):
    """The numbers of a calibration as they stand in a graph, (C, strips); ``running`` is None for own strips only."""

    own: np.ndarray
    running: np.ndarray | None
    offset: np.ndarray


@dataclass(frozen=True)
class View:
    """A value traced back through transposes and means along one axis.

    Attributes:
        root: The value that it is a view of.
        axes: For each axis of the value, the axis of ``root``.
        collapsed: Axes of ``root`` that were averaged on the way.
    """

    root: ir.Value
    axes: tuple[int, ...]
    collapsed: frozenset[int] = frozenset()


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
    """

    node: ir.Node
    source: ir.Value
    axes: tuple[int, int, int]
    tile: Tile
    descriptors: ir.Value
    plain: bool
    crop: ir.Node | None = None
    learnt: Learnt | None = None


class Miss(Exception):
    """Why a place that pools a map is no SE block."""


class SqueezeReader:
    """Reads the squeezes of one graph."""

    def __init__(self, constants: Constants, shapes: Shapes) -> None:
        self.constants = constants
        self.shapes = shapes

    def view(self, value: ir.Value, through_means: bool = False) -> View:
        """Trace a map of 4 axes back to the value that it is a transposition of."""
        axes, collapsed = (0, 1, 2, 3), frozenset[int]()
        while (node := value.producer()) is not None and node.domain in ("", "ai.onnx"):
            if node.op_type == "Identity":
                pass
            elif node.op_type == "Transpose" and len(perm := ints(node, "perm", ())) == 4:
                axes = tuple(perm[a] for a in axes)
                collapsed = frozenset(perm[a] for a in collapsed)
            elif through_means and node.op_type == "ReduceMean" and integer(node, "keepdims", 1):
                reduced = self.reduced_axes(node, 4)
                if len(reduced) != 1 or collapsed or not reduced <= {1, 2, 3}:
                    break
                collapsed = collapsed | reduced
            else:
                break
            value = node.inputs[0]  # type: ignore[assignment]
        return View(value, axes, collapsed)

    def same(self, a: ir.Value, b: ir.Value) -> bool:
        """Whether two values are the same map; dequantised twice from one tensor they are."""
        if a is b:
            return True
        one, two = a.producer(), b.producer()
        return (
            one is not None
            and two is not None
            and one.op_type == two.op_type == "DequantizeLinear"
            and tuple(one.inputs) == tuple(two.inputs)
        )

    def reduced_axes(self, node: ir.Node, rank: int) -> set[int]:
        """The axes that a Reduce node averages; empty where they are not constant."""
        axes: tuple[int, ...] | None = ints(node, "axes", None)
        if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
            axes = self.constants.ints(node.inputs[1])
            if axes is None:
                return set()
        if not axes:
            return set() if integer(node, "noop_with_empty_axes", 0) else set(range(rank))
        return {a % rank for a in axes}

    def read(self, node: ir.Node) -> Squeeze | None:
        """Read a node as the pool of a squeeze; None where it pools no map.

        Raises:
            Miss: it pools a whole map, but not as a mean.
        """
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
            return None
        x = node.inputs[0]
        shape = self.shapes.of(x)
        if shape is None or len(shape) != 4 or x in self.constants:
            return None
        if node.op_type in _OTHER_POOLS:
            whole = node.op_type.startswith("Global") or self.reduced_axes(node, 4) in ({2, 3}, {1, 2})
            if whole:
                raise Miss(f"its squeeze takes {_OTHER_POOLS[node.op_type]} ({node.op_type}), not a mean")
            return None
        if node.op_type == "GlobalAveragePool":
            return self._whole(node, x, {2, 3}, plain=True)
        if node.op_type == "ReduceMean":
            reduced = self.reduced_axes(node, 4)
            return self._whole(node, x, reduced, plain=True) if reduced and reduced <= {1, 2, 3} else None
        if node.op_type == "AveragePool":
            return self._average(node, x, shape)
        if node.op_type == "Identity":
            view = self.view(x)
            first, *axes = view.axes
            if first != 0:
                return None
            return Squeeze(node, view.root, (axes[0], axes[1], axes[2]), Tile(1, 1), node.outputs[0], False)
        return None

    def _whole(self, node: ir.Node, x: ir.Value, reduced: set[int], plain: bool) -> Squeeze | None:
        view = self.view(x, through_means=True)
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
        return self.constants.ints(both.inputs[1]) == (k,) and self.is_length(both.inputs[0], source, rows)

    def is_length(self, value: ir.Value | None, source: ir.Value, axis: int) -> bool:
        """Whether a value is the length of an axis of ``source``, as ``emit.py`` computes it."""
        gather = None if value is None else value.producer()
        if gather is None or gather.op_type != "Gather" or self.constants.ints(gather.inputs[1]) != (axis,):
            return False
        shape = gather.inputs[0].producer() if gather.inputs[0] is not None else None
        return (
            shape is not None
            and shape.op_type == "Shape"
            and shape.inputs[0] is source
            and not shape.attributes
        )

    def _average(self, node: ir.Node, x: ir.Value, shape: tuple[int, ...]) -> Squeeze | None:
        kernel, strides = ints(node, "kernel_shape", ()), ints(node, "strides", (1, 1))
        pads, dilations = ints(node, "pads", (0, 0, 0, 0)), ints(node, "dilations", (1, 1))
        if len(kernel) != 2 or string(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
        if any(d != 1 for d in dilations):
            return None
        if kernel == shape[2:] and not any(pads):
            return self._whole(node, x, {2, 3}, plain=True)
        if strides != kernel or integer(node, "ceil_mode", 0) or pads[:2] != (0, 0):
            return None
        if any(p not in (0, k - 1) for p, k in zip(pads[2:], kernel)):
            return None
        padded = any(pads)
        if padded and not integer(node, "count_include_pad", 0):
            return None
        view = self.view(x, through_means=True)
        if view.axes[0] != 0:
            return None
        axes: Any = view.axes[1:]
        if axes not in ((1, 2, 3), (3, 1, 2)):
            return None
        sides: list[int | None] = []
        for side, axis in zip((0, 1), axes[1:]):
            if axis in view.collapsed:
                if kernel[side] != 1:
                    return None
                sides.append(None)
            else:
                whole = (
                    kernel[side] >= shape[2 + side] and not pads[2 + side] and kernel[side] == shape[2 + side]
                )
                sides.append(None if whole else kernel[side])
        # A floor without pads drops what does not fill a tile: then the squeeze is none of ours.
        for side in (0, 1):
            if sides[side] is not None and not pads[2 + side] and shape[2 + side] % kernel[side]:
                return None
        read = self._learnt(node, tuple(sides), padded, shape)  # type: ignore[arg-type]
        if read is not None:
            learnt, descriptors = read
            tile = Tile(sides[0], sides[1], "tiles" if learnt.running is None else "running")
            return Squeeze(node, view.root, axes, tile, descriptors, False, learnt=learnt)
        result = self._corrected(node, tuple(sides), padded, shape)  # type: ignore[arg-type]
        if result is None:
            return None
        running, descriptors = result
        if running and (sides[0] is None or sides[1] is not None):
            return None
        tile = Tile(sides[0], sides[1], "running" if running else "tiles")
        return Squeeze(node, view.root, axes, tile, descriptors, False)

    def _learnt(
        self, node: ir.Node, sides: tuple[int | None, int | None], padded: bool, shape: tuple[int, ...]
    ) -> tuple[Learnt, ir.Value] | None:
        """Follow a pool over the numbers of a calibration, as ``emit.py`` writes them."""
        if sides[0] is None or sides[1] is not None:
            return None
        users = [use.node for use in node.outputs[0].uses()]
        sums = [n for n in users if n.op_type == "Transpose"]
        rest = [n for n in users if n.op_type != "Transpose"]
        if len(sums) > 1 or len(rest) != 1:
            return None
        step: ir.Node | None = rest[0]
        if padded:
            step = self._times(step, node.outputs[0], correction(sides, shape[2], shape[3]))
        own = self._numbers(step, shape)
        if own is None or step is None:
            return None
        out = only_user(step.outputs[0])
        running = None
        if sums:
            seen = self._running(sums[0], sides[0], shape[2])
            step = None if seen is None else only_user(seen)
            running = self._numbers(step, shape)
            joined = None if step is None else only_user(step.outputs[0])
            if running is None or out is None or out.op_type != "Add" or joined is not out:
                return None
            out = only_user(out.outputs[0])
        offset = self._numbers(out, shape, "Add")
        return None if offset is None or out is None else (Learnt(own, running, offset), out.outputs[0])

    def _running(self, swap: ir.Node | None, tall: int | None, height: int) -> ir.Value | None:
        """The running means that a Transpose, a MatMul by the matrix that makes them, and a Transpose give."""
        if swap is None or tall is None or swap.op_type != "Transpose" or ints(swap, "perm", ()) != SWAPPED:
            return None
        product = only_user(swap.outputs[0])
        if product is None or product.op_type != "MatMul" or product.inputs[0] is not swap.outputs[0]:
            return None
        means, expected = self.constants.array(product.inputs[1]), running_means(tall, height)
        if means is None or means.shape != expected.shape:
            return None
        back = only_user(product.outputs[0])
        if back is None or back.op_type != "Transpose" or ints(back, "perm", ()) != SWAPPED:
            return None
        return back.outputs[0] if np.allclose(means.astype(np.float64), expected, rtol=2e-3) else None

    def _times(self, node: ir.Node | None, value: ir.Value, expected: np.ndarray) -> ir.Node | None:
        """The one user of what a Mul by an expected constant gives."""
        if node is None or node.op_type != "Mul" or node.inputs[0] is not value:
            return None
        factor = self.constants.array(node.inputs[1])
        if factor is None or factor.shape != expected.shape:
            return None
        return (
            only_user(node.outputs[0])
            if np.allclose(factor.astype(np.float64), expected, rtol=2e-3)
            else None
        )

    def _numbers(self, node: ir.Node | None, shape: tuple[int, ...], op: str = "Mul") -> np.ndarray | None:
        """The constant (C, strips) that a Mul or Add takes second."""
        array = None if node is None or node.op_type != op else self.constants.array(node.inputs[1])
        if array is None or array.ndim != 4 or array.shape[:2] != (1, shape[1]) or array.shape[3] != 1:
            return None
        return array[0, :, :, 0]

    def _corrected(
        self, node: ir.Node, sides: tuple[int | None, int | None], padded: bool, shape: tuple[int, ...]
    ) -> tuple[bool, ir.Value] | None:
        """Follow a pool over its running sum and the correction of its last tile."""
        value, running = node.outputs[0], False
        follower = only_user(value)
        seen = self._running(follower, sides[0], shape[2])
        if seen is not None:
            return True, seen
        if follower is not None and follower.op_type == "CumSum":
            if (
                self.constants.ints(follower.inputs[1]) != (2,)
                or follower.attributes.get("exclusive") is not None
            ):
                return None
            value, running = follower.outputs[0], True
            follower = only_user(value)
        if not padded and not running:
            return False, value
        if follower is None or follower.op_type not in ("Mul", "Div") or follower.inputs[0] is not value:
            return None
        factor = self.constants.array(follower.inputs[1])
        if factor is not None:
            expected = correction(sides, shape[2], shape[3])
            if running or follower.op_type != "Mul" or factor.shape != expected.shape:
                return None
            if not np.allclose(factor.astype(np.float64), expected, rtol=2e-3):
                return None
            return False, follower.outputs[0]
        if follower.op_type == "Mul" or not self._shares(follower.inputs[1], node, running):
            return None
        return running, follower.outputs[0]

    def _shares(self, value: ir.Value | None, pool: ir.Node, running: bool) -> bool:
        """Whether a value is the same pool over a map of ones."""
        twin = None if value is None else value.producer()
        if running:
            if twin is None or twin.op_type != "CumSum" or self.constants.ints(twin.inputs[1]) != (2,):
                return False
            twin = twin.inputs[0].producer() if twin.inputs[0] is not None else None
        if twin is None or twin.op_type != "AveragePool":
            return False
        if any(ints(twin, key, ()) != ints(pool, key, ()) for key in ("kernel_shape", "strides", "pads")):
            return False
        ones = twin.inputs[0].producer() if twin.inputs[0] is not None else None
        if ones is None or ones.op_type != "ConstantOfShape":
            return False
        fill = ones.attributes.get("value")
        return fill is not None and float(np.asarray(fill.as_tensor().numpy()).reshape(-1)[0]) == 1.0


def correction(sides: tuple[int | None, int | None], height: int, width: int) -> np.ndarray:
    """What a pool that counts its padding is multiplied by, (1, 1, rows, cols): full tile / elements there.

    Example:
        >>> correction((4, None), 10, 1).reshape(-1).tolist()
        [1.0, 1.0, 2.0]
    """

    def along(side: int | None, length: int) -> np.ndarray:
        if side is None:
            return np.ones(1)
        return side / np.diff(_ends(side, length), prepend=0)

    return (along(sides[0], height)[:, None] * along(sides[1], width)[None, :])[None, None]


def running_means(tall: int, height: int) -> np.ndarray:
    """The matrix, (strips, strips), from what a pool that counts its padding gives of strips to running means.

    Row by row on the left: ``pooled @ matrix``.

    Example:
        >>> running_means(4, 10).tolist()
        [[1.0, 0.5, 0.4], [0.0, 0.5, 0.4], [0.0, 0.0, 0.4]]
    """
    ends = _ends(tall, height)
    return np.triu(np.ones((len(ends), len(ends)))) * (tall / ends)


def _ends(side: int, length: int) -> np.ndarray:
    """Where each tile along an axis ends."""
    return np.minimum(np.arange(1, -(-length // side) + 1) * side, length)


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that uses a value, or None."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def ints(node: ir.Node, name: str, default: Any) -> Any:
    """A list of whole numbers from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(int(i) for i in attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """A whole number from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def string(node: ir.Node, name: str, default: str) -> str:
    """A text from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())
