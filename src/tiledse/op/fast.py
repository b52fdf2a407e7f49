"""The same numbers as functional.py's formulas, each by what torch does fastest on the map's memory layout.

Figures are times in copies of the map, one thread of an AMD EPYC 9004, float32, maps over 10 MB, torch 2.14;
``tiledse bench`` measures the whole again. What a formula gains depends on the layout and on the tile:

==================  ============================================  ==========================================
                    NCHW                                          channels_last (on a CPU)
==================  ============================================  ==========================================
squeeze, strips     mean over the last axis of a view, or, of     avg_pool2d: 0.5 (a mean over a view: 3 - 6)
                    ragged wide strips, over rows first: 0.4 - 0.5
                    (over two axes: 0.5 - 0.75)
squeeze, others     rows, then columns: 0.9 - 2.5 (at once: 3-4)  avg_pool2d: 0.4 - 1.2
scale, strips       gate broadcast over rows cut in pieces of 32  gate broadcast over a view, with its channels side
                    and more: 0.9 - 1.1, in place 0.45; where     by side: 1.1
                    rows are shorter over strips: 1.0 - 1.2, in
                    place 0.5 (over wide strips: 1.3 - 1.5, 0.6)
scale, others       gates repeated along one row of tiles first,  the same: 1.4 (1.7)
                    so that whole rows are multiplied: 1.1 - 1.6
                    (broadcast over columns: 2.3 - 7)
==================  ============================================  ==========================================

``squeeze``, and ``scale`` where ``fills_strips`` says so, are differentiable by torch; autograd.py makes its own
gradients from ``dot`` and ``spread``. On a GPU the NCHW column's formulas serve both layouts (not measured there).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tile import Tile
from .grids import Span, accumulation_type, elements, is_channels_last, running, spans

_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Pooling adds one element after the other, which loses digits: 2e-5 for the mean of 700 x 400 numbers near 100.
# Longer sums are pooled by rows first and then averaged by mean, which adds in pairs: 2e-7.
_LONGEST_SUM = 4096

# Columns and patches of a map so small are pooled in NCHW, too: one call takes less than the two passes.
_FEW_ELEMENTS = 1 << 17

# A product of this size stays in the L2 or L3 cache until it is summed: 1.5 copies for ``dot``, not 2.0 - 2.7.
_PIECE_BYTES = 1 << 20

# A sum over each row, and then of rows, is as fast as one over strips from here on (0.41 copies at 128 and more; 1.0 at
# 28), and takes one call less where strips are ragged.
_WIDE_ROW = 112

# Torch multiplies rows by one number each at 0.9 to 1.1 copies where they have 32 to 64 elements, 1.2 from 128 on. Of
# maps that stay in the cache it multiplies whole strips faster: 97 us, not 164, for 3 MB; both take 730 us for 13 MB.
_SHORT_ROW = 32
_ROW_BYTES = 8 << 20


def squeeze(x: Tensor, tile: Tile) -> Tensor:
    """Means of the tiles, (N, C, rows, cols); differentiable as often as its parts."""
    height, width = x.shape[2:]
    if kernels_are_on(x) and not (torch.is_grad_enabled() and x.requires_grad):
        return _squeeze_by_kernel(x, tile)
    if tile.single:
        first, stop = tile.rows(height)
        return _means(x.narrow(2, first, stop - first), stop - first, width)
    tall, wide = tile.size(height, width)
    means = _means(x, tall, wide)
    return running(means, height, tall) if tile.squeeze == "running" else means


def strips(x: Tensor, excite: Callable[[Tensor], Tensor], tile: Tile) -> Tensor | None:
    """Squeeze, excite and scale where strips divide a map, and no gradient is recorded; else None.

    No more than the calls into torch: 60 us for a map of 320 x 14 x 14 and its excitation, where the general way, which
    asks what to do three times, takes 105.
    """
    n, channels, height, width = x.shape
    tall = min(tile.height or height, height)
    if tile.width is not None or tile.squeeze != "tiles" or height % tall or x.device.type != "cpu":
        return None
    if x.is_contiguous():
        cut = x.view(n, channels, height // tall, tall * width)
        gates = excite(cut.mean(3, keepdim=True))
        pieces = _cuts(tile, x)
        if pieces:
            return _shaped(_in_rows(x, pieces) * _over_rows(gates, tile, x, pieces), x)
        gates = gates.contiguous()
    elif x.is_contiguous(memory_format=torch.channels_last):
        if tall * width > _LONGEST_SUM:
            return None
        cut = x.view(n, channels, height // tall, tall, width)
        gates = excite(F.avg_pool2d(x, (tall, width)))
        gates = gates.contiguous(memory_format=torch.channels_last).unsqueeze(3)
    else:
        return None
    return _shaped(cut * gates, x)


def kernels_are_on(x: Tensor) -> bool:
    """Whether kernels.py was asked for (TILEDSE_TRITON=1) and can run on x: on a GPU, or interpreted."""
    # Triton chooses its interpreter when it is imported; asking the environment takes 10 us once the cache is cold.
    return (x.is_cuda or _INTERPRETED) and os.environ.get("TILEDSE_TRITON") == "1" and x.numel() != 0


def fused_is_on(x: Tensor) -> bool:
    """Whether fused.py may run on x: on a GPU with Triton unless TILEDSE_TRITON=0, interpreted if that is 1."""
    if x.is_cuda:
        return os.environ.get("TILEDSE_TRITON") != "0" and _TRITON and capability(x.device) >= (8, 0)
    return kernels_are_on(x)


@lru_cache(maxsize=64)
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; asking torch each time takes microseconds."""
    return torch.cuda.get_device_capability(device)


def _squeeze_by_kernel(x: Tensor, tile: Tile) -> Tensor:
    from .kernels import tile_sums

    height, width = x.shape[2:]
    tall, wide = tile.size(height, width)
    if tile.single:
        return (tile_sums(x, None, *tile.rows(height), tall, wide) / (tall * width)).to(x.dtype)
    means = tile_sums(x, None, 0, height, tall, wide) / elements(tile, height, width, x)
    return (running(means, height, tall) if tile.squeeze == "running" else means).to(x.dtype)


def _means(x: Tensor, tall: int, wide: int) -> Tensor:
    if x.device.type == "cpu" and (is_channels_last(x) or (wide < x.shape[3] and x.numel() < _FEW_ELEMENTS)):
        return _pool(x, tall, wide)
    return _rows_then_columns(x, tall, wide)


def _pool(x: Tensor, tall: int, wide: int) -> Tensor:
    """By average pooling: of the full tiles, then of the ragged rest, which partial windows would slow down."""
    height, width = x.shape[2:]
    bands = []
    for rows in spans(height, tall):
        parts = []
        for cols in spans(width, wide):
            # Pooling leaves out what does not fill a window, so only the rest is cut out (and copied).
            part = x.narrow(2, rows.start, rows.size) if rows.start else x
            part = part.narrow(3, cols.start, cols.size) if cols.start else part
            parts.append(_pool_full(part, rows.size, cols.size))
        bands.append(_join(parts, 3))
    return _join(bands, 2)


def _pool_full(x: Tensor, tall: int, wide: int) -> Tensor:
    if tall * wide <= _LONGEST_SUM:
        return F.avg_pool2d(x, (tall, wide))
    full = x.narrow(2, 0, x.shape[2] // tall * tall)
    return _rows_then_columns(F.avg_pool2d(full, (1, wide)), tall, 1)


def _rows_then_columns(x: Tensor, tall: int, wide: int) -> Tensor:
    height, width = x.shape[2:]
    if tall == height and wide == width:
        return x.mean((2, 3), keepdim=True)
    if wide == width:
        return _of_strips(x, tall)
    if tall == wide == 1:
        return x.clone()
    wider = accumulation_type(x.dtype)
    bands = []
    for rows in spans(x.shape[2], tall):
        band = _strips(x, rows).mean(3, dtype=wider)
        parts = [
            band.narrow(3, cols.start, cols.number * cols.size).unflatten(3, (cols.number, cols.size)).mean(4)
            for cols in spans(width, wide)
        ]
        bands.append(_join(parts, 3))
    return _join(bands, 2).to(x.dtype)


def _of_strips(x: Tensor, tall: int) -> Tensor:
    height, width = x.shape[2:]
    runs = spans(height, tall)
    if x.stride(3) != 1 or x.stride(2) != width or not x.numel():
        return _join([_strips(x, rows).mean((3, 4)) for rows in runs], 2).unsqueeze(3)
    if len(runs) == 1 or width < _WIDE_ROW or tall > _LONGEST_SUM or x.device.type != "cpu":
        return _join([_strips(x, rows).flatten(3).mean(3) for rows in runs], 2).unsqueeze(3)
    # One call for all strips: a smaller last one is divided by the rows that it has.
    rows = x.mean(3, dtype=accumulation_type(x.dtype))
    return F.avg_pool2d(rows, (1, tall), ceil_mode=True).unsqueeze(3).to(x.dtype)


def _strips(x: Tensor, rows: Span) -> Tensor:
    """A view of a run of equal strips: (N, C, rows, h, W)."""
    n, channels, height, width = x.shape
    if rows.number * rows.size != height:
        x = x.narrow(2, rows.start, rows.number * rows.size)
    return x.view(n, channels, rows.number, rows.size, width)


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def scale(x: Tensor, gates: Tensor, tile: Tile, inplace: bool = False) -> Tensor:
    """Each tile times its gate, written once into the output; differentiable where ``fills_strips``."""
    gates = gates.to(torch.promote_types(x.dtype, gates.dtype))
    recorded = torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)
    if kernels_are_on(x) and not recorded:
        return scale_into(x if inplace else torch.empty_like(x, dtype=gates.dtype), x, gates, tile)
    cut = 0 if recorded else _cuts(tile, x)
    if cut:
        rows, gate = _in_rows(x, cut), _over_rows(gates, tile, x, cut)
        if not inplace:
            return _shaped(rows * gate, x)
        torch.mul(rows, gate, out=rows)
        return x
    if not inplace and fills_strips(tile, x):
        if gates.shape[2:] == (1, 1):
            return x * gates
        ((strips, gate),) = _along_rows(gates, tile, x)
        return _shaped(_strips(x, strips) * gate, x)
    return scale_into(x if inplace else torch.empty_like(x, dtype=gates.dtype), x, gates, tile)


def _shaped(product: Tensor, x: Tensor) -> Tensor:
    """A product in the shape of x, and no view: torch lets none that was made under no_grad be added to in place."""
    return torch.ops.aten._unsafe_view(product, x.shape)


def scale_into(out: Tensor, x: Tensor, gates: Tensor, tile: Tile) -> Tensor:
    """``out`` = each tile times its gate; x itself may be ``out``. No gradient is recorded."""
    if kernels_are_on(x):
        from .kernels import multiply

        return multiply(x, gates.expand(x.shape[0], -1, -1, -1), out, *_scaled_tile(tile, x))
    cut = _cuts(tile, x) if out.is_contiguous() else 0
    if cut:
        torch.mul(_in_rows(x, cut), _over_rows(gates, tile, x, cut), out=_in_rows(out, cut))
        return out
    for rows, gate in _along_rows(gates, tile, x):
        torch.mul(_strips(x, rows), gate, out=_strips(out, rows))
    return out


def _cuts(tile: Tile, x: Tensor) -> int:
    """Into how many pieces to cut each row, to be multiplied row by row; 0 where strips are not."""
    width = x.shape[3]
    if width < _SHORT_ROW or x.nbytes < _ROW_BYTES or x.device.type != "cpu" or not x.is_contiguous():
        return 0
    tall, wide = tile.size(x.shape[2], width)
    if tile.single or wide < width or tall == x.shape[2]:
        return 0
    return _pieces(width)


@lru_cache(maxsize=256)
def _pieces(width: int) -> int:
    """The most pieces of at least _SHORT_ROW elements into which a row can be cut evenly."""
    return next(k for k in range(width // _SHORT_ROW, 0, -1) if width % k == 0)


def _in_rows(x: Tensor, cut: int) -> Tensor:
    """A view of the pieces of all rows: (N, C, H * cut, W / cut)."""
    return x.view(x.shape[0], x.shape[1], x.shape[2] * cut, x.shape[3] // cut)


def _over_rows(gates: Tensor, tile: Tile, x: Tensor, cut: int) -> Tensor:
    """Strips' values, one for each of those pieces: (N, C, H * cut, 1)."""
    height, width = x.shape[2:]
    n, channels, strips, _ = gates.shape
    each = tile.size(height, width)[0] * cut
    return gates.expand(-1, -1, -1, each).reshape(n, channels, strips * each, 1)[:, :, : height * cut]


def _scaled_tile(tile: Tile, x: Tensor) -> tuple[int, int]:
    """Rows and columns that one gate scales."""
    height, width = x.shape[2:]
    return (height, width) if tile.single else tile.size(height, width)


def fills_strips(tile: Tile, x: Tensor) -> bool:
    """Whether strips divide the map, so that the product is one call and its memory is the output's."""
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return False  # what torch gives for other strides need not be seen as a map again
    return tile.single or x.shape[2] % tile.size(x.shape[2], 1)[0] == 0


def _along_rows(grid: Tensor, tile: Tile, x: Tensor) -> Iterator[tuple[Span, Tensor]]:
    """One value a tile as (N, C, rows, 1, 1 or W) for each run of strips, to be broadcast over their rows."""
    height, width = x.shape[2:]
    tall, wide = _scaled_tile(tile, x)
    last = is_channels_last(x)
    if wide < width and wide > 1:
        n, channels, down, across = grid.shape
        # One row of values for a row of tiles: 1/h of the map, and whole rows are multiplied at once.
        if last:
            grid = grid.permute(0, 2, 3, 1).unsqueeze(3).expand(-1, -1, -1, wide, -1)
            grid = grid.reshape(n, down, across * wide, channels).permute(0, 3, 1, 2)
        else:
            grid = grid.unsqueeze(4).expand(-1, -1, -1, -1, wide).reshape(n, channels, down, across * wide)
        if across * wide > width:
            grid = grid.narrow(3, 0, width)
    else:
        # In the order of the map: channels and strips are then one loop (10 us, else 16, for 320 channels of 14 x 14).
        grid = grid.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    runs = spans(height, tall)
    if len(runs) == 1:
        yield runs[0], grid.unsqueeze(3)
        return
    row = 0
    for rows in runs:
        yield rows, grid.narrow(2, row, rows.number).unsqueeze(3)
        row += rows.number


def dot(a: Tensor, b: Tensor, tile: Tile) -> Tensor:
    """Sums of a * b over what each gate scales, (N, C, rows, cols); b's layout counts."""
    height, width = b.shape[2:]
    tall, wide = _scaled_tile(tile, b)
    if kernels_are_on(b):
        from .kernels import tile_sums

        return tile_sums(a, b, 0, height, tall, wide).to(b.dtype)
    image_bytes = b[:1].numel() * b.element_size()
    if b.device.type != "cpu" or b.shape[0] * image_bytes <= _PIECE_BYTES:
        even = _even_strips(tile, a, b)
        if even:
            return (a * b).view(even).sum(3, keepdim=True)
        return _times(_means(a * b, tall, wide), elements(tile, height, width, b))
    images = max(1, _PIECE_BYTES // image_bytes)
    rows = height if images > 1 else max(1, _PIECE_BYTES * height // (image_bytes * tall)) * tall
    product = torch.empty_like(b[:images].narrow(2, 0, min(rows, height)), memory_format=_layout(b))
    means = []
    for first in range(0, b.shape[0], images):
        bands = []
        for top in range(0, height, rows):
            part = (slice(first, first + images), slice(None), slice(top, top + rows))
            piece = product[: b[part].shape[0], :, : b[part].shape[2]]
            torch.mul(a[part], b[part], out=piece)
            bands.append(_means(piece, min(tall, piece.shape[2]), wide))
        means.append(_join(bands, 2))
    return _times(_join(means, 0), elements(tile, height, width, b))


def _even_strips(tile: Tile, *maps: Tensor) -> tuple[int, int, int, int] | None:
    """The shape (N, C, strips, elements) of maps in NCHW that row strips divide: one call for each step, then."""
    n, channels, height, width = maps[0].shape
    tall = min(tile.height or height, height)
    if tile.width is not None or tile.single or height % tall or not all(x.is_contiguous() for x in maps):
        return None
    return n, channels, height // tall, tall * width


def _times(means: Tensor, count: Tensor | int) -> Tensor:
    return means * count if isinstance(count, int) else (means.to(count.dtype) * count).to(means.dtype)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def spread(
    grad: Tensor, gates: Tensor, grad_descriptors: Tensor | None, tile: Tile, channels_last: bool
) -> Tensor:
    """The gradient of the map: grad * gate, plus what each element gave to the descriptors."""
    height, width = grad.shape[2:]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty_like(grad, memory_format=layout)
    share = None if grad_descriptors is None else share_of_descriptors(grad_descriptors, tile, height, width)
    if kernels_are_on(grad):
        from .kernels import multiply

        squeezed = tile.rows(height) if tile.single else None
        return multiply(grad, gates, out, *_scaled_tile(tile, grad), share, squeezed)
    if share is None or tile.single:
        scale_into(out, grad, gates, tile)
        if share is not None:
            first, stop = tile.rows(height)
            out.narrow(2, first, stop - first).add_(share)
        return out
    cut = _cuts(tile, grad) if out.is_contiguous() else 0
    if cut:
        scale_into(out, grad, gates, tile)
        _in_rows(out, cut).add_(_over_rows(share, tile, grad, cut))
        return out
    even = _even_strips(tile, grad, out)
    if even:
        torch.mul(grad.view(even), gates.contiguous(), out=out.view(even)).add_(share.contiguous())
        return out
    # One loop over three inputs is the fastest where values lie side by side, and 2 times slower than two loops
    # where the gate is one number for a whole strip.
    one_loop = channels_last or tile.size(height, width)[1] < width
    for (rows, gate), (_, addend) in zip(_along_rows(gates, tile, out), _along_rows(share, tile, out)):
        part = _strips(out, rows)
        if one_loop:
            torch.addcmul(addend, _strips(grad, rows), gate, out=part)
        else:
            torch.mul(_strips(grad, rows), gate, out=part).add_(addend)
    return out


def share_of_descriptors(grad: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """What one element of each tile gets of the descriptors' gradient; differentiable."""
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
