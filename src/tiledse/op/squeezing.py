"""The means of tiles, by what torch does fastest on the map's memory layout.

Figures are times in copies of the map, one thread of an AMD EPYC 9004, float32, maps over 10 MB, torch 2.14;
``tiledse bench`` measures the whole again.

=======  =================================================  =====================================================
         NCHW                                               channels_last (on a CPU)
=======  =================================================  =====================================================
strips   mean over the last axis of a view, or, of wide     avg_pool2d: 0.5 (a mean over a view: 3 - 6)
         ragged ones, over rows first: 0.4 - 0.5 (over two
         axes: 0.5 - 0.75)
others   rows, then columns: 0.9 - 2.5 (at once: 3 - 4)     avg_pool2d: 0.4 - 1.2
=======  =================================================  =====================================================

On a GPU the first column's formulas serve both layouts (not measured there).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tile import Tile
from .grids import accumulation_type, elements, is_channels_last, running, spans, strips_of
from .sliding import by_rows, seen
from .triton_on import kernels_are_on

# Pooling adds one element after the other, which loses digits: 2e-5 for the mean of 700 x 400 numbers near 100.
# Longer sums are pooled by rows first and then averaged by mean, which adds in pairs: 2e-7.
LONGEST_SUM = 4096

# Columns and patches of a map so small are pooled in NCHW, too: one call takes less than the two passes.
_FEW_ELEMENTS = 1 << 17

# A sum over each row, and then of rows, is as fast as one over strips from here on (0.41 copies at 128 and more; 1.0 at
# 28), and takes one call less where strips are ragged.
_WIDE_ROW = 112


def squeeze(x: Tensor, tile: Tile) -> Tensor:
    """Means of the tiles, (N, C, rows, cols); differentiable as often as its parts."""
    height, width = x.shape[2:]
    if kernels_are_on(x) and not (torch.is_grad_enabled() and x.requires_grad):
        return _squeeze_by_kernel(x, tile)
    if tile.single:
        first, stop = tile.rows(height)
        return means_of(x.narrow(2, first, stop - first), stop - first, width)
    tall, wide = tile.size(height, width)
    if by_rows(tile, height):
        return seen(means_of(x, 1, width), tile)
    means = means_of(x, tall, wide)
    return running(means, height, tall) if tile.squeeze == "running" else means


def _squeeze_by_kernel(x: Tensor, tile: Tile) -> Tensor:
    from .kernels import tile_sums

    height, width = x.shape[2:]
    tall, wide = tile.size(height, width)
    if tile.single:
        return (tile_sums(x, None, *tile.rows(height), tall, wide) / (tall * width)).to(x.dtype)
    if by_rows(tile, height):
        return seen(tile_sums(x, None, 0, height, 1, width) / width, tile).to(x.dtype)
    means = tile_sums(x, None, 0, height, tall, wide) / elements(tile, height, width, x)
    return (running(means, height, tall) if tile.squeeze == "running" else means).to(x.dtype)


def means_of(x: Tensor, tall: int, wide: int) -> Tensor:
    """Means of tiles of this size from the upper left on, the ragged ones over what they have: (N, C, rows, cols)."""
    if x.device.type == "cpu" and (is_channels_last(x) or (wide < x.shape[3] and x.numel() < _FEW_ELEMENTS)):
        return _pool(x, tall, wide)
    return _rows_then_columns(x, tall, wide)


def _pool(x: Tensor, tall: int, wide: int) -> Tensor:
    """By average pooling: of the full tiles, then of the ragged rest.

    ``ceil_mode`` would take both in one call, 0.91 of the time for large maps and 0.38 for 64 x 20 x 24; not done yet.
    """
    height, width = x.shape[2:]
    bands = []
    for rows in spans(height, tall):
        parts = []
        for cols in spans(width, wide):
            # Pooling leaves out what does not fill a window, so only the rest is cut out (and copied).
            part = x.narrow(2, rows.start, rows.size) if rows.start else x
            part = part.narrow(3, cols.start, cols.size) if cols.start else part
            parts.append(_pool_full(part, rows.size, cols.size))
        bands.append(joined(parts, 3))
    return joined(bands, 2)


def _pool_full(x: Tensor, tall: int, wide: int) -> Tensor:
    if tall * wide <= LONGEST_SUM:
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
        band = strips_of(x, rows).mean(3, dtype=wider)
        parts = [
            band.narrow(3, cols.start, cols.number * cols.size).unflatten(3, (cols.number, cols.size)).mean(4)
            for cols in spans(width, wide)
        ]
        bands.append(joined(parts, 3))
    return joined(bands, 2).to(x.dtype)


def _of_strips(x: Tensor, tall: int) -> Tensor:
    height, width = x.shape[2:]
    runs = spans(height, tall)
    if x.stride(3) != 1 or x.stride(2) != width or not x.numel():
        return joined([strips_of(x, rows).mean((3, 4)) for rows in runs], 2).unsqueeze(3)
    if len(runs) == 1 or width < _WIDE_ROW or tall > LONGEST_SUM or x.device.type != "cpu":
        return joined([strips_of(x, rows).flatten(3).mean(3) for rows in runs], 2).unsqueeze(3)
    # One call for all strips: a smaller last one is divided by the rows that it has.
    rows = x.mean(3, dtype=accumulation_type(x.dtype))
    return F.avg_pool2d(rows, (1, tall), ceil_mode=True).unsqueeze(3).to(x.dtype)


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """The parts behind each other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
