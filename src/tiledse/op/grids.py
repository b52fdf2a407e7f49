"""How tiles cut a map: what the formulas of this room share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..tile import Tile


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
        and not is_batched(x)
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
