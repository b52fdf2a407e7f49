"""How tiles cut a map, and which rows the gates of sliding strips see: what the formulas of this room share."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..tile import Tile

# Up to here a product with the matrix of shares is one call, which exporters write as one MatMul. It takes H * H
# multiply-adds a channel where the squeeze before it takes H * W; above, sums from row to row take H.
TALLEST_MATRIX = 1024


class Span(NamedTuple):
    """A run of equal tiles along one axis: ``number`` tiles of ``size`` elements from ``start``."""

    start: int
    number: int
    size: int


def spans(length: int, size: int) -> tuple[Span, ...]:
    """Cut an axis into its full tiles and, where they do not fill it, the smaller last one.

    Example:
        >>> spans(10, 4)
        (Span(start=0, number=2, size=4), Span(start=8, number=1, size=2))
    """
    count, rest = length // size, length % size  # torch 2.9 compiles no divmod
    full = Span(0, count, size)
    return (full, Span(count * size, 1, rest)) if rest else (full,)


def sizes(length: int, size: int) -> list[int]:
    """The size of each tile along an axis.

    Example:
        >>> sizes(10, 4)
        [4, 4, 2]
    """
    return [span.size for span in spans(length, size) for _ in range(span.number)]


def strips_of(x: Tensor, rows: Span) -> Tensor:
    """A view of a run of equal strips: (N, C, rows, h, W)."""
    n, channels, height, width = x.shape
    if rows.number * rows.size != height:
        x = x.narrow(2, rows.start, rows.number * rows.size)
    return x.view(n, channels, rows.number, rows.size, width)


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """The type that means of means are kept in: float32 for half precision, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def running(strips: Tensor, height: int, tall: int) -> Tensor:
    """Means of all rows down to the end of each strip, from the strips' own means (N, C, rows, 1)."""
    wide = accumulation_type(strips.dtype)
    share = _sizes_as(strips, wide, height, tall)[:, None]
    return ((strips.to(wide) * share).cumsum(2) / share.cumsum(0)).to(strips.dtype)


def elements(tile: Tile, height: int, width: int, like: Tensor) -> Tensor | int:
    """Elements that each gate of a map scales: one number, or (rows, cols) where the edge has smaller tiles."""
    tall, wide = tile.scaled(height, width)
    if height % tall == 0 and width % wide == 0:
        return tall * wide
    dtype = accumulation_type(like.dtype)
    return _sizes_as(like, dtype, height, tall)[:, None] * _sizes_as(like, dtype, width, wide)


def _sizes_as(like: Tensor, dtype: torch.dtype, length: int, size: int) -> Tensor:
    """``sizes`` beside another tensor; on a GPU without a copy from the host, which a CUDA graph cannot hold."""
    if not like.is_cuda or not is_eager(like):
        return torch.tensor(sizes(length, size), dtype=dtype, device=like.device)
    found = torch.full((-(-length // size),), size, dtype=dtype, device=like.device)
    if length % size:
        found[-1:].fill_(length % size)
    return found


def by_rows(tile: Tile, height: int) -> bool:
    """Whether the gates of a tile see rows that are no whole strips, so that the map is squeezed row by row.

    Not where strips are ``running`` to their own ends, nor where one gate sees the whole map.

    Example:
        >>> [by_rows(Tile.parse(text), 14) for text in ("7xW:running", "1xW:running+6", "1xW:running+13")]
        [False, True, False]
    """
    return tile.slides and (tile.ahead != 0 or tile.above is not None) and not tile.sees_all(height)


def seen(rows: Tensor, tile: Tile) -> Tensor:
    """Means of the rows that each gate of a sliding tile sees.

    Args:
        rows: Means of the rows of a map, (N, C, H, 1).
        tile: A tile that slides.

    Returns:
        (N, C, strips, 1), differentiable.

    Example:
        >>> rows = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
        >>> seen(rows, Tile.parse("1xW:running+1")).flatten().tolist()
        [1.5, 3.0, 3.0]
    """
    return _seen(rows, tile, False)


def own_of(rows: Tensor, tile: Tile) -> Tensor:
    """Means of the rows that wait for each gate, ``Tile.own_bounds``; otherwise as ``seen``.

    Example:
        >>> rows = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
        >>> own_of(rows, Tile.parse("1xW:running+1")).flatten().tolist()
        [1.5, 4.0, 6.0]
    """
    return _seen(rows, tile, True)


def _seen(rows: Tensor, tile: Tile, own: bool) -> Tensor:
    height = int(rows.shape[2])
    wide = rows.to(accumulation_type(rows.dtype))
    if height > TALLEST_MATRIX and is_eager(rows):
        return _by_sums(wide, tile, height, own).to(rows.dtype)
    return (shares(tile, height, wide, own) @ wide).to(rows.dtype)


def share(grad: Tensor, tile: Tile, height: int) -> Tensor:
    """What each row's mean gets of the descriptors' gradient: (N, C, strips, 1) to (N, C, H, 1); differentiable."""
    wide = grad.to(accumulation_type(grad.dtype))
    if height > TALLEST_MATRIX and is_eager(grad):
        return _share_by_sums(wide, tile, height).to(grad.dtype)
    return (shares(tile, height, wide).t() @ wide).to(grad.dtype)


def product_macs(tile: Tile, height: int) -> int:
    """Multiply-adds of the product with the matrix of shares, for one channel; 0 where there is none.

    Example:
        >>> product_macs(Tile.parse("1xW:running+6"), 14), product_macs(Tile.parse("7xW:running"), 14)
        (196, 0)
    """
    if tile.previous and tile.height is not None:
        return 2 * tile.tiles(height, 1) * height  # one for each of two frames
    return tile.tiles(height, 1) * height if by_rows(tile, height) else 0


def shares(tile: Tile, height: int, like: Tensor, own: bool = False) -> Tensor:
    """``Tile.weights``, or ``Tile.own_weights``, beside another tensor: (strips, H)."""
    return _beside("own_weights" if own else "weights", tile, height, like, like.dtype)


def shares_of_frames(tile: Tile, height: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``Tile.shares_of_frames`` beside another tensor.

    Args:
        tile: A tile with ``previous``.
        height: Rows of the map.
        like: The tensor.
        dtype: The type of the shares.

    Returns:
        (2, strips, H): of this frame and of the one before.

    Example:
        >>> shares_of_frames(Tile.parse("1xW:previous-1"), 2, torch.zeros(1), torch.float32).tolist()
        [[[0.0, 0.0], [0.5, 0.0]], [[0.5, 0.5], [0.0, 0.5]]]
    """
    return _beside("shares_of_frames", tile, height, like, dtype)


def _beside(table: str, tile: Tile, height: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    if is_eager(like):
        return _kept(table, tile, height, dtype, like.device)
    return _constant(table, str(tile), height).to(device=like.device, dtype=dtype)


@lru_cache(maxsize=64)
def _kept(table: str, tile: Tile, height: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(np.array(getattr(tile, table)(height)), dtype=dtype, device=device)


@torch.compiler.assume_constant_result
def _constant(table: str, tile: str, height: int) -> Tensor:
    return torch.tensor(np.array(getattr(Tile.parse(tile), table)(height)).tolist(), dtype=torch.float64)


def _by_sums(rows: Tensor, tile: Tile, height: int, own: bool) -> Tensor:
    """By sums from the first row to each, in float64: a window is a difference of two of them."""
    first, last = _ends(tile, height, rows.device, own)
    sums = torch.cat(
        [rows.new_zeros((*rows.shape[:2], 1, 1), dtype=torch.float64), rows.double().cumsum(2)], 2
    )
    total = sums.index_select(2, last)
    if own or tile.above is not None or tile.ahead < 0:
        total = total - sums.index_select(2, first)
    return (total / (last - first).view(-1, 1)).to(rows.dtype)


def _share_by_sums(grad: Tensor, tile: Tile, height: int) -> Tensor:
    """The same backwards: each strip's part begins at its first row and ends after its last."""
    first, last = _ends(tile, height, grad.device, False)
    part = grad.double() / (last - first).view(-1, 1)
    steps = (
        part.new_zeros((*grad.shape[:2], height + 1, 1)).index_add(2, first, part).index_add(2, last, -part)
    )
    return steps.cumsum(2)[:, :, :height].to(grad.dtype)


@lru_cache(maxsize=64)
def _ends(tile: Tile, height: int, device: torch.device, own: bool) -> tuple[Tensor, Tensor]:
    bounds = tile.own_bounds(height) if own else tile.bounds(height)
    with torch.inference_mode(False):
        first, last = torch.tensor(bounds, device=device).unbind(1)
        return first.clone(), last.clone()


def is_eager(x: Tensor) -> bool:
    """Whether x holds numbers that are computed now, by nobody but torch's own kernels and autograd.

    Not so while a compiler or exporter traces (it gets the plain formula, and fuses it itself), under the
    transforms of torch.func, in forward-mode differentiation, and for subclasses of Tensor.
    """
    if torch.compiler.is_compiling() or _traced():
        return False
    return (
        type(x) in (Tensor, nn.Parameter)
        and not _transformed()
        and not (_batched(x) or _batched_by_autograd(x))
        and forward_ad._current_level < 0
    )


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x.

    Devices without autocast, such as meta, make torch raise an error when it is asked; the answer for them is False.
    """
    if not torch._C._is_any_autocast_enabled():
        return False
    device = x.device.type
    return (
        device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    ) and torch.is_autocast_enabled(device)


def is_channels_last(x: Tensor) -> bool:
    """Whether channels lie side by side in memory; where both layouts are the same, not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def is_dense(x: Tensor) -> bool:
    """Whether x is contiguous or channels_last."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def layout(x: Tensor) -> torch.memory_format:
    """channels_last or contiguous, as x has it."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def like(x: Tensor) -> Tensor:
    """Room for a map in the layout of x, with the strides that a compiler expects."""
    return torch.empty_like(x, memory_format=layout(x))


def is_batched(x: Tensor) -> bool:
    """Whether x stands for many tensors under a vmap, the one in torch.func or autograd's own older one."""
    return _batched(x) or _batched_by_autograd(x)


_batched, _batched_by_autograd = (
    torch._C._functorch.is_batchedtensor,
    torch._C._functorch.is_legacy_batchedtensor,
)
_transformed, _traced = torch._C._are_functorch_transforms_active, torch._C._is_tracing
