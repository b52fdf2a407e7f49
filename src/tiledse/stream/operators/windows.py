"""Operators that look at windows of rows: convolutions, pools, padding, resizing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..builder import Builder, Ref
from ..maps import SAME, RowMap, Spread, Table, Window
from .frames import conv_over_frames
from .table import Fx, argument, argument_of, by_row, on, padded, shape_of


@on("conv2d", "convolution")
def conv(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A convolution; one of one row without padding is row to row."""
    ref = _window_input(b, fx)
    args, kwargs = b.filled(fx)
    if ref is None and len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() in (3, 5):
        return conv_over_frames(b, fx, pick)
    if ref is not None and not kwargs and str(fx.target).startswith("aten.convolution") and args[6]:
        return _spread(b, fx, pick, ref, args[1], args[2], args[3], args[4], args[5], args[7], args[8])
    if ref is None or kwargs:
        return b.whole(fx, pick)
    weight, bias = args[1], argument_of(args, 2)
    stride, dilation = _pair(argument_of(args, 3, 1)), _pair(argument_of(args, 5, 1))
    groups = args[8] if len(args) > 8 else argument_of(args, 6, 1)
    padding = argument_of(args, 4, 0)
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
        rows = parts[0] if window == SAME else padded(parts[0], window, lo, hi)
        return torch.conv2d(rows, weight, bias, stride, (0, padding[1]), dilation, groups)

    kind = "row" if window == SAME else "window"
    return b.add(fx, kind, [ref], [window], run, 2, pick, fresh=True)


@on("conv_transpose2d")
def conv_transpose(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A transposed convolution."""
    ref = _window_input(b, fx)
    args, kwargs = b.filled(fx)
    if ref is None or kwargs:
        return b.whole(fx, pick)
    given = [argument_of(args, i, default) for i, default in enumerate((None, None, None, 1, 0, 0, 1, 1))]
    _, weight, bias, stride, padding, more, groups, dilation = given
    return _spread(b, fx, pick, ref, weight, bias, stride, padding, dilation, more, groups)


def _spread(
    b: Builder, fx: Fx, pick: Any, ref: Ref, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, more: Any, groups: int,
) -> Ref:  # fmt: skip
    """Each row is spread over several; what the rows outside of the map would add is cut off."""
    stride, padding, dilation, more = map(_pair, (stride, padding, dilation, more))
    size = dilation[0] * (weight.shape[2] - 1) + 1
    spread = Spread(size, stride[0], padding[0], padding[0] - more[0])

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        wide = torch.conv_transpose2d(
            parts[0], weight, bias, stride, (0, padding[1]), (0, more[1]), groups, dilation
        )
        first = lo + spread.top - int(spread.low(lo)) * stride[0]
        if first + hi - lo > wide.shape[2]:  # rows that nothing is added to, but the bias
            rest = F.pad(wide.new_zeros(1), (0, first + hi - lo - wide.shape[2] - 1)).view(1, 1, -1, 1)
            rest = rest if bias is None else rest + bias.view(1, -1, 1, 1)
            wide = torch.cat([wide, rest.expand(wide.shape[0], wide.shape[1], -1, wide.shape[3])], 2)
        return wide.narrow(2, first, hi - lo)

    return b.add(fx, "spread", [ref], [spread], run, 2, pick, fresh=True)


@on("max_pool2d", "max_pool2d_with_indices")
def max_pool(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A maximum; the padding is minus infinity."""
    ref = _window_input(b, fx)
    if ref is None or pick:
        return b.whole(fx, pick)
    kernel = _pair(fx.args[1])
    stride = _pair(argument(fx, 2, None) or kernel)
    padding, dilation = _pair(argument(fx, 3, 0)), _pair(argument(fx, 4, 1))
    ceil = bool(argument(fx, 5, False))
    window = Window(dilation[0] * (kernel[0] - 1) + 1, stride[0], padding[0], padding[0], ceil)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        rows = padded(parts[0], window, lo, hi, float("-inf"))
        return F.max_pool2d(rows, kernel, stride, (0, padding[1]), dilation, ceil)

    return b.add(fx, "window", [ref], [window], run, 2, pick, fresh=True, outside=float("-inf"))


@on("avg_pool2d")
def avg_pool(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A mean over windows; at the edges over the rows that are there, or with the zeros of the padding counted."""
    ref = _window_input(b, fx)
    kernel = _pair(fx.args[1])
    stride = _pair(argument(fx, 2, None) or kernel)
    padding, ceil = _pair(argument(fx, 3, 0)), bool(argument(fx, 4, False))
    counted, divisor = bool(argument(fx, 5, True)), argument(fx, 6, None)
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
    return b.add(fx, "window", [ref], [window], run, 2, pick, fresh=True, needs_height=why, counted=counted)


@on("constant_pad_nd", "pad")
def pad(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Constant padding or cropping of rows and columns."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    sides = list(fx.args[1])  # type: ignore[arg-type]
    if "pad.default" in str(fx.target) and "constant_pad" not in str(fx.target):
        mode, fill = argument(fx, 2, "constant"), argument(fx, 3, None)
    else:
        mode, fill = "constant", argument(fx, 2, 0.0)
    assert value.row_dim is not None
    at = 2 * (len(value.shape) - 1 - value.row_dim)
    top, bottom = (sides[at], sides[at + 1]) if len(sides) > at else (0, 0)
    if not top and not bottom:
        return by_row(b, fx, pick, value.row_dim)
    if mode != "constant":
        return b.whole(fx, pick)
    window = Window(1, 1, top, bottom)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        above = max(0, min(top, hi) - lo)
        below = hi - lo - above - parts[0].shape[value.row_dim] if hi > lo else 0  # type: ignore[index]
        now = list(sides)
        now[at], now[at + 1] = above, below
        return F.pad(parts[0], now, value=0.0 if fill is None else fill)

    outside = 0.0 if fill is None else float(fill)
    return b.add(fx, "pad", refs, [window], run, value.row_dim, pick, fresh=True, outside=outside)


@on("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d")
def resized(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Nearest and bilinear interpolation: the rows read are learnt from the operator itself, on row numbers."""
    from ..resizing import bilinear, nearest

    ref = _window_input(b, fx)
    if ref is None:
        return b.whole(fx, pick)
    value, out = b.values[ref.index], shape_of(fx, pick)
    args, kwargs = b.filled(fx)
    how: RowMap
    if "bilinear" in str(fx.target):
        how, run = bilinear(fx.target, args, kwargs, value.height, out)
        kind = "bilinear"
    else:
        how, run = nearest(fx.target, args, kwargs, value.height, value.shape[3], out)
        kind = "nearest"
    why = f"{b.layer(fx)} resizes to a height that it computes from the map's"
    return b.add(
        fx, kind, [ref], [how], run, 2, pick, needs_height=why if isinstance(how, Table) else None, fresh=True,
        outside=None,
    )  # fmt: skip


@on("tiledse_stream.corners")
def cornered(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Linear interpolation from corners, which older ONNX files have."""
    from ..resizing import by_corners

    ref = _window_input(b, fx)
    if ref is None:
        return b.whole(fx, pick)
    rows, columns = (int(n) for n in fx.args[1:3])  # type: ignore[arg-type]
    how, run = by_corners(rows, columns, b.values[ref.index].shape[3])
    return b.add(fx, "bilinear", [ref], [how], run, 2, pick, fresh=True, outside=None)


def _pair(x: Any) -> tuple[int, int]:
    if isinstance(x, int):
        return x, x
    return (x[0], x[-1]) if x else (0, 0)


def _window_input(b: Builder, fx: Fx) -> Ref | None:
    """The map that a window slides over, if rows are the third of four axes and it is the only operand."""
    refs, _ = b.call(fx)
    ok = len(refs) == 1 and b.values[refs[0].index].row_dim == 2 and len(b.values[refs[0].index].shape) == 4
    return refs[0] if ok else None
