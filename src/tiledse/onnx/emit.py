"""Write a squeeze over tiles, and the repetition of its gates, as ONNX operators.

No pool has padding, and each window lies within its map, so neither ``count_include_pad`` nor ``ceil_mode`` matters.
Runtimes read both in different ways: ONNX Runtime before opset 19 divides a partial window by the whole kernel
(microsoft/onnxruntime#16203), MNN 3.6 computes one-sided pads wrongly, and ncnn does not load them.

A ragged side of known length is cut in two, complete tiles and the rest, and each part has a pool of its own. A side of
free length is padded with zeros to whole tiles, and its means are divided by the share of each tile that is map. Both
work along one axis; what can be averaged before is, so that only small values are cut and padded.

``squeeze.py``, ``steps.py``, ``descriptors.py`` and ``product.py`` read what is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import onnx_ir as ir

from ..correction import Correction
from ..tile import Tile
from . import sliding
from .factors import SWAPPED, running_means
from .squeeze import WHOLE

Sides = tuple["int | None", "int | None"]
# How a side is averaged: over all of it, by a pool of complete tiles, or in ragged tiles of k.
Step = Union[None, "tuple[int, int]", int]


class Writer:
    """Writes nodes before one node of a graph.

    Args:
        model: The network.
        before: The node that the new ones stand before.
        prefix: What the names of new nodes and values begin with.
        dtype: Type of the map.
        taken: Names of all nodes and values; added to.
    """

    def __init__(
        self, model: ir.Model, before: ir.Node, prefix: str, dtype: ir.DataType, taken: set[str]
    ) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports[""] if "" in model.opset_imports else model.opset_imports["ai.onnx"]
        self.before = before
        self.prefix = prefix
        self.dtype = dtype
        self.taken = taken

    def fresh(self, what: str) -> str:
        """A name that nothing has."""
        name, i = f"{self.prefix}/{what}", 1
        while name in self.taken:
            i += 1
            name = f"{self.prefix}/{what}_{i}"
        self.taken.add(name)
        return name

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        """A new initialiser."""
        name = self.fresh(what)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def numbers(self, what: str, array: np.ndarray) -> ir.Value:
        """A new initialiser of the type of the map."""
        return self.constant(what, array.astype(self.dtype.numpy()))

    def ints(self, what: str, *numbers: int) -> ir.Value:
        """A new initialiser of whole numbers."""
        return self.constant(what, np.array(numbers, np.int64))

    def node(
        self, op: str, inputs: Sequence[ir.Value | None], what: str | None = None, dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """A new node with one output."""
        name = self.fresh(what or op)
        out = ir.Value(name=self.fresh(f"{what or op}_output"))
        out.dtype = self.dtype if dtype is None else dtype
        node = ir.node(op, inputs, attributes, outputs=[out], name=name)
        self.graph.insert_before(self.before, node)
        return out

    def mean(self, x: ir.Value, *axes: int) -> ir.Value:
        """A mean along axes, which stay with length 1."""
        if self.opset < 18:
            return self.node("ReduceMean", [x], axes=list(axes), keepdims=1)
        return self.node("ReduceMean", [x, self.ints("axes", *axes)], keepdims=1)

    def length(self, x: ir.Value, axis: int) -> ir.Value:
        """The length of an axis, as a list of one number."""
        shape = self.node("Shape", [x], dtype=ir.DataType.INT64)
        return self.node("Gather", [shape, self.ints("axis", axis)], dtype=ir.DataType.INT64, axis=0)

    def nchw(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Channels to the second axis."""
        return x if tuple(axes) == (1, 2, 3) else self.node("Transpose", [x], perm=[0, *axes])

    def squeeze(
        self, x: ir.Value, axes: tuple[int, int, int], tile: Tile, fixed: Sides, pool: str = "GlobalAveragePool",
        learnt: Correction | None = None,
    ) -> tuple[ir.Value, ir.Node]:  # fmt: skip
        """Descriptors (N, C, rows, cols) of a map, and the node that the block is named after.

        Args:
            x: The map.
            axes: Its axes of channels, rows and columns.
            tile: The tile.
            fixed: Rows and columns of the map; None where they are free.
            pool: What pools a whole map: ReduceMean or GlobalAveragePool, as the network has it.
            learnt: The correction of the descriptors, for maps whose rows are fixed.
        """
        if tile.single:
            x, tile = self._rows(x, axes[1], tile, fixed[0]), WHOLE
        if tile == Tile(1, 1):
            out = self.node("Identity", [self.nchw(x, axes)])
            return out, _made(out)
        if tile.squeeze == "two-step":
            out = self.mean(self.mean(x, axes[2]), axes[1])
            return self.nchw(out, axes), _made(out)
        if covers(tile, fixed):
            if pool == "ReduceMean":
                out = self.mean(x, *axes[1:])
                return self.nchw(out, axes), _made(out)
            # NHWC: one axis is averaged first, so that only its means are transposed.
            out = self.node("GlobalAveragePool", [x if axes[0] == 1 else self._narrowed(x, axes, 1)])
            return out, _made(out)
        if tile.ahead or tile.above is not None:
            means = self.mean(x, axes[2])
            length = self.length(x, axes[1]) if fixed[0] is None else None
            rows = self.nchw(means, axes)
            if learnt is not None:
                assert fixed[0] is not None  # a correction is for maps of one height
                own, out = sliding.write_products(self, rows, tile, fixed[0], own=True)
                out = self._learnt(own, out, learnt)
            else:
                out = sliding.write(self, rows, tile, fixed[0], length)
            return out, _made(means)
        out = x
        named: ir.Node | None = None
        running = tile.squeeze == "running"
        for number, (side, k) in enumerate(_steps(tile, fixed)):
            axis = 2 + side
            if number == 0:
                if k is None:
                    out = self._narrowed(x, axes, side)
                    continue
                out = self.nchw(x, axes)
            if k is None:
                out = self.mean(out, axis)
            elif isinstance(k, tuple):
                out = self.node("AveragePool", [out], kernel_shape=list(k), strides=list(k))
                named = _made(out)
            elif (known := fixed[side]) is None:
                length = self.length(x, axes[1 + side])
                out, named = self._padded_tiles(out, axis, k, length, running)
            else:
                out, named = self._cut_tiles(out, axis, k, known)
        assert named is not None
        own = out
        if running and fixed[0] is not None:
            assert tile.height is not None
            out = self._running(own, running_means(tile.height, fixed[0]))
        return out if learnt is None else self._learnt(own, out, learnt), named

    def _cut_tiles(self, x: ir.Value, axis: int, k: int, length: int) -> tuple[ir.Value, ir.Node]:
        """Means of tiles of k along an axis, the last of them shorter: complete tiles and the rest, joined."""
        whole = length // k * k
        parts = []
        for start, stop, tall in ((0, whole, k), (whole, length, length - whole)):
            ends = self.ints("starts", start), self.ints("ends", stop), self.ints("axes", axis)
            part = self.node("Slice", [x, *ends])
            kernel = [tall, 1] if axis == 2 else [1, tall]
            parts.append(self.node("AveragePool", [part], kernel_shape=kernel, strides=kernel))
        return self.node("Concat", parts, axis=axis), _made(parts[0])

    def _padded_tiles(
        self, x: ir.Value, axis: int, k: int, length: ir.Value, running: bool
    ) -> tuple[ir.Value, ir.Node]:
        """Means of tiles of k along an axis of free length; with ``running``, those of all up to each tile's end."""
        more, int64 = self.ints("more", k - 1), ir.DataType.INT64
        beyond = self.node(
            "Mod", [self.node("Add", [length, more], dtype=int64), self.ints("k", k)], dtype=int64
        )
        spare = self.node("Sub", [more, beyond], dtype=int64)  # zeros that fill the last tile
        before, after = self.ints("before", *[0] * (4 + axis)), self.ints("after", *[0] * (3 - axis))
        pads = self.node(
            "Concat", [before, spare, after] if axis < 3 else [before, spare], dtype=int64, axis=0
        )
        sides = [length if i == axis else self.ints("side", 1) for i in range(4)]
        shape = self.node("Concat", sides, dtype=int64, axis=0)
        ones = self.node("ConstantOfShape", [shape], value=ir.tensor(np.ones(1, self.dtype.numpy())))
        kernel = [k, 1] if axis == 2 else [1, k]
        means = []
        for value, what in ((x, "AveragePool"), (ones, "Share")):
            out = self.node("Pad", [value, pads])
            out = self.node("AveragePool", [out], what, kernel_shape=kernel, strides=kernel)
            means.append((out, _made(out)))
        (out, named), (share, _) = means
        if running:
            out, share = (
                self.node("CumSum", [value, self.constant("rows", np.array(axis, np.int64))])
                for value in (out, share)
            )
        return self.node("Div", [out, share]), named

    def _running(self, pooled: ir.Value, means: np.ndarray) -> ir.Value:
        """Running means of strips (N, C, rows, 1), as a dense layer over the rows.

        CumSum is missing in many compilers for accelerators (TensorRT 7, Furiosa); a product with a constant on the
        right is what they make dense layers of.
        """
        swapped = self.node("Transpose", [pooled], perm=list(SWAPPED))
        product = self.node("MatMul", [swapped, self.numbers("running_means", means)])
        return self.node("Transpose", [product], perm=list(SWAPPED))

    def _learnt(self, own: ir.Value, seen: ir.Value, learnt: Correction) -> ir.Value:
        """Descriptors from the means of strips, and of all rows down to their ends, by the numbers of a calibration."""
        out = self.node("Mul", [own, self.numbers("own", learnt.own[None, :, :, None])])
        if learnt.running is not None:
            other = self.node("Mul", [seen, self.numbers("running", learnt.running[None, :, :, None])])
            out = self.node("Add", [out, other])
        return self.node("Add", [out, self.numbers("offset", learnt.offset[None, :, :, None])])

    def _narrowed(self, x: ir.Value, axes: Sequence[int], side: int) -> ir.Value:
        """The mean along rows (0) or columns (1), channels second."""
        return self.nchw(self.mean(x, axes[1 + side]), axes)

    def _rows(self, x: ir.Value, axis: int, tile: Tile, height: int | None) -> ir.Value:
        """The rows of the one strip that gates the whole map."""
        assert tile.height is not None
        k = tile.height
        if tile.squeeze == "upper" or height is not None:
            start, stop = (0, k) if height is None else tile.rows(height)
            starts, ends = self.ints("starts", start), self.ints("ends", stop)
        else:
            number = self.ints("k", k)
            # Max takes no int64 in opset 11.
            both = self.node("Concat", [self.length(x, axis), number], dtype=ir.DataType.INT64, axis=0)
            longer = self.node("ReduceMax", [both], dtype=ir.DataType.INT64, keepdims=1)
            spare = self.node("Sub", [longer, number], dtype=ir.DataType.INT64)
            starts = self.node("Div", [spare, self.ints("two", 2)], dtype=ir.DataType.INT64)
            ends = self.node("Add", [starts, number], dtype=ir.DataType.INT64)
        return self.node("Slice", [x, starts, ends, self.ints("axes", axis)])

    def repeat(
        self, gates: ir.Value, x: ir.Value, axes: tuple[int, int, int], tile: Tile, fixed: Sides,
        layout: Sequence[int],
    ) -> ir.Value:  # fmt: skip
        """Gates (N, C, rows, cols) as the product takes them: repeated and cropped, row i by tile i // h.

        Along a side that is one tile they are left to broadcast.
        """
        factors = [1 if s is None else s for s in (tile.height, tile.width)]
        ends: dict[int, ir.Value | int] = {}
        if tile.single or covers(tile, fixed):
            factors = [1, 1]
        for side, k in enumerate(factors):
            length = fixed[side]
            if length is not None and k >= length:
                factors[side] = 1
            elif k > 1 and length is None:
                ends[2 + side] = self.length(x, axes[1 + side])
            elif k > 1 and length is not None and length % k:
                ends[2 + side] = length
        if factors != [1, 1]:
            gates = self.node(
                "Resize",
                [gates, self._no_roi(), self.constant("scales", np.array([1, 1, *factors], np.float32))],
                mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
        if ends:
            if all(isinstance(end, int) for end in ends.values()):
                stop = self.ints("ends", *ends.values())  # type: ignore[arg-type]
            else:
                stops = [self.ints("end", e) if isinstance(e, int) else e for e in ends.values()]
                stop = (
                    stops[0]
                    if len(stops) == 1
                    else self.node("Concat", stops, dtype=ir.DataType.INT64, axis=0)
                )
            starts = self.ints("starts", *[0 for _ in ends])
            gates = self.node("Slice", [gates, starts, stop, self.ints("axes", *ends)])
        if tuple(layout) == (0, 2, 3, 1):
            gates = self.node("Transpose", [gates], perm=[0, 2, 3, 1])
        return gates

    def _no_roi(self) -> ir.Value | None:
        """Resize wants a region in opset 11 and 12, and does not look at it."""
        return None if self.opset >= 13 else self.constant("roi", np.zeros(0, np.float32))


def _steps(tile: Tile, fixed: Sides) -> list[tuple[int, Step]]:
    """The sides of a map to average along, in order.

    A side is averaged over all of it (None), by a pool of complete tiles (the kernel, for both sides), or in ragged
    tiles of k. These come last, so that what is cut or padded is small. Where nothing is ragged, one pool does it.
    """
    kernel: list[int] = [1, 1]
    whole, ragged = list[int](), list[tuple[int, Step]]()
    for side, (k, length) in enumerate(zip((tile.height, tile.width), fixed)):
        if k is None or (length is not None and k >= length):
            whole.append(side)
        elif (length is None and (k > 1 or tile.squeeze == "running")) or (length is not None and length % k):
            ragged.append((side, k))
        else:
            kernel[side] = k
    steps = list[tuple[int, Step]]()
    for side in whole:
        length = fixed[side]
        if ragged or length is None:
            steps.append((side, None))
        else:
            kernel[side] = length
    if kernel != [1, 1] or not ragged:
        steps.append((0, (kernel[0], kernel[1])))
    return steps + ragged


def _made(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def covers(tile: Tile, fixed: Sides) -> bool:
    """Whether a tile is the whole map, whatever the free sides are."""
    if tile.slides and fixed[0] is not None:
        return tile.sees_all(fixed[0])
    return (
        not tile.slides
        and not tile.previous
        and not tile.single
        and all(
            side is None or (length is not None and side >= length)
            for side, length in zip((tile.height, tile.width), fixed)
        )
    )
