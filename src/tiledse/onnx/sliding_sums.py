"""Means of windows that slide over rows, by operators that see the same window at each row.

A sum over rows is the same at each row but for the rows that it does not have: zeros stand for these. So it is one
depthwise convolution of equal weights, or one pool; a product with one factor a row gives the mean. Nothing is
transposed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from ..targets import Target

if TYPE_CHECKING:
    from .emit import Writer

# Rows of zeros that a convolution pads with; tpu-mlir takes longer pads out of its layer groups.
_PADS = 15


class Window(NamedTuple):
    """The rows that gates see, as one window that moves by equal steps.

    Attributes:
        step: Rows from one gate's window to the next.
        above: Rows of zeros before the map.
        size: Rows of a window.
        below: Rows of zeros behind the map.
    """

    step: int
    above: int
    size: int
    below: int


def window_of(bounds: np.ndarray, step: int, height: int) -> Window | None:
    """The window of which the given rows are what lies within the map; None where there is none.

    Args:
        bounds: First row and the row after the last, of each gate.
        step: Rows from one gate to the next.
        height: Rows of the map.

    Example:
        >>> from tiledse import Tile
        >>> window_of(Tile.parse("1xW:running+1").bounds(5), 1, 5)
        Window(step=1, above=4, size=6, below=1)
        >>> window_of(Tile.parse("1xW:running-1").bounds(5), 1, 5)  # the first sees its own row
    """
    starts = np.arange(len(bounds)) * step
    above, reach = int((starts - bounds[:, 0]).max()), int((bounds[:, 1] - starts).max())
    first, last = np.maximum(starts - above, 0), np.minimum(starts + reach, height)
    below = int(starts[-1]) + reach - height
    if above < 0 or below < 0 or not np.array_equal(np.stack([first, last], 1), bounds):
        return None
    return Window(step, above, above + reach, below)


def slid(
    writer: Writer, x: ir.Value, bounds: np.ndarray, step: int, target: Target, size: tuple[int, int],
    rows: np.ndarray | None = None, pools: bool = False,
) -> ir.Value | None:  # fmt: skip
    """Means over rows that slide, in the first way of a target that sees equal windows; None where another comes first.

    Args:
        writer: Writes the nodes.
        x: Means of rows (N, C, H, 1), or of strips.
        bounds: Which of them each gate sees.
        step: From one gate to the next.
        target: What the form is for.
        size: C and H.
        rows: How many rows each of them stands for; None: the same number.
        pools: Whether a pool with stride 1 will do, where the target wants one.
    """
    window = window_of(bounds, step, size[1])
    for way in target.weighted if window is not None else ():
        assert window is not None
        if way == "AveragePool" and pools and (target.window is None or window.size <= target.window):
            return _pooled(writer, x, bounds, window)
        if way == "DepthwiseConv" and step <= (target.stride or step):
            return _convolved(writer, x, bounds, window, size, rows)
        if way in ("MatMul", "Conv"):
            return None
    return None


def _pooled(writer: Writer, x: ir.Value, bounds: np.ndarray, window: Window) -> ir.Value:
    """By an AveragePool with stride 1 over a map with zeros about it."""
    out = writer.node("Pad", [x, writer.ints("pads", 0, 0, window.above, 0, 0, 0, window.below, 0)])
    out = writer.node("AveragePool", [out], kernel_shape=[window.size, 1], strides=[1, 1])
    back = (window.size / (bounds[:, 1] - bounds[:, 0]))[None, None, :, None]
    return writer.node("Mul", [out, writer.numbers("rows_seen", back)])


def _convolved(
    writer: Writer, x: ir.Value, bounds: np.ndarray, window: Window, shape: tuple[int, int],
    rows: np.ndarray | None,
) -> ir.Value:  # fmt: skip
    """By a depthwise convolution; weights are a power of two, exact in half precision, where no sum overflows then."""
    channels, height = shape
    counts = bounds[:, 1] - bounds[:, 0]
    if rows is not None:
        ends = np.concatenate([[0], np.cumsum(rows)])
        counts = (ends[bounds[:, 1]] - ends[bounds[:, 0]]) / rows.max()
        x = writer.node("Mul", [x, writer.numbers("rows_own", rows[None, None, :, None] / rows.max())])
    size, top, bottom, parts = window.size, window.above, window.below, [x]
    if top > _PADS:
        # Where no window leaves the zeros behind, there may be as many as the map has rows, and nothing is cut.
        leaves = top < (len(bounds) - 1) * window.step
        parts.insert(0, _zeros(writer, x, top if leaves else height, height))
        size, top = size if leaves else size + height - top, 0
    if bottom > _PADS:
        parts.append(_zeros(writer, x, bottom, height))
        bottom = 0
    out = writer.node("Concat", parts, axis=2) if len(parts) > 1 else x
    weight = 2.0 ** -np.ceil(np.log2(size))
    weights = writer.numbers("window", np.full((channels, 1, size, 1), weight))
    out = writer.node(
        "Conv", [out, weights], group=channels, kernel_shape=[size, 1], strides=[window.step, 1],
        pads=[top, 0, bottom, 0],
    )  # fmt: skip
    shares = 1 / (weight * counts)
    return writer.node("Mul", [out, writer.numbers("rows_seen", shares[None, None, :, None])])


def _zeros(writer: Writer, x: ir.Value, count: int, height: int) -> ir.Value:
    """Rows of zeros, as a product: constants of many rows cost more where a graph is cut into groups.

    A row that is not finite (float16 that ran over) makes them so as well.
    """
    if count < height:
        cut = writer.ints("starts", 0), writer.ints("ends", count), writer.ints("axes", 2)
        x = writer.node("Slice", [x, *cut])
    return writer.node("Mul", [x, writer.numbers("zero", np.zeros((1, 1, 1, 1)))])
