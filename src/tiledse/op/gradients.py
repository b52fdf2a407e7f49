"""Going back, in two reads of the gradient, one of the map and one write: ``dot`` and ``spread``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tile import Tile
from .grids import accumulation_type, elements, layout, strips_of
from .scaling import along_rows, cuts, in_rows, over_rows, scale_into
from .sliding import by_rows, share
from .squeezing import joined, means_of
from .triton_on import kernels_are_on

# A product of this size stays in the L2 or L3 cache until it is summed: 1.5 copies for ``dot``, not 2.0 - 2.7.
_PIECE_BYTES = 1 << 20


def dot(a: Tensor, b: Tensor, tile: Tile) -> Tensor:
    """Sums of a * b over what each gate scales, (N, C, rows, cols); b's layout counts."""
    height, width = b.shape[2:]
    tall, wide = tile.scaled(height, width)
    if kernels_are_on(b):
        from .kernels import tile_sums

        return tile_sums(a, b, 0, height, tall, wide).to(b.dtype)
    image_bytes = b[:1].numel() * b.element_size()
    if b.device.type != "cpu" or b.shape[0] * image_bytes <= _PIECE_BYTES:
        even = _even_strips(tile, a, b)
        if even:
            return (a * b).view(even).sum(3, keepdim=True)
        return _times(means_of(a * b, tall, wide), elements(tile, height, width, b))
    images = max(1, _PIECE_BYTES // image_bytes)
    rows = height if images > 1 else max(1, _PIECE_BYTES * height // (image_bytes * tall)) * tall
    product = torch.empty_like(b[:images].narrow(2, 0, min(rows, height)), memory_format=layout(b))
    means = []
    for first in range(0, b.shape[0], images):
        bands = []
        for top in range(0, height, rows):
            part = (slice(first, first + images), slice(None), slice(top, top + rows))
            piece = product[: b[part].shape[0], :, : b[part].shape[2]]
            torch.mul(a[part], b[part], out=piece)
            bands.append(means_of(piece, min(tall, piece.shape[2]), wide))
        means.append(joined(bands, 2))
    return _times(joined(means, 0), elements(tile, height, width, b))


def _even_strips(tile: Tile, *maps: Tensor) -> tuple[int, int, int, int] | None:
    """The shape (N, C, strips, elements) of maps in NCHW that row strips divide: one call for each step, then."""
    n, channels, height, width = maps[0].shape
    tall, _ = tile.size(height, width)
    if tile.width is not None or tile.single or height % tall or not all(x.is_contiguous() for x in maps):
        return None
    return n, channels, height // tall, tall * width


def _times(means: Tensor, count: Tensor | int) -> Tensor:
    return means * count if isinstance(count, int) else (means.to(count.dtype) * count).to(means.dtype)


def spread(
    grad: Tensor, gates: Tensor, grad_descriptors: Tensor | None, tile: Tile, channels_last: bool
) -> Tensor:
    """The gradient of the map: grad * gate, plus what each element gave to the descriptors."""
    height, width = grad.shape[2:]
    form = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty_like(grad, memory_format=form)
    given = None if grad_descriptors is None else share_of_descriptors(grad_descriptors, tile, height, width)
    if given is not None and by_rows(tile, height):
        return spread(grad, gates, None, tile, channels_last).add_(given)
    if kernels_are_on(grad):
        from .kernels import multiply

        squeezed = tile.rows(height) if tile.single else None
        return multiply(grad, gates, out, *tile.scaled(height, width), given, squeezed)
    if given is None or tile.single:
        scale_into(out, grad, gates, tile)
        if given is not None:
            first, stop = tile.rows(height)
            out.narrow(2, first, stop - first).add_(given)
        return out
    cut = cuts(tile, grad) if out.is_contiguous() else 0
    if cut:
        scale_into(out, grad, gates, tile)
        in_rows(out, cut).add_(over_rows(given, tile, grad, cut))
        return out
    even = _even_strips(tile, grad, out)
    if even:
        torch.mul(grad.view(even), gates.contiguous(), out=out.view(even)).add_(given.contiguous())
        return out
    # One loop over three inputs is the fastest where values lie side by side, and 2 times slower than two loops
    # where the gate is one number for a whole strip.
    one_loop = channels_last or tile.size(height, width)[1] < width
    for (rows, gate), (_, addend) in zip(along_rows(gates, tile, out), along_rows(given, tile, out)):
        part = strips_of(out, rows)
        if one_loop:
            torch.addcmul(addend, strips_of(grad, rows), gate, out=part)
        else:
            torch.mul(strips_of(grad, rows), gate, out=part).add_(addend)
    return out


def share_of_descriptors(grad: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """What one element of each tile, or of each row where they slide, gets of the descriptors' gradient."""
    if by_rows(tile, height):
        return share(grad, tile, height) / width
    if tile.single:
        return grad / (tile.size(height, width)[0] * width)
    count = elements(tile, height, width, grad)
    if tile.squeeze == "running":
        # A row is in the mean of its own strip and of all below.
        ends = (
            count
            if isinstance(count, Tensor)
            else grad.new_full((grad.shape[2], 1), count, dtype=accumulation_type(grad.dtype))
        ).cumsum(0)
        return (grad.to(ends.dtype) / ends).flip(2).cumsum(2).flip(2).to(grad.dtype)
    return grad / count if isinstance(count, int) else (grad.to(count.dtype) / count).to(grad.dtype)
