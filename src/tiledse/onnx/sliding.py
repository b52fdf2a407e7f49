"""Write and read the means of sliding strips: over the columns first, then over the rows that each gate sees.

At a fixed height the second step is a product with ``Tile.weights``, as a dense layer over the rows. At a free height
it is taken from sums of all rows above, in float64, and the first and last row that each gate sees are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..errors import TiledSEError
from ..tile import Tile
from .constants import Constants
from .descriptors import DescriptorReader, Learnt
from .factors import SWAPPED
from .nodes import integer, ints, only_user
from .shapes import Shapes
from .views import ViewReader

if TYPE_CHECKING:
    from .emit import Writer

# Which rows, with which shares, and the means; a tile, its descriptors, and the numbers of a calibration.
Product = tuple[np.ndarray, np.ndarray, ir.Value]
Read = tuple[Tile, ir.Value, "Learnt | None"]

_INT, _FLOAT, _DOUBLE = ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE
# Values to look at between descriptors and the repetition of their gates.
_FARTHEST = 60
# Heights at which what a graph computes is compared with a tile: no strip divides them all.
_HEIGHTS = (1, 2, 3, 7, 16, 61, 128)


def write(
    writer: Writer, rows: ir.Value, tile: Tile, height: int | None, length: ir.Value | None
) -> ir.Value:
    """Descriptors (N, C, strips, 1) of a tile that slides.

    Args:
        writer: Writes the nodes.
        rows: Means of the rows of a map, (N, C, H, 1).
        tile: The tile.
        height: H, or None where it is free.
        length: H as a value, a list of one number, where it is free.
    """
    if height is not None:
        return write_products(writer, rows, tile, height)[-1]
    assert length is not None
    first, last = _write_bounds(writer, tile, length)
    wide = writer.node("Cast", [rows], dtype=_DOUBLE, to=_DOUBLE.value)
    sums = writer.node("CumSum", [wide, writer.constant("axis", np.array(2, np.int64))], dtype=_DOUBLE)
    sums = writer.node("Pad", [sums, writer.ints("one_row", 0, 0, 1, 0, 0, 0, 0, 0)], dtype=_DOUBLE)
    total = writer.node("Gather", [sums, _whole(writer, last)], dtype=_DOUBLE, axis=2)
    count = last
    if first is not None:
        above = writer.node("Gather", [sums, _whole(writer, first)], dtype=_DOUBLE, axis=2)
        total = writer.node("Sub", [total, above], dtype=_DOUBLE)
        count = writer.node("Sub", [last, first], dtype=_FLOAT)
    count = writer.node("Cast", [count], dtype=_DOUBLE, to=_DOUBLE.value)
    count = writer.node("Reshape", [count, writer.ints("shape", -1, 1)], dtype=_DOUBLE)
    means = writer.node("Div", [total, count], dtype=_DOUBLE)
    return writer.node("Cast", [means], to=writer.dtype.value)


def write_products(
    writer: Writer, rows: ir.Value, tile: Tile, height: int, own: bool = False
) -> tuple[ir.Value, ...]:
    """At a fixed height: means over ``Tile.bounds``, and before them, if asked for, those over ``Tile.own_bounds``."""
    swapped = writer.node("Transpose", [rows], perm=list(SWAPPED))
    matrices = {"rows_seen": tile.weights(height)}
    if own:
        matrices = {"rows_own": tile.own_weights(height), **matrices}
    products = [
        writer.node("MatMul", [swapped, writer.numbers(what, matrix.T)]) for what, matrix in matrices.items()
    ]
    return tuple(writer.node("Transpose", [product], perm=list(SWAPPED)) for product in products)


def _write_bounds(writer: Writer, tile: Tile, length: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    """First row (None: 0 for each) and the row after the last, of each strip; in float32, for Min takes no int64 in
    opset 11, and counts rows exactly to 16 million.
    """  # fmt: skip
    assert tile.height is not None
    tall = tile.height

    def number(value: int) -> ir.Value:
        return writer.constant("number", np.array([value], np.float32))

    up = writer.node("Add", [length, writer.ints("more", tall - 1)], dtype=_INT)
    strips = writer.node("Div", [up, writer.ints("tall", tall)], dtype=_INT)
    scalar = writer.node("Reshape", [strips, writer.constant("scalar", np.zeros(0, np.int64))], dtype=_INT)
    zero, one = (writer.constant("scalar", np.array(n, np.int64)) for n in (0, 1))
    strip = writer.node("Range", [zero, scalar, one], dtype=_INT)
    strip = writer.node("Cast", [strip], dtype=_FLOAT, to=_FLOAT.value)
    top = writer.node("Mul", [strip, number(tall)], dtype=_FLOAT)
    last = writer.node("Add", [top, number(tall + tile.ahead)], dtype=_FLOAT)
    if tile.ahead == -tall:
        last = writer.node("Max", [last, number(tall)], dtype=_FLOAT)  # the first strip sees its own rows
    height = writer.node("Cast", [length], dtype=_FLOAT, to=_FLOAT.value)
    last = writer.node("Min", [last, height], dtype=_FLOAT)
    if tile.above is None:
        return None, last
    first = writer.node("Sub", [top, number(tile.above)], dtype=_FLOAT)
    return writer.node("Max", [first, number(0)], dtype=_FLOAT), last


def _whole(writer: Writer, rows: ir.Value) -> ir.Value:
    return writer.node("Cast", [rows], dtype=_INT, to=_INT.value)


class SlidingReader:
    """Reads the means of sliding strips of one graph."""

    def __init__(
        self, constants: Constants, shapes: Shapes, views: ViewReader, descriptors: DescriptorReader
    ) -> None:
        self.constants = constants
        self.descriptors = descriptors
        self.shapes = shapes
        self.views = views

    def read(self, rows: ir.Value, source: ir.Value, axis: int) -> Read | None:
        """Read what follows the means of rows as the second step of a tile that slides.

        Args:
            rows: The means, (N, C, H, 1).
            source: The map.
            axis: Its axis of rows.

        Returns:
            A tile that has this effect, the descriptors and the numbers of a calibration, if there are any; None where
            it is something else.
        """
        step = only_user(rows)
        if step is not None and step.op_type == "Transpose":
            return self._products(step)
        if step is not None and step.op_type == "Cast":
            return self.sums(step, source, axis)
        return None

    def _products(self, swap: ir.Node) -> Read | None:
        """One product with a matrix of shares; or two, of which a calibration makes one descriptor."""
        users = [use.node for use in swap.outputs[0].uses()]
        if ints(swap, "perm", ()) != SWAPPED or swap.outputs[0].is_graph_output():
            return None
        if len(users) == 1:
            read = self._product(swap, users[0])
            if read is None:
                return None
            bounds, weights, means = read
            tile = self._tile(bounds, weights.shape[1], means)
            fits = tile is not None and np.allclose(weights, tile.weights(weights.shape[1]), rtol=2e-3)
            return (tile, means, None) if tile is not None and fits else None
        both = [self._product(swap, user) for user in users]
        return self._learnt(both[0], both[1]) if len(both) == 2 and both[0] and both[1] else None

    def _learnt(self, own: Product, seen: Product) -> Read | None:
        """Descriptors from the means of own rows and of rows seen, by the numbers of a calibration."""
        height = seen[1].shape[1]
        shape = self.shapes.of(seen[2])
        parts = [only_user(means) for _, _, means in (own, seen)]
        channels = 0 if shape is None else shape[1]
        numbers = [self.descriptors.numbers(part, channels) for part in parts]
        joined = {None if part is None else only_user(part.outputs[0]) for part in parts}
        out = joined.pop()
        if out is None or joined or out.op_type != "Add" or numbers[0] is None or numbers[1] is None:
            return None
        last = only_user(out.outputs[0])
        offset = self.descriptors.numbers(last, channels, "Add")
        tile = None if last is None else self._tile(seen[0], height, last.outputs[0])
        if tile is None or last is None or offset is None:
            return None
        for (_, weights, _), expected in ((own, tile.own_weights(height)), (seen, tile.weights(height))):
            if not np.allclose(weights, expected, rtol=2e-3):
                return None
        return tile, last.outputs[0], Learnt(numbers[0], numbers[1], offset)

    def _product(self, swap: ir.Node, product: ir.Node) -> Product | None:
        """Which rows a product takes means of, its matrix, and the means."""
        if product.op_type != "MatMul" or product.inputs[0] is not swap.outputs[0]:
            return None
        back, array = only_user(product.outputs[0]), self.constants.array(product.inputs[1])
        if back is None or back.op_type != "Transpose" or ints(back, "perm", ()) != SWAPPED:
            return None
        if array is None or array.ndim != 2:
            return None
        weights = array.T.astype(np.float64)
        seen = weights != 0
        if not seen.any(1).all():
            return None
        bounds = np.stack([seen.argmax(1), weights.shape[1] - seen[:, ::-1].argmax(1)], 1)
        return bounds, weights, back.outputs[0]

    def _tile(self, bounds: np.ndarray, height: int, descriptors: ir.Value) -> Tile | None:
        return tile_of({height: bounds}, self._tall(descriptors, len(bounds), height))

    def sums(self, cast: ir.Node, source: ir.Value, axis: int) -> Read | None:
        """Read sums of all rows above, at any height; ``cast`` makes the means of rows (N, C, H, 1) wide."""
        total, pad = only_user(cast.outputs[0]), None
        if total is not None and total.op_type == "CumSum" and not total.attributes:
            pad = only_user(total.outputs[0]) if self.constants.ints(total.inputs[1]) == (2,) else None
        if (
            pad is None
            or pad.op_type != "Pad"
            or self.constants.ints(pad.inputs[1]) != (0, 0, 1, 0, 0, 0, 0, 0)
        ):
            return None
        picks = [use.node for use in pad.outputs[0].uses()]
        if not 1 <= len(picks) <= 2 or any(
            n.op_type != "Gather" or integer(n, "axis", 0) != 2 for n in picks
        ):
            return None
        last, first, value = picks[0].inputs[1], None, picks[0].outputs[0]
        if len(picks) == 2:
            less = only_user(value)
            if less is None or less.op_type != "Sub" or {*less.inputs} != {n.outputs[0] for n in picks}:
                return None
            last, first = (v.producer().inputs[1] for v in less.inputs)  # type: ignore[union-attr]
            value = less.outputs[0]
        share = only_user(value)
        if share is None or share.op_type != "Div" or share.inputs[0] is not value or last is None:
            return None
        back = only_user(share.outputs[0])
        if back is None or back.op_type != "Cast" or share.inputs[1] is None:
            return None
        found = self._computed(source, axis, last, first, share.inputs[1])
        if found is None:
            return None
        strips = len(found[_HEIGHTS[-1]])
        tile = tile_of(found, self._tall(back.outputs[0], strips, _HEIGHTS[-1]))
        return None if tile is None else (tile, back.outputs[0], None)

    def _computed(
        self, source: ir.Value, axis: int, last: ir.Value, first: ir.Value | None, count: ir.Value
    ) -> dict[int, np.ndarray] | None:
        """The rows that the graph computes for maps of several heights; None where it computes something else."""
        from onnx.reference import ReferenceEvaluator

        length = self._length(count, source, axis)
        graph = last.graph
        if length is None or graph is None:
            return None
        outputs = [last, count] if first is None else [last, count, first]
        cut = ir.convenience.extract(graph, [length], outputs)
        cut.inputs[0].shape, cut.inputs[0].dtype = ir.Shape([1]), _INT
        evaluator = ReferenceEvaluator(ir.to_proto(ir.Model(cut, ir_version=8)))
        found = {}
        for height in _HEIGHTS:
            feed = {(cut.inputs[0].name or ""): np.array([height], np.int64)}
            ends, counts, *starts = (np.asarray(each) for each in evaluator.run(None, feed))
            begin = starts[0] if starts else np.zeros_like(ends)
            if not np.array_equal(counts.reshape(-1), ends - begin):
                return None
            found[height] = np.stack([begin, ends], 1)
        return found

    def _length(self, value: ir.Value, source: ir.Value, axis: int) -> ir.Value | None:
        """The length of the axis of rows, among what a value is computed from."""
        waiting, seen = [value], set[ir.Value]()
        while waiting:
            value = waiting.pop()
            if self.views.is_length(value, source, axis):
                return value
            node = value.producer()
            for given in () if node is None else node.inputs:
                if given is not None and given not in seen:
                    seen.add(given)
                    waiting.append(given)
        return None

    def _tall(self, descriptors: ir.Value, strips: int, height: int) -> int:
        """Rows of a strip: 1 where each row has a gate, else what the gates are repeated by."""
        if strips == height:
            return 1
        waiting, seen = [descriptors], set[ir.Value]()
        while waiting:
            for use in waiting.pop(0).uses():
                node = use.node
                if node.op_type == "Resize" and len(node.inputs) > 2:
                    scales = self.constants.array(node.inputs[2])
                    return (
                        height if scales is None or scales.size != 4 else max(1, int(scales.reshape(-1)[2]))
                    )
                for out in node.outputs:
                    if out not in seen and len(seen) < _FARTHEST:
                        seen.add(out)
                        waiting.append(out)
        return height


def tile_of(bounds: Mapping[int, np.ndarray], tall: int) -> Tile | None:
    """A tile of strips of ``tall`` rows whose gates see these rows, by height of the map; None where none does.

    Example:
        >>> str(tile_of({5: Tile.parse("1xW:window-2+1").bounds(5)}, 1))
        '1xW:window-2+1'
    """
    aheads, aboves = [], []
    for height, rows in bounds.items():
        for strip, (first, last) in enumerate(rows.tolist()):
            if last < height and (strip > 0 or last != tall):
                aheads.append(last - (strip + 1) * tall)
            if first > 0:
                aboves.append(strip * tall - first)
    # Where no strip says how far ahead it sees, its own end is one, or it sees all rows of each map.
    own = all(rows[0, 1] == min(tall, height) for height, rows in bounds.items())
    ahead = aheads[0] if aheads else 0 if own else max(bounds)
    try:
        tile = Tile(tall, None, "window" if aboves else "running", ahead, aboves[0] if aboves else None)
    except TiledSEError:
        return None
    return tile if all(_agree(tile, height, rows) for height, rows in bounds.items()) else None


def _agree(tile: Tile, height: int, rows: np.ndarray) -> bool:
    if tile.sees_all(height):
        return bool((rows == (0, height)).all())  # however many gates the graph makes of it
    return np.array_equal(tile.bounds(height), rows)
