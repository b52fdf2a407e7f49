"""Triton kernels for CUDA: tile sums, and products with one gate a tile, over any strides.

A program takes one tile (or a run of its rows) of one image and a block of channels, so that each map is read in
the order in which it lies in memory: channels side by side in channels_last, columns side by side in NCHW. One
kernel reduces (x, or x * y for the gates' gradient), one multiplies (and adds, for the map's gradient).

Tiles of many elements are split over programs, whose partial sums are added by torch: a strip of 7 x W is one
program, a whole large map is many.

Off unless the environment says TILEDSE_TRITON=1: the kernels are checked through Triton's interpreter, and have
not been measured on a GPU, where torch's own kernels may be as fast.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements that one program sums before the work is split, and its block of channels and of columns.
_SPLIT_ELEMENTS = 1 << 14


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]  # Triton compiles it
    x, y, out, channels, height, width, first, stop, tall, wide, rows_each, cols_of_grid, splits,
    xn, xc, xh, xw, yn, yc, yh, yw, on, oc, oj, os,
    TWO: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Sums of one tile's rows (a split of them) over BLOCK_C channels of one image."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    job = tl.program_id(0)
    tile, split = job // splits, job % splits
    row, col = tile // cols_of_grid, tile % cols_of_grid
    end = tl.minimum(first + (row + 1) * tall, stop)
    top = first + row * tall + split * rows_each
    bottom = tl.minimum(top + rows_each, end)
    left = col * wide
    right = tl.minimum(left + wide, width)
    w = tl.arange(0, BLOCK_W)
    total = tl.zeros((BLOCK_C, BLOCK_W), dtype=out.dtype.element_ty)
    for i in range(top, bottom):
        for j in range(left, right, BLOCK_W):
            inside = (c[:, None] < channels) & ((j + w)[None, :] < right)
            value = tl.load(
                x + n * xn + c[:, None].to(tl.int64) * xc + i * xh + (j + w)[None, :] * xw,
                mask=inside,
                other=0.0,
            )
            value = value.to(total.dtype)
            if TWO:
                other = tl.load(
                    y + n * yn + c[:, None].to(tl.int64) * yc + i * yh + (j + w)[None, :] * yw,
                    mask=inside, other=0.0,
                )  # fmt: skip
                value *= other.to(total.dtype)
            total += value
    tl.store(out + n * on + c.to(tl.int64) * oc + tile * oj + split * os, tl.sum(total, 1), mask=c < channels)


@triton.jit
def _scale_kernel(  # type: ignore[no-untyped-def]
    x, gates, addend, out, channels, height, width, tall, wide, first, stop,
    xn, xc, xh, xw, gn, gc, gh, gw, an, ac, ah, aw, on, oc, oh, ow,
    ADD: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One row of BLOCK_C channels of one image, times its gates; plus ``addend`` in rows first to stop."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    i = tl.program_id(0)
    w = tl.arange(0, BLOCK_W)
    channel = c[:, None].to(tl.int64)
    for j in range(0, width, BLOCK_W):
        inside = (c[:, None] < channels) & ((j + w)[None, :] < width)
        col = ((j + w) // wide)[None, :]
        value = tl.load(x + n * xn + channel * xc + i * xh + (j + w)[None, :] * xw, mask=inside, other=0.0)
        gate = tl.load(gates + n * gn + channel * gc + (i // tall) * gh + col * gw, mask=inside, other=0.0)
        value = value.to(out.dtype.element_ty) * gate.to(out.dtype.element_ty)
        if ADD:
            squeezed = inside & (i >= first) & (i < stop)
            given = addend + n * an + channel * ac + (i // tall) * ah + col * aw
            value += tl.load(given, mask=squeezed, other=0.0).to(value.dtype)
        tl.store(out + n * on + channel * oc + i * oh + (j + w)[None, :] * ow, value, mask=inside)


def tile_sums(x: Tensor, y: Tensor | None, first: int, stop: int, tall: int, wide: int) -> Tensor:
    """Sums of x, or of x * y, over the tiles of rows first to stop: (N, C, rows, cols), float32 or float64."""
    n, channels, height, width = x.shape
    rows, cols = -(-(stop - first) // tall), -(-width // wide)
    splits = min(tall, max(1, tall * wide // _SPLIT_ELEMENTS))
    rows_each = -(-tall // splits)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = torch.empty((n, channels, rows * cols, splits), dtype=dtype, device=x.device)
    block_c, block_w = _blocks(x, wide)
    second = x if y is None else y
    _sum_kernel[(rows * cols * splits, triton.cdiv(channels, block_c), n)](
        x, second, out, channels, height, width, first, stop, tall, wide, rows_each, cols, splits,
        *x.stride(), *second.stride(), *out.stride(),
        TWO=y is not None, BLOCK_C=block_c, BLOCK_W=block_w,
    )  # fmt: skip
    return out.sum(3).view(n, channels, rows, cols)


def multiply(
    x: Tensor, gates: Tensor, out: Tensor, tall: int, wide: int,
    addend: Tensor | None = None, rows: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """``out`` = x times the gate of each tile, plus ``addend`` of the tile in a range of rows; gives ``out``."""
    n, channels, height, width = x.shape
    block_c, block_w = _blocks(out, width)
    first, stop = rows or (0, height)
    added = gates if addend is None else addend
    _scale_kernel[(height, triton.cdiv(channels, block_c), n)](
        x, gates, added, out, channels, height, width, tall, wide, first, stop,
        *x.stride(), *gates.stride(), *added.stride(), *out.stride(),
        ADD=addend is not None, BLOCK_C=block_c, BLOCK_W=block_w,
    )  # fmt: skip
    return out


def _blocks(x: Tensor, wide: int) -> tuple[int, int]:
    """Channels and columns of a block, the longer side along memory."""
    if x.stride(1) == 1 and x.shape[1] > 1:
        return min(64, triton.next_power_of_2(x.shape[1])), min(16, triton.next_power_of_2(wide))
    return min(4, triton.next_power_of_2(x.shape[1])), min(128, triton.next_power_of_2(wide))
