"""Means of a map's tiles within the limits of a target: pools in factors, one side after the other.

A pool of side k is k's factors one after the other, each within the target's window and stride: means of equal parts
are exact. Where k has no such factors, and for a shorter last strip, rows are weighted in one product.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from ..errors import TiledSEError
from ..targets import Target
from .factors import SWAPPED

if TYPE_CHECKING:
    from .emit import Writer


class Side(NamedTuple):
    """How one side of a map is averaged.

    Attributes:
        axis: 2 for rows, 3 for columns.
        factors: Sides of the pools, one after the other; empty where no pool does it.
        cut: For tiles that do not divide the side: elements in complete tiles, in the rest, and factors of the rest.
        shares: What no pool does: (tiles, elements), the share of each element, or of each mean of those that were cut,
            in the mean of each tile.
        reduced: Whether ReduceMean takes the whole side.
    """

    axis: int
    factors: tuple[int, ...] = ()
    cut: tuple[int, int, tuple[int, ...]] | None = None
    shares: np.ndarray | None = None
    reduced: bool = False

    @property
    def late(self) -> bool:
        """Whether this side comes last, so that what is cut or weighted is small."""
        return self.cut is not None or self.shares is not None


def factors(side: int, target: Target) -> tuple[int, ...] | None:
    """Sides of pools that make one of ``side``, each within the target's window and stride; None where none do.

    Example:
        >>> factors(112, Target("npu", window=15, static=True)), factors(34, Target("npu", window=15, static=True))
        ((14, 8), None)
    """
    most = _most(side, target)
    found = []
    while side > most:
        part = next((d for d in range(most, 1, -1) if side % d == 0), None)
        if part is None:
            return None
        found.append(part)
        side //= part
    return (*found, side) if side > 1 else tuple(found)


def side_of(axis: int, tile: int, length: int, target: Target) -> Side:
    """How tiles of ``tile`` elements are averaged along a side of ``length``."""
    whole = tile >= length
    if whole and target.mean == "ReduceMean" and target.sides != "both":
        return Side(axis, reduced=True)
    own = factors(min(tile, length), target)
    rest = 0 if whole else length % tile
    if own is not None and not rest:
        return Side(axis, own)
    last = factors(rest, target)
    if own is not None and last is not None:
        return Side(axis, own, cut=(length - rest, rest, last))
    if whole and target.mean == "ReduceMean":
        return Side(axis, reduced=True)
    if whole:
        # Means of windows as large as may be, the last of them smaller, and then their weighted mean.
        most = _most(length, target)
        ends = np.minimum(np.arange(1, -(-length // most) + 1) * most, length)
        rest = length % most
        last = (rest,) if rest > 1 else ()
        return Side(axis, (most,), (length - rest, rest, last), np.diff(ends, prepend=0)[None] / length)
    return Side(axis, shares=_shares(min(tile, length), length))


def _most(side: int, target: Target) -> int:
    """The largest side of a pool."""
    return min(n for n in (target.window, target.stride, side) if n is not None)


def _shares(tile: int, length: int) -> np.ndarray:
    own = np.arange(length)[None] // tile == np.arange(-(-length // tile))[:, None]
    shares: np.ndarray = own / own.sum(1, keepdims=True)
    return shares


def average(writer: Writer, x: ir.Value, sides: list[Side], target: Target) -> tuple[ir.Value, ir.Node]:
    """Means of tiles of a map (N, C, H, W), and the first node that averages."""
    out, first = x, None
    for kernel, reduced in _steps([side for side in sides if not side.late], target):
        out = writer.mean(out, *reduced) if reduced else pool(writer, out, kernel)
        first = first or out.producer()
    # What is cut comes before what is only weighted: a product is to meet few elements.
    for side in sorted((side for side in sides if side.late), key=lambda side: side.cut is None):
        if side.cut is not None:
            out, made = _cut(writer, out, side)
            first = first or made
        if side.shares is not None:
            out = product(writer, out, side.axis, side.shares, target)
            first = first or out.producer()
    if first is None:  # a side of one element: nothing to average, and a block needs a node of its name
        out = writer.node("Identity", [out])
        first = out.producer()
    assert first is not None
    return out, first


Kernel = tuple[int, int]
# A pool by its kernel, or a ReduceMean of axes in its place.
Step = tuple[Kernel, tuple[int, ...]]


def _steps(sides: list[Side], target: Target) -> list[Step]:
    """Pools and means, in order."""
    own = {side.axis: side for side in sides}
    pools: dict[int, list[Step]] = {
        axis: [((f, 1) if axis == 2 else (1, f), ()) for f in side.factors] for axis, side in own.items()
    }
    means: dict[int, list[Step]] = {axis: [((1, 1), (axis,))] for axis, side in own.items() if side.reduced}
    if target.sides == "both":
        rows, cols = (own[axis].factors if axis in own else () for axis in (2, 3))
        joined: list[Step] = [((a, b), ()) for a, b in zip_longest(rows, cols, fillvalue=1)]
        if all(_fits(kernel, target) for kernel, _ in joined):
            return [*joined, ((1, 1), tuple(means))] if means else joined
    order = (3, 2) if target.sides == "columns" else (2, 3)
    steps = [step for axis in order for step in (*pools.get(axis, ()), *means.get(axis, ()))]
    beyond = [kernel for kernel, _ in steps if not _fits(kernel, target)]
    if beyond:
        raise TiledSEError(
            f"target {target.name}: a window of {max(beyond[0])} elements is beyond its window_product of "
            f"{target.window_product}; give it a window as well"
        )
    return steps


def _fits(kernel: tuple[int, int], target: Target) -> bool:
    return target.window_product is None or kernel[0] * kernel[1] <= target.window_product


def pool(writer: Writer, x: ir.Value, kernel: tuple[int, int]) -> ir.Value:
    """Means of windows side by side, that fill the map."""
    return writer.node("AveragePool", [x], kernel_shape=list(kernel), strides=list(kernel))


def _cut(writer: Writer, x: ir.Value, side: Side) -> tuple[ir.Value, ir.Node]:
    """Means of tiles of which the last is shorter: complete tiles and the rest, joined."""
    assert side.cut is not None
    whole, rest, last = side.cut
    parts, first = [], None
    for start, stop, sizes in ((0, whole, side.factors), (whole, whole + rest, last)):
        ends = writer.ints("starts", start), writer.ints("ends", stop), writer.ints("axes", side.axis)
        part = writer.node("Slice", [x, *ends])
        for size in sizes:
            part = pool(writer, part, (size, 1) if side.axis == 2 else (1, size))
            first = first or part.producer()
        parts.append(part)
    assert first is not None  # complete tiles have more than one element where there is a rest
    return writer.node("Concat", parts, axis=side.axis), first


def product(writer: Writer, x: ir.Value, axis: int, shares: np.ndarray, target: Target) -> ir.Value:
    """Weighted means along rows or columns: ``shares`` (outputs, length) times x, as the target takes it.

    Raises:
        TiledSEError: the target takes neither MatMul nor Conv.
    """
    way = next((way for way in target.weighted if way in ("MatMul", "Conv")), None)
    if way is None:
        takes = (
            "a depthwise convolution, so only gates that all see the rows about them alike, such as 1xW:running+6"
            if "DepthwiseConv" in target.weighted
            else "AveragePool with stride 1, so only windows of rows such as 1xW:window-3+3"
        )
        raise TiledSEError(
            f"target {target.name} takes weighted means only as {takes}, and strips that divide their maps; add "
            "MatMul or Conv to its weighted, or give another tile"
        )
    if way == "MatMul":
        swapped = x if axis == 3 else writer.node("Transpose", [x], perm=list(SWAPPED))
        out = writer.node("MatMul", [swapped, writer.numbers("shares", shares.T)])
        return out if axis == 3 else writer.node("Transpose", [out], perm=list(SWAPPED))
    perm = [0, 2, 1, 3] if axis == 2 else [0, 3, 2, 1]
    swapped = writer.node("Transpose", [x], perm=perm)
    weight = writer.numbers("shares", shares[:, :, None, None])
    return writer.node("Transpose", [writer.node("Conv", [swapped, weight], kernel_shape=[1, 1])], perm=perm)
