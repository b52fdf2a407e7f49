"""Write the squeeze of a tile, and the repetition of its gates, as operators of TensorFlow Lite.

Maps are (N, H, W, C). Pools have no padding, and their windows fill what they pool; every value keeps the scale and
zero point of the map, which a mean lies in; gates are repeated by copies, never by a scale that is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..correction import Correction
from ..tile import Tile
from .graph import Quantised, Shape
from .schema import schema
from .writer import Writer

_VALID = 1
# (N, 1, H, C) to (N, 1, C, H) and back: rows as the channels of a convolution. Vela for Ethos-U85 puts a transpose into
# the pool before it, which then reads the map once for each row, unless only the last two axes change places.
_SWAPPED = (0, 1, 3, 2)


def write_squeeze(
    writer: Writer, x: int, tile: Tile, out: int, pool: str, learnt: Correction | None = None
) -> Shape:
    """Write the descriptors of a map.

    Args:
        writer: Where to.
        x: The map.
        tile: The tile.
        out: The tensor that they go into; it gets the map's scale.
        pool: ``MEAN`` or ``AVERAGE_POOL_2D``, what pooled the whole map before; MEAN keeps its own scale.
        learnt: The correction of the descriptors.

    Returns:
        Their shape, (N, rows, cols, C).
    """
    graph = writer.graph
    n, height, width, channels = graph.shape(x)
    rows, cols = tile.grid(height, width)
    shape = (n, rows, cols, channels)
    if pool == "MEAN" and covers(tile, height, width):
        axes = writer.constant("axes", np.array([1, 2], np.int32))
        writer.add("MEAN", [x, axes], shape, schema().ReducerOptionsT(keepDims=True), out=out)
        return shape
    kept = graph.quantised(x)
    if kept is not None:
        writer.reshaped(out, shape, kept)
    if learnt is not None:
        _write_learnt(writer, x, tile, learnt, out)
    elif tile == Tile(1, 1):
        _reshape(writer, x, shape, out)
    elif tile.slides and not covers(tile, height, width):
        _write_rows(writer, x, tile.weights(height), out)
    else:
        if tile.single:
            start, stop = tile.rows(height)
            if (start, stop) != (0, height):
                x = _slice(writer, x, 1, start, stop)
            height, tile = stop - start, Tile(None, None)
        _pool_tiles(writer, x, *tile.size(height, width), out)
    return shape


def write_repeat(writer: Writer, gates: int, tile: Tile, height: int, width: int) -> int:
    """Repeat gates (N, rows, cols, C) over their tiles; along a side that is one tile they are left to broadcast."""
    if tile.single or covers(tile, height, width):
        return gates
    sides = tile.size(height, width)
    for axis, k, length in ((1, sides[0], height), (2, sides[1], width)):
        if 1 < k < length:
            gates = _repeat(writer, gates, axis, k)
            if length % k:
                gates = _slice(writer, gates, axis, 0, length)
    return gates


def covers(tile: Tile, height: int, width: int) -> bool:
    """Whether a tile's one gate sees and scales the whole map."""
    return not tile.single and tile.size(height, width) == (height, width)


def _pool_tiles(writer: Writer, x: int, tall: int, wide: int, out: int | None = None) -> int:
    """Means of tiles, those at the lower and right edge over what they have."""
    height = writer.graph.shape(x)[1]
    rest = height % tall
    if rest:
        parts = [
            _pool_columns(writer, x, tall, wide),
            _pool_columns(writer, _slice(writer, x, 1, height - rest, height), rest, wide),
        ]
        return _join(writer, parts, 1, out)
    return _pool_columns(writer, x, tall, wide, out)


def _pool_columns(writer: Writer, x: int, tall: int, wide: int, out: int | None = None) -> int:
    """Means of complete tiles of rows; a pool without padding leaves out the rows after the last."""
    width = writer.graph.shape(x)[2]
    rest = width % wide
    if rest:
        parts = [
            _pool(writer, x, tall, wide),
            _pool(writer, _slice(writer, x, 2, width - rest, width), tall, rest),
        ]
        return _join(writer, parts, 2, out)
    return _pool(writer, x, tall, wide, out)


def _pool(writer: Writer, x: int, tall: int, wide: int, out: int | None = None) -> int:
    n, height, width, channels = writer.graph.shape(x)
    options = schema().Pool2DOptionsT(
        padding=_VALID, strideH=tall, strideW=wide, filterHeight=tall, filterWidth=wide
    )
    return writer.add("AVERAGE_POOL_2D", [x], (n, height // tall, width // wide, channels), options, out=out)


def _slice(writer: Writer, x: int, axis: int, start: int, stop: int) -> int:
    shape = list(writer.graph.shape(x))
    begin, size = [0] * 4, [-1] * 4
    begin[axis], size[axis], shape[axis] = start, stop - start, stop - start
    ends = [
        writer.constant(what, np.array(list_, np.int32)) for what, list_ in (("begin", begin), ("size", size))
    ]
    return writer.add("SLICE", [x, *ends], tuple(shape), schema().SliceOptionsT())


def _join(writer: Writer, parts: list[int], axis: int, out: int | None = None) -> int:
    shapes = [writer.graph.shape(part) for part in parts]
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    options = schema().ConcatenationOptionsT(axis=axis)
    return writer.add("CONCATENATION", parts, tuple(shape), options, out=out)


def _reshape(writer: Writer, x: int, shape: Shape, out: int | None = None) -> int:
    """The same numbers in another shape; the batch is left open."""
    wanted = np.array([-1, *shape[1:]], np.int32)
    target = writer.constant("shape", wanted)
    return writer.add("RESHAPE", [x, target], shape, schema().ReshapeOptionsT(newShape=wanted), out=out)


def _repeat(writer: Writer, gates: int, axis: int, k: int) -> int:
    """Each gate k times along an axis: k copies side by side, read as one longer axis."""
    n, rows, cols, channels = writer.graph.shape(gates)
    flat = (n, rows, 1, cols * channels) if axis == 1 else (n, rows * cols, 1, channels)
    if flat != (n, rows, cols, channels):
        gates = _reshape(writer, gates, flat)
    copies = _join(writer, [gates] * k, 2)
    long = (n, rows * k, cols, channels) if axis == 1 else (n, rows, cols * k, channels)
    return _reshape(writer, copies, long)


def _write_rows(writer: Writer, x: int, shares: np.ndarray, out: int | None = None) -> int:
    """Means of rows, weighted by (rows of the grid, H) shares: a dense layer over the rows."""
    n, height, width, channels = writer.graph.shape(x)
    count = len(shares)
    rows = _pool(writer, x, 1, width) if width > 1 else x
    byte = writer.graph.type(rows) == "UINT8"
    if byte:  # its weights would have one scale for all rows of the grid
        rows = _signed(writer, rows)
    swapped = _transpose(writer, _reshape(writer, rows, (n, 1, height, channels)), _SWAPPED)
    weights = _weights(writer, swapped, shares.reshape(count, 1, 1, height))
    options = schema().Conv2DOptionsT(
        padding=_VALID, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1
    )
    product = writer.add("CONV_2D", [swapped, *weights], (n, 1, channels, count), options)
    back, shape = _transpose(writer, product, _SWAPPED), (n, count, 1, channels)
    if not byte:
        return _reshape(writer, back, shape, out)
    back = _reshape(writer, back, shape)
    return writer.add("QUANTIZE", [back], shape, schema().QuantizeOptionsT(), like=x, out=out)


def _weights(writer: Writer, x: int, shares: np.ndarray) -> list[int]:
    """The weights of a convolution and a bias of zeros; quantised, each row of them has a scale of its own."""
    quantised, count = writer.graph.quantised(x), len(shares)
    if quantised is None:
        return [
            writer.constant("shares", shares.astype(np.float32)),
            writer.constant("zeros", np.zeros(count, np.float32)),
        ]
    scales = shares.reshape(count, -1).max(1) / 127
    whole = np.rint(shares / scales[:, None, None, None]).astype(np.int8)
    own = Quantised(tuple(map(float, scales)), (0,) * count)
    bias = Quantised(tuple(float(quantised.scale[0] * s) for s in scales), (0,) * count)
    kind = np.int64 if writer.graph.type(x) == "INT16" else np.int32
    return [
        writer.constant("shares", whole, own),
        writer.constant("zeros", np.zeros(count, kind), bias),
    ]


def _signed(writer: Writer, x: int) -> int:
    """uint8 as int8: the same scale, the zero point moved by 128."""
    own = writer.graph.quantised(x)
    assert own is not None
    signed = Quantised(own.scale, (own.zero[0] - 128,))
    out = writer.tensor("signed", writer.graph.shape(x), "INT8", signed)
    return writer.add("QUANTIZE", [x], writer.graph.shape(x), schema().QuantizeOptionsT(), out=out)


def _transpose(writer: Writer, x: int, order: tuple[int, ...], out: int | None = None) -> int:
    shape = writer.graph.shape(x)
    target = writer.constant("order", np.array(order, np.int32))
    new = tuple(shape[i] for i in order)
    return writer.add("TRANSPOSE", [x, target], new, schema().TransposeOptionsT(), out=out)


def _write_learnt(writer: Writer, x: int, tile: Tile, learnt: Correction, out: int) -> None:
    """Descriptors from the means of strips, and of all rows seen, by the numbers of a calibration, in float."""
    height = writer.graph.shape(x)[1]
    own = _real(writer, _write_rows(writer, x, tile.own_weights(height)))
    shape = writer.graph.shape(own)
    total = _affine(writer, "MUL", own, learnt.own)
    if learnt.running is not None:
        seen = _real(writer, _write_rows(writer, x, tile.weights(height)))
        total = writer.add(
            "ADD", [total, _affine(writer, "MUL", seen, learnt.running)], shape, _fused("AddOptionsT")
        )
    if writer.graph.type(out) == "FLOAT32":
        _affine(writer, "ADD", total, learnt.offset, out)
        return
    total = _affine(writer, "ADD", total, learnt.offset)
    writer.add("QUANTIZE", [total], shape, schema().QuantizeOptionsT(), out=out)


def _real(writer: Writer, x: int) -> int:
    if writer.graph.type(x) == "FLOAT32":
        return x
    shape = writer.graph.shape(x)
    return writer.add("DEQUANTIZE", [x], shape, schema().DequantizeOptionsT(), type_="FLOAT32")


def _affine(writer: Writer, kind: str, x: int, numbers: np.ndarray, out: int | None = None) -> int:
    """A product with, or a sum of, (C, strips) numbers."""
    other = writer.constant("learnt", np.ascontiguousarray(numbers.T[None, :, None, :], np.float32))
    options = _fused("MulOptionsT" if kind == "MUL" else "AddOptionsT")
    return writer.add(kind, [x, other], writer.graph.shape(x), options, out=out)


def _fused(name: str) -> Any:
    return getattr(schema(), name)()
