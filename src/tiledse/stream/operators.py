"""How each operator treats rows: one function an operator, which adds a node to the row graph.

An operator that is not in the table works elementwise (torch's own tag says so), or it takes the whole map.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TiledSEError
from ..tile import Tile
from .building import Builder, Ref, Slot
from .gates import scale, squeeze, squeeze_corrected
from .maps import SAME, First, Table, Total, Window

Fx = torch.fx.Node
Treatment = Callable[[Builder, Fx, Any], Ref]
_TABLE: dict[str, Treatment] = {}


def treat(b: Builder, fx: Fx, pick: Any = None) -> Ref:
    """Add the node of one operator to the row graph; ``pick`` is which of several results is meant."""
    refs, _ = b.call(fx)
    if all(b.values[r.index].row_dim is None for r in refs):
        return _once(b, fx, pick)
    namespace = str(fx.target).split(".")
    name = namespace[1].rstrip("_") if namespace[0] == "aten" else ".".join(namespace[:2])
    treatment = _TABLE.get(name)
    if treatment is None and torch.Tag.pointwise in getattr(fx.target, "tags", ()):
        treatment = elementwise
    if treatment is None:
        return b.whole(fx, pick)
    return treatment(b, fx, pick)


def on(*names: str) -> Callable[[Treatment], Treatment]:
    """Enter a function into the table."""

    def enter(treatment: Treatment) -> Treatment:
        _TABLE.update(dict.fromkeys(names, treatment))
        return treatment

    return enter


def _out(fx: Fx, pick: Any) -> tuple[int, ...]:
    return tuple((fx.meta["val"] if pick is None else fx.meta["val"][pick]).shape)


def _once(b: Builder, fx: Fx, pick: Any) -> Ref:
    """All operands come as one piece, and so does the result."""
    refs, call = b.call(fx, pick)
    return b.add(fx, "row", refs, [First()] * len(refs), lambda parts, lo, hi: call(parts), None, pick)


def _row(b: Builder, fx: Fx, pick: Any, row_dim: int | None, fresh: bool = False) -> Ref:
    """One row to one row, by the operator itself on rows."""
    refs, call = b.call(fx, pick)
    assert len(refs) == 1

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return call(parts)

    return b.add(fx, "row", refs, [SAME], run, row_dim, pick, fresh=fresh)


@on("hardswish", "hardsigmoid", "hardtanh", "relu6", "silu", "mish", "gelu", "elu", "celu", "selu", "softplus",
    "log_sigmoid", "leaky_relu", "softsign", "tanhshrink", "where", "type_as")  # fmt: skip
def elementwise(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Maps of the same rows, gates and vectors of one row, constants; by broadcasting."""
    refs, call = b.call(fx, pick)
    out = _out(fx, pick)
    values = [b.values[r.index] for r in refs]
    places = {len(v.shape) - v.row_dim for v in values if v.row_dim is not None and v.height > 1}
    places = places or {len(v.shape) - v.row_dim for v in values if v.row_dim is not None}
    if len(places) != 1:
        return b.whole(fx, pick)
    place = places.pop()
    row_dim = len(out) - place
    height = out[row_dim]
    maps: list[Any] = []
    for value in values:
        here = value.shape[-place] if len(value.shape) >= place else 1
        if value.row_dim is not None and value.height == height and here == height:
            maps.append(SAME)
        elif value.height == 1 and here == 1:
            maps.append(First())
        else:
            return b.whole(fx, pick)
    if SAME not in maps:
        return b.whole(fx, pick)
    # The operand with the rows comes first: the height of the result is its height.
    order = sorted(range(len(refs)), key=lambda i: maps[i] is not SAME)
    args, kwargs = b.filled(fx)
    tall = [
        a
        for a in (*args, *kwargs.values())
        if isinstance(a, Tensor) and height > 1 and a.dim() >= place and a.shape[-place] == height
    ]
    if tall:
        return _with_constants(b, fx, pick, row_dim, place, height)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return call([part for _, part in sorted(zip(order, parts), key=lambda pair: pair[0])])

    single = len(refs) == 1
    if single:
        run = _unary(fx, call)
    kind = "row" if maps.count(SAME) == 1 else "join"
    return b.add(
        fx, kind, [refs[i] for i in order], [maps[i] for i in order], run, row_dim, pick,
        fresh=not str(fx.target).startswith(("aten.alias", "aten.detach")),
    )  # fmt: skip


def _unary(fx: Fx, call: Callable[[list[Tensor]], Tensor]) -> Any:
    """One operand; with the same written in place, where the operator has that, for rows nobody else holds."""

    class Unary:
        in_place: Any = None

        def __call__(self, parts: list[Tensor], lo: int, hi: int) -> Tensor:
            return call(parts)

    run = Unary()
    name = str(fx.target).split(".")
    twin = getattr(torch.ops.aten, name[1].rstrip("_") + "_", None)
    source = fx.args[0]
    if twin is not None and hasattr(twin, name[2]) and isinstance(source, Fx) and not fx.kwargs:
        rest = fx.args[1:]
        if source.meta["val"].dtype == fx.meta["val"].dtype and not any(isinstance(a, Fx) for a in rest):
            write = getattr(twin, name[2])
            run.in_place = lambda rows: write(rows, *rest)
    return run


def _with_constants(b: Builder, fx: Fx, pick: Any, row_dim: int, place: int, height: int) -> Ref:
    """Elementwise with a constant map, of which each row of the image meets its own row."""
    args, kwargs = b.filled(fx)
    refs: list[Ref] = []

    def slot(a: Any) -> Any:
        if not isinstance(a, Ref):
            return a
        refs.append(a)
        return Slot(len(refs) - 1)

    args = tuple(slot(a) for a in args)
    if len(refs) != 1 or any(isinstance(a, Ref) for a in kwargs.values()):
        return b.whole(fx, pick)
    target: Any = fx.target

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        def fill(a: Any) -> Any:
            if isinstance(a, Slot):
                return parts[a.index]
            if isinstance(a, Tensor) and a.dim() >= place and a.shape[-place] == height:
                return a.narrow(a.dim() - place, lo, hi - lo)
            return a

        return target(*map(fill, args), **kwargs)

    why = f"{b.layer(fx)} has a constant for each row"
    # Its rows are counted, so it stays a node of its own ("join": never appended to the node before).
    return b.add(fx, "join", refs, [SAME], run, row_dim, pick, needs_height=why)


@on("clone", "contiguous", "alias", "detach", "dropout", "feature_dropout", "alpha_dropout", "_to_copy", "to",
    "lift_fresh_copy", "native_dropout")  # fmt: skip
def same_rows(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The rows as they are (dropout is off in eval mode)."""
    refs, _ = b.call(fx)
    return _row(b, fx, pick, b.values[refs[0].index].row_dim)


@on("batch_norm", "_native_batch_norm_legit_no_training", "prelu")
def norm(b: Builder, fx: Fx, pick: Any) -> Ref:
    """By channel."""
    refs, _ = b.call(fx)
    training = "batch_norm.default" in str(fx.target) and fx.args[5]
    if len(refs) != 1 or b.values[refs[0].index].row_dim == 1 or training:
        return b.whole(fx, pick)
    return _row(b, fx, pick, b.values[refs[0].index].row_dim, fresh=True)


@on("layer_norm", "native_layer_norm", "rms_norm")
def last_axes(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Norms over the last axes: local in rows if the rows are not among them."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    if len(refs) != 1 or value.row_dim is None or value.row_dim >= len(value.shape) - len(fx.args[1]):  # type: ignore[arg-type]
        return b.whole(fx, pick)
    return _row(b, fx, pick, value.row_dim, fresh=True)


@on("linear")
def linear(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Over the last axis."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    if len(refs) != 1 or value.row_dim is None or value.row_dim == len(value.shape) - 1:
        return b.whole(fx, pick)
    return _row(b, fx, pick, value.row_dim, fresh=True)


@on("softmax", "_softmax", "log_softmax", "glu", "cumsum")
def over_axis(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Over one axis."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    dim = fx.args[1] if len(fx.args) > 1 else -1
    if not isinstance(dim, int) or dim % len(value.shape) == value.row_dim:
        return b.whole(fx, pick)
    return _row(b, fx, pick, value.row_dim, fresh=True)


def _pair(x: Any) -> tuple[int, int]:
    if isinstance(x, int):
        return x, x
    return (x[0], x[-1]) if x else (0, 0)


def _argument(fx: Fx, index: int, default: Any) -> Any:
    return fx.args[index] if len(fx.args) > index else default


def _window_input(b: Builder, fx: Fx) -> Ref | None:
    """The map that a window slides over, if rows are the third of four axes and it is the only operand."""
    refs, _ = b.call(fx)
    ok = len(refs) == 1 and b.values[refs[0].index].row_dim == 2 and len(b.values[refs[0].index].shape) == 4
    return refs[0] if ok else None


def _padded(part: Tensor, window: Window, lo: int, hi: int, fill: float = 0.0) -> Tensor:
    """Rows for output rows lo to hi: with the padding above and below that belongs to them."""
    above = max(0, window.top - lo * window.stride)
    below = (hi - lo - 1) * window.stride + window.size - above - part.shape[2]
    return F.pad(part, (0, 0, above, max(0, below)), value=fill) if above or below > 0 else part


@on("conv2d", "convolution")
def conv(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A convolution; one of one row without padding is row to row."""
    ref = _window_input(b, fx)
    args, kwargs = b.filled(fx)
    if ref is None or kwargs or (str(fx.target).startswith("aten.convolution") and args[6]):
        return b.whole(fx, pick)
    weight, bias = args[1], _argument_of(args, 2)
    stride, dilation = _pair(_argument_of(args, 3, 1)), _pair(_argument_of(args, 5, 1))
    groups = args[8] if len(args) > 8 else _argument_of(args, 6, 1)
    padding = _argument_of(args, 4, 0)
    height = dilation[0] * (weight.shape[2] - 1) + 1
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        wide = dilation[1] * (weight.shape[3] - 1)
        if (height - 1) % 2 or wide % 2:
            return b.whole(fx, pick)
        padding = ((height - 1) // 2, wide // 2)
    padding = _pair(padding)
    window = Window(height, stride[0], padding[0], padding[0])

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        rows = parts[0] if window == SAME else _padded(parts[0], window, lo, hi)
        return torch.conv2d(rows, weight, bias, stride, (0, padding[1]), dilation, groups)

    kind = "row" if window == SAME else "window"
    return b.add(fx, kind, [ref], [window], run, 2, pick, fresh=True)


def _argument_of(args: tuple[Any, ...], index: int, default: Any = None) -> Any:
    return args[index] if len(args) > index else default


@on("max_pool2d", "max_pool2d_with_indices")
def max_pool(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A maximum; the padding is minus infinity."""
    ref = _window_input(b, fx)
    if ref is None or pick:
        return b.whole(fx, pick)
    kernel = _pair(fx.args[1])
    stride = _pair(_argument(fx, 2, None) or kernel)
    padding, dilation = _pair(_argument(fx, 3, 0)), _pair(_argument(fx, 4, 1))
    ceil = bool(_argument(fx, 5, False))
    window = Window(dilation[0] * (kernel[0] - 1) + 1, stride[0], padding[0], padding[0], ceil)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        rows = _padded(parts[0], window, lo, hi, float("-inf"))
        return F.max_pool2d(rows, kernel, stride, (0, padding[1]), dilation, ceil)

    return b.add(fx, "window", [ref], [window], run, 2, pick, fresh=True)


@on("avg_pool2d")
def avg_pool(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A mean over windows; at the edges over the rows that are there, or with the zeros of the padding counted."""
    ref = _window_input(b, fx)
    kernel = _pair(fx.args[1])
    stride = _pair(_argument(fx, 2, None) or kernel)
    padding, ceil = _pair(_argument(fx, 3, 0)), bool(_argument(fx, 4, False))
    counted, divisor = bool(_argument(fx, 5, True)), _argument(fx, 6, None)
    if ref is None or divisor is not None:
        return b.whole(fx, pick)
    window = Window(kernel[0], stride[0], padding[0], padding[0], ceil)
    total = b.values[ref.index].height

    def pool(rows: Tensor, size: int) -> Tensor:
        return F.avg_pool2d(rows, (size, kernel[1]), (stride[0], stride[1]), (0, padding[1]), ceil, counted)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        part, base, made = parts[0], window.low(lo), []
        row = lo
        while row < hi:
            start = row * window.stride - window.top
            inner = 0  # windows from here on that lie within the rows
            if start >= base:
                inner = min(hi - row, (base + part.shape[2] - start - window.size) // window.stride + 1)
            if inner > 0:
                end = start + (inner - 1) * window.stride + window.size
                made.append(pool(part.narrow(2, start - base, end - start), window.size))
                row += inner
                continue
            first, last = max(start, base), min(start + window.size, base + part.shape[2])
            edge = pool(part.narrow(2, first - base, last - first), last - first)
            if counted:
                # torch divides by the rows of the window that lie in the map or its padding.
                rows = min(window.size, total + window.bottom - start) if ceil else window.size
                edge = edge * ((last - first) / rows)
            made.append(edge)
            row += 1
        return made[0] if len(made) == 1 else torch.cat(made, 2)

    # With ceil_mode the divisor of a window below the padding depends on the height.
    why = f"{b.layer(fx)} counts its padding" if counted and ceil else None
    return b.add(fx, "window", [ref], [window], run, 2, pick, fresh=True, needs_height=why)


@on("constant_pad_nd", "pad")
def pad(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Constant padding or cropping of rows and columns."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    sides = list(fx.args[1])  # type: ignore[arg-type]
    if "pad.default" in str(fx.target) and "constant_pad" not in str(fx.target):
        mode, fill = _argument(fx, 2, "constant"), _argument(fx, 3, None)
    else:
        mode, fill = "constant", _argument(fx, 2, 0.0)
    assert value.row_dim is not None
    at = 2 * (len(value.shape) - 1 - value.row_dim)
    top, bottom = (sides[at], sides[at + 1]) if len(sides) > at else (0, 0)
    if not top and not bottom:
        return _row(b, fx, pick, value.row_dim)
    if mode != "constant":
        return b.whole(fx, pick)
    window = Window(1, 1, top, bottom)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        above = max(0, min(top, hi) - lo)
        below = hi - lo - above - parts[0].shape[value.row_dim] if hi > lo else 0  # type: ignore[index]
        now = list(sides)
        now[at], now[at + 1] = above, below
        return F.pad(parts[0], now, value=0.0 if fill is None else fill)

    return b.add(fx, "pad", refs, [window], run, value.row_dim, pick, fresh=True)


@on("slice")
def cut(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A slice; of rows it is a crop."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    dim = _argument(fx, 1, 0) % len(value.shape)
    if dim != value.row_dim:
        return _row(b, fx, pick, value.row_dim)
    start, end = _argument(fx, 2, None) or 0, _argument(fx, 3, None)
    step = _argument(fx, 4, 1)
    height = value.height
    first = max(0, start + height if start < 0 else start)
    rows = _out(fx, pick)[dim]
    open_end = end is None or end >= height
    if first == 0 and step == 1 and rows == height:
        return _row(b, fx, pick, value.row_dim)
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
    dim = _argument(fx, at, 0) % len(value.shape)
    row_dim = value.row_dim
    if dim == row_dim or row_dim is None:
        return b.whole(fx, pick)
    gone = ("unbind" in name or "select" in name) and dim < row_dim
    return _row(b, fx, pick, row_dim - gone)


@on("cat", "stack")
def together(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Maps side by side, along an axis that is not the rows."""
    refs, call = b.call(fx, pick)
    values = [b.values[r.index] for r in refs]
    out = _out(fx, pick)
    dim = _argument(fx, 1, 0) % len(out)
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
    value, out = b.values[refs[0].index], _out(fx, pick)
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
    return _row(b, fx, pick, order.index(value.row_dim))


@on("expand")
def expanded(b: Builder, fx: Fx, pick: Any) -> Ref:
    """One row repeated for all rows, or columns and channels repeated."""
    refs, _ = b.call(fx)
    value, out = b.values[refs[0].index], _out(fx, pick)
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


@on("mean", "sum", "amax", "adaptive_avg_pool2d")
def reduced(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A mean, sum or maximum; over the rows it is a running one."""
    refs, _ = b.call(fx, pick)
    value, out = b.values[refs[0].index], _out(fx, pick)
    rank, row_dim, name = len(value.shape), value.row_dim, str(fx.target)
    assert row_dim is not None
    if "adaptive" in name:
        if out[2:] == (1, 1) and rank == 4 and row_dim == 2:
            return _total(b, fx, refs[0], "mean", [2, 3], True)
        return b.whole(fx, pick)
    axes, keep = _argument(fx, 1, None), bool(_argument(fx, 2, False))
    if not isinstance(axes, (list, tuple)) or not axes or fx.kwargs:
        return b.whole(fx, pick)
    dims = sorted(d % rank for d in axes)
    if row_dim in dims:
        return _total(b, fx, refs[0], name.split(".")[1], dims, keep)
    return _row(b, fx, pick, row_dim if keep else row_dim - sum(d < row_dim for d in dims), fresh=True)


def _total(b: Builder, fx: Fx, ref: Ref, how: str, dims: list[int], keep: bool) -> Ref:
    """A running reduction: sums row by row, one result at the end."""
    value = b.values[ref.index]
    row_dim = value.row_dim
    assert row_dim is not None

    def absorb(part: Tensor, state: Any) -> Any:
        now = part.amax(dims, keep) if how == "amax" else part.sum(dims, keep)
        rows = prod(part.shape[d] for d in dims)
        if state is None:
            return now, rows
        return (torch.maximum(state[0], now) if how == "amax" else state[0] + now), state[1] + rows

    def finish(state: Any) -> Tensor:
        return state[0] / state[1] if how == "mean" else state[0]

    kept = row_dim if keep else None
    return b.add(
        fx, "mean" if how == "mean" else how, [ref], [Total()], absorb, kept, None, finish=finish, fresh=True
    )


@on("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d")
def resized(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Nearest and bilinear interpolation: the rows read are learnt from the operator itself, on row numbers."""
    from .resizing import bilinear, nearest

    ref = _window_input(b, fx)
    if ref is None:
        return b.whole(fx, pick)
    value, out = b.values[ref.index], _out(fx, pick)
    args, kwargs = b.filled(fx)
    why = f"{b.layer(fx)} resizes to a height that it computes from the map's"
    if "bilinear" in str(fx.target):
        table, run = bilinear(fx.target, args, kwargs, value.height, out)
        kind = "bilinear"
    else:
        table, run = nearest(fx.target, args, kwargs, value.height, value.shape[3], out)
        kind = "nearest"
    return b.add(fx, kind, [ref], [table], run, 2, pick, needs_height=why, fresh=True)


@on("tiledse_stream.squeeze")
def squeezed(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The squeeze of an SE block."""
    ref = _map_of_block(b, fx)
    return squeeze(b, fx, ref, Tile.parse(fx.args[1]), str(fx.args[2]), str(fx.args[3]))  # type: ignore[arg-type]


@on("tiledse_stream.squeeze_corrected")
def corrected(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The squeeze of a calibrated SE block."""
    ref = _map_of_block(b, fx)
    args, _ = b.filled(fx)
    return squeeze_corrected(b, fx, ref, args[1:4], Tile.parse(args[4]), args[5], args[6])


@on("tiledse_stream.scale")
def scaled(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The gate of an SE block."""
    refs, _ = b.call(fx)
    _map_of_block(b, fx)
    return scale(b, fx, refs[0], refs[1], Tile.parse(fx.args[2]), str(fx.args[3]))  # type: ignore[arg-type]


def _map_of_block(b: Builder, fx: Fx) -> Ref:
    refs, _ = b.call(fx)
    if b.values[refs[0].index].row_dim != 2:
        raise TiledSEError(
            f"block '{fx.args[-1]}' comes after a layer that takes the whole map and no longer has rows; "
            "it cannot be streamed"
        )
    return refs[0]
