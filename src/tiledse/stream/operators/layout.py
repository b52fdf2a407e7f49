"""Operators that put elements elsewhere: slices, parts, joins, views, axes in another order, repeats."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from ..builder import Builder, Ref
from ..maps import SAME, First, Table, Window
from .table import Fx, argument, by_row, on, shape_of


@on("slice")
def cut(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A slice; of rows it is a crop."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    dim = argument(fx, 1, 0) % len(value.shape)
    if dim != value.row_dim:
        return by_row(b, fx, pick, value.row_dim)
    start, end = argument(fx, 2, None) or 0, argument(fx, 3, None)
    step = argument(fx, 4, 1)
    height = value.height
    first = max(0, start + height if start < 0 else start)
    rows = shape_of(fx, pick)[dim]
    open_end = end is None or end >= height
    if first == 0 and step == 1 and rows == height:
        return by_row(b, fx, pick, value.row_dim)
    window = Window(1, step, -first, 0 if open_end else (first + (rows - 1) * step + 1) - height)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return parts[0].narrow(dim, 0, (hi - lo - 1) * step + 1)[
            (slice(None),) * dim + (slice(None, None, step),)
        ]

    why = None if open_end and start >= 0 else f"{b.layer(fx)} cuts rows off at the end"
    return b.add(fx, "crop", refs, [window], run, dim, pick, needs_height=why)


@on("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "select")
def parts_of(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Parts along an axis that is not the rows."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    name = str(fx.target)
    at = 1 if ("unbind" in name or "select" in name) else 2
    dim = argument(fx, at, 0) % len(value.shape)
    row_dim = value.row_dim
    if dim == row_dim or row_dim is None:
        return b.whole(fx, pick)
    gone = ("unbind" in name or "select" in name) and dim < row_dim
    return by_row(b, fx, pick, row_dim - gone)


@on("cat", "stack")
def together(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Maps side by side, along an axis that is not the rows."""
    refs, call = b.call(fx, pick)
    values = [b.values[r.index] for r in refs]
    out = shape_of(fx, pick)
    dim = argument(fx, 1, 0) % len(out)
    stack = "stack" in str(fx.target)
    row_dims = {v.row_dim for v in values}
    heights = {v.height for v in values}
    if len(row_dims) != 1 or len(heights) != 1 or None in row_dims or len(refs) != len(fx.args[0]):  # type: ignore[arg-type]
        return b.whole(fx, pick)
    row_dim = row_dims.pop()
    assert row_dim is not None
    if stack:
        row_dim += dim <= row_dim
    elif dim == row_dim:
        return b.whole(fx, pick)
    run = lambda parts, lo, hi: call(parts)  # noqa: E731
    return b.add(fx, "join", refs, [SAME] * len(refs), run, row_dim, pick, fresh=True)


@on("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as")
def reshaped(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The same elements in another shape, if the axis of the rows stays one axis."""
    refs, call = b.call(fx, pick)
    value, out = b.values[refs[0].index], shape_of(fx, pick)
    assert value.row_dim is not None
    if value.height == 1 and value.shape[value.row_dim] == 1:
        return b.add(fx, "row", refs, [SAME], lambda parts, lo, hi: call(parts), None, pick)
    before = prod(value.shape[: value.row_dim])
    row_dim = next(
        (i for i, side in enumerate(out) if side == value.height and prod(out[:i]) == before), None
    )
    if row_dim is None:
        return b.whole(fx, pick)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return parts[0].reshape(*out[:row_dim], -1, *out[row_dim + 1 :])

    return b.add(fx, "row", refs, [SAME], run, row_dim, pick)


@on("copy")
def copied(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Values written over a map: from then on it is what was written, and nobody waits for what it was."""
    source = b.filled(fx)[0][1]
    if isinstance(source, Ref) and b.values[source.index].shape == shape_of(fx, pick):
        return source
    return b.whole(fx, pick)


@on("permute", "transpose", "movedim")
def turned(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Axes in another order."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    rank = len(value.shape)
    args: Any = fx.args
    assert value.row_dim is not None
    if "permute" in str(fx.target):
        order = [d % rank for d in args[1]]
    elif "transpose" in str(fx.target):
        order = list(range(rank))
        i, j = args[1] % rank, args[2] % rank
        order[i], order[j] = order[j], order[i]
    else:
        return b.whole(fx, pick)
    return by_row(b, fx, pick, order.index(value.row_dim))


def over_its_map(b: Builder, fx: Fx) -> Ref | None:
    """A statistic of all rows of a map, repeated for each of them; None where it is something else.

    The map says how many rows there are, so their number need not be known.
    """
    refs, _ = b.call(fx)
    if len(refs) != 1:
        return None
    value, out = b.values[refs[0].index], shape_of(fx, None)
    maker = value.maker
    while maker >= 0 and not b.nodes[maker].absorbs:
        maker = b.values[b.nodes[maker].inputs[0]].maker
    if maker < 0 or len(value.shape) != len(out):
        return None
    whole = b.nodes[maker].inputs[0]
    row_dim, height = b.values[whole].row_dim, b.values[whole].height
    sides = list(value.shape)
    if row_dim is None or len(b.values[whole].shape) != len(out) or sides[row_dim] != 1 or height < 2:
        return None
    sides[row_dim] = height
    if tuple(sides) != out:
        return None
    own = row_dim

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        rows, row = parts[0].shape[own], parts[1]
        return row.expand(*out[:own], rows, *out[own + 1 :])

    return b.add(fx, "join", [Ref(whole), refs[0]], [SAME, First()], run, row_dim)


@on("expand")
def expanded(b: Builder, fx: Fx, pick: Any) -> Ref:
    """One row repeated for all rows, or columns and channels repeated."""
    refs, _ = b.call(fx)
    value, out = b.values[refs[0].index], shape_of(fx, pick)
    assert value.row_dim is not None
    row_dim = len(out) - (len(value.shape) - value.row_dim)
    repeats = value.height == 1 and out[row_dim] > 1

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        rows = hi - lo if repeats else parts[0].shape[value.row_dim]  # type: ignore[index]
        return parts[0].expand(*out[:row_dim], rows, *out[row_dim + 1 :])

    if not repeats:
        return b.add(fx, "row", refs, [SAME], run, row_dim, pick)
    table = _every(out[row_dim])
    why = f"{b.layer(fx)} repeats a row as often as the map has rows"
    return b.add(fx, "repeat", refs, [table], run, row_dim, pick, needs_height=why)


def _every(rows: int) -> Table:
    import numpy as np

    return Table(np.zeros(rows, np.int64), np.zeros(rows, np.int64))
