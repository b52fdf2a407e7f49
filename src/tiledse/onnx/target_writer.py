"""Write a block in the form that a target takes: its squeeze, and how its gates come to their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..correction import Correction
from ..errors import TiledSEError
from ..targets import Target
from ..tile import Tile
from .averaging import Side, average, factors, product, side_of
from .emit import Sides, Writer, covers
from .factors import running_means
from .sliding_sums import slid
from .squeeze import WHOLE


class TargetWriter(Writer):
    """A ``Writer`` of the forms of one target, for maps whose rows and columns are fixed.

    Args:
        model: See Writer.
        before: See Writer.
        prefix: See Writer.
        dtype: See Writer.
        taken: See Writer.
        target: What the form is for.
        channels: Channels of the map.
    """

    def __init__(
        self, model: ir.Model, before: ir.Node, prefix: str, dtype: ir.DataType, taken: set[str], target: Target,
        channels: int,
    ) -> None:  # fmt: skip
        super().__init__(model, before, prefix, dtype, taken)
        self.target = target
        self.channels = channels

    def squeeze(
        self, x: ir.Value, axes: tuple[int, int, int], tile: Tile, fixed: Sides, pool: str = "GlobalAveragePool",
        learnt: Correction | None = None,
    ) -> tuple[ir.Value, ir.Node]:  # fmt: skip
        """See Writer."""
        height, width = fixed
        assert height is not None
        assert width is not None
        if tile == Tile(1, 1):
            return super().squeeze(x, axes, tile, fixed, pool, learnt)
        if tile.single:
            first, stop = tile.rows(height)
            if (first, stop) != (0, height):
                x = self._rows(x, axes[1], tile, height)
            height, tile = stop - first, WHOLE
        if covers(tile, (height, width)):
            if tile.squeeze != "two-step" and takes_whole(self.target, height, width):
                return super().squeeze(x, axes, WHOLE, (height, width), pool)
            return self._whole(x, axes, height, width)
        if tile.slides:
            return self._sliding(x, axes, tile, height, width, learnt)
        tall, wide = tile.size(height, width)
        out, named = self._tiles(x, axes, (tall, wide), (height, width))
        return out if learnt is None else self._learnt(out, out, learnt), named

    def _tiles(
        self, x: ir.Value, axes: Sequence[int], tile: tuple[int, int], size: tuple[int, int]
    ) -> tuple[ir.Value, ir.Node]:
        """Means of tiles, (N, C, rows, cols)."""
        rows, cols = (side_of(2 + i, tile[i], size[i], self.target) for i in (0, 1))
        if tuple(axes) != (1, 2, 3) and cols.reduced and not rows.reduced:
            # Channels last: one side is averaged as the map lies, so that only its means are transposed.
            means = self.mean(x, axes[2])
            out, _ = average(self, self.nchw(means, axes), [rows], self.target)
            return out, _made(means)
        return average(self, self.nchw(x, axes), [rows, cols], self.target)

    def _whole(self, x: ir.Value, axes: Sequence[int], height: int, width: int) -> tuple[ir.Value, ir.Node]:
        """The mean of the whole map in two steps: strips or sides, then their means; weighted where one is shorter."""
        target, tall = self.target, height
        if target.sides == "both" and height > 1:
            most = min(n for n in (target.strip, target.window, target.stride, height) if n is not None)
            tall = next((d for d in range(most, 1, -1) if height % d == 0), max(most, 2))
        strips = -(-height // tall)
        out, named = self._tiles(x, axes, (tall, width), (height, width))
        if strips > 1:
            if height % tall:
                rows = np.minimum(np.arange(1, strips + 1) * tall, height)
                shares = np.diff(rows, prepend=0)[None] / height
                out = product(self, out, 2, shares, target)
            else:
                out, _ = average(self, out, [_side_of_means(strips, target)], target)
        last = _made(out)
        # Two means along one axis each are read back by the second.
        return out, last if named.op_type == last.op_type == "ReduceMean" else named

    def _sliding(
        self, x: ir.Value, axes: tuple[int, int, int], tile: Tile, height: int, width: int,
        learnt: Correction | None,
    ) -> tuple[ir.Value, ir.Node]:  # fmt: skip
        """Means over the rows that each gate sees, from means of rows or of strips."""
        assert tile.height is not None
        if not tile.ahead and tile.above is None:
            own, named = self._tiles(x, axes, (tile.height, width), (height, width))
            even = self._running_sums(own, tile.height, height)
            shares = running_means(tile.height, height).T
            seen = product(self, own, 2, shares, self.target) if even is None else even
        else:
            rows, named = self._tiles(x, axes, (1, width), (height, width))
            own = rows
            if learnt is not None:
                own = product(self, rows, 2, tile.own_weights(height), self.target)
            pools = tile.height == 1 and tile.above is not None
            bounds = tile.bounds(height)
            even = slid(self, rows, bounds, tile.height, self.target, (self.channels, height), pools=pools)
            seen = product(self, rows, 2, tile.weights(height), self.target) if even is None else even
        return seen if learnt is None else self._learnt(own, seen, learnt), named

    def _running_sums(self, own: ir.Value, tall: int, height: int) -> ir.Value | None:
        """Means down to the end of each strip, from those of the strips, where the target slides over them."""
        strips = np.arange(-(-height // tall))
        above = np.stack([np.zeros_like(strips), strips + 1], 1)
        rows = np.minimum(height - strips * tall, tall) if height % tall else None
        return slid(self, own, above, 1, self.target, (self.channels, len(strips)), rows)

    def repeat(
        self, gates: ir.Value, x: ir.Value, axes: tuple[int, int, int], tile: Tile, fixed: Sides,
        layout: Sequence[int],
    ) -> ir.Value:  # fmt: skip
        """See Writer."""
        for axis, k, length in self._spread(tile, fixed):
            way = self._way(tile, k, sliced=False)
            if way == "Concat":
                gates = self._joined(gates, axis, k, length)
                continue
            if way == "Resize":
                for factor in resize_factors(k, self.target) or ():
                    gates = self._resized(gates, axis, factor)
            else:
                gates = self._transposed(gates, axis, k)
            if length % k:
                ends = self.ints("starts", 0), self.ints("ends", length), self.ints("axes", axis)
                gates = self.node("Slice", [gates, *ends])
        if tuple(layout) == (0, 2, 3, 1):
            gates = self.node("Transpose", [gates], perm=[0, 2, 3, 1])
        return gates

    def slices(self, tile: Tile, fixed: Sides) -> bool:
        """Whether the map is cut into strips that each meet their gate."""
        sides = self._spread(tile, fixed)
        return any(self._way(tile, k, sliced=len(sides) == 1) == "slices" for _, k, _ in sides)

    def gated(
        self, gates: ir.Value, x: ir.Value, tile: Tile, fixed: Sides, layout: Sequence[int], slot: int
    ) -> ir.Value:
        """The map with each strip times its gate: cut, multiplied and joined.

        Args:
            gates: (N, C, rows, cols), one of which is 1.
            x: The map, in ``layout``.
            tile: The tile.
            fixed: Rows and columns of the map.
            layout: For each axis of the map, which of (N, C, H, W) it is.
            slot: Which input of the products the gates are.
        """
        ((axis, k, length),) = self._spread(tile, fixed)
        sizes = [min(k, length - start) for start in range(0, length, k)]
        where = tuple(layout).index(axis)
        if tuple(layout) == (0, 2, 3, 1):
            gates = self.node("Transpose", [gates], perm=[0, 2, 3, 1])
        parts = zip(self._split(x, where, sizes), self._split(gates, where, [1] * len(sizes)))
        products = [self.node("Mul", [part, gate] if slot else [gate, part]) for part, gate in parts]
        return self.node("Concat", products, axis=where)

    def _spread(self, tile: Tile, fixed: Sides) -> list[tuple[int, int, int]]:
        """The sides along which gates are spread: axis of (N, C, H, W), elements of a tile, length."""
        height, width = fixed
        assert height is not None
        assert width is not None
        sizes = tile.scaled(height, width)
        found = zip((2, 3), sizes, (height, width))
        return [(axis, k, length) for axis, k, length in found if 1 < k < length]

    def _way(self, tile: Tile, k: int, sliced: bool) -> str:
        """The first way of the target that spreads gates by k.

        Raises:
            TiledSEError: there is none.
        """
        for way in self.target.spread:
            if way == "Resize" and resize_factors(k, self.target) is None:
                continue
            if way == "slices" and not sliced:
                continue
            if way == "ConvTranspose" and k > min(self.target.stride or k, self.target.factor or k):
                continue
            return way
        raise TiledSEError(
            f"target {self.target.name} cannot take tile {tile} of '{self.prefix}': {_no_way(k, self.target)}"
        )

    def _resized(self, gates: ir.Value, axis: int, factor: int) -> ir.Value:
        scales = np.ones(4, np.float32)
        scales[axis] = factor
        return self.node(
            "Resize", [gates, self._no_roi(), self.constant("scales", scales)],
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip

    def _transposed(self, gates: ir.Value, axis: int, k: int) -> ir.Value:
        """Gates repeated by a depthwise transposed convolution with weights of one."""
        kernel = [k, 1] if axis == 2 else [1, k]
        weight = self.numbers("ones", np.ones((self.channels, 1, *kernel)))
        return self.node(
            "ConvTranspose", [gates, weight], group=self.channels, kernel_shape=kernel, strides=kernel
        )

    def _joined(self, gates: ir.Value, axis: int, k: int, length: int) -> ir.Value:
        """Each gate as often as its tile has elements, joined."""
        sizes = [min(k, length - start) for start in range(0, length, k)]
        parts = self._split(gates, axis, [1] * len(sizes))
        return self.node("Concat", [p for p, n in zip(parts, sizes) for _ in range(n)], axis=axis)

    def _split(self, x: ir.Value, axis: int, sizes: list[int]) -> list[ir.Value]:
        """Stretches of a value along an axis."""
        outs = [ir.Value(name=self.fresh("Split_output")) for _ in sizes]
        for out in outs:
            out.dtype = self.dtype
        inputs: list[ir.Value | None] = [x]
        attributes: dict[str, Any] = {"axis": axis}
        if self.opset < 13:
            attributes["split"] = sizes
        else:
            inputs.append(self.ints("split", *sizes))
        self.graph.insert_before(
            self.before, ir.node("Split", inputs, attributes, outputs=outs, name=self.fresh("Split"))
        )
        return outs


def _side_of_means(count: int, target: Target) -> Side:
    side = side_of(2, count, count, target)
    return Side(2, reduced=True) if target.mean == "ReduceMean" else side


def resize_factors(k: int, target: Target) -> tuple[int, ...] | None:
    """Factors of Resizes that repeat by k, one after the other; None where the target has none.

    Example:
        >>> npu = Target("npu", resize=(2, 4, 8), static=True)
        >>> resize_factors(16, npu), resize_factors(7, npu)
        ((8, 2), None)
    """
    if target.resize is None:
        return (k,)
    found: list[int] = []
    while k > 1:
        part = next((f for f in sorted(target.resize, reverse=True) if k % f == 0), None)
        if part is None:
            return None
        found.append(part)
        k //= part
    return tuple(found)


def takes_whole(target: Target, height: int, width: int) -> bool:
    """Whether a target takes one pool of a whole map."""
    if target.two_step:
        return False
    if target.whole:
        return True
    sizes = (height, width)
    if target.window is not None and max(sizes) > target.window:
        return False
    return target.window_product is None or height * width <= target.window_product


def _no_way(k: int, target: Target) -> str:
    """Why gates cannot be spread by k, and what the target takes."""
    ways = []
    if "slices" in target.spread:
        ways.append("strips of rows or columns (kxW, Hxk)")
    if "Resize" in target.spread and target.resize is not None:
        ways.append(f"tiles with sides of {', '.join(map(str, target.resize))} and their products")
    if "ConvTranspose" in target.spread:
        ways.append(f"tiles with sides up to {min(target.stride or k, target.factor or k)}")
    return f"its gates cannot be spread over {k} elements; it takes {' and '.join(ways)}, 1xW and HxW"


def _made(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


__all__ = ["TargetWriter", "factors", "resize_factors", "takes_whole"]
