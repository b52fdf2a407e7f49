"""Each tile times its gate, by what torch does fastest on the map's memory layout.

Times in copies, as in squeezing.py:

=======  =================================================  =====================================================
         NCHW                                               channels_last (on a CPU)
=======  =================================================  =====================================================
strips   gate broadcast over rows cut in pieces of 32 and   gate broadcast over a view, with its channels side by
         more: 0.9 - 1.1, in place 0.45; where rows are     side: 1.1
         shorter, over strips: 1.0 - 1.2, in place 0.5
         (over wide strips: 1.3 - 1.5, 0.6)
others   gates repeated along one row of tiles first, so    the same: 1.4 (1.7)
         that whole rows are multiplied: 1.1 - 1.6
         (broadcast over columns: 2.3 - 7)
=======  =================================================  =====================================================

``scale`` is differentiable by torch where ``fills_strips`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..tile import Tile
from .grids import Span, is_channels_last, is_dense, spans, strips_of
from .triton_on import kernels_are_on

# Torch multiplies rows by one number each at 0.9 to 1.1 copies where they have 32 to 64 elements, 1.2 from 128 on. Of
# maps that stay in the cache it multiplies whole strips faster: 97 us, not 164, for 3 MB; both take 730 us for 13 MB.
_SHORT_ROW = 32
_ROW_BYTES = 8 << 20


def scale(x: Tensor, gates: Tensor, tile: Tile, inplace: bool = False) -> Tensor:
    """Each tile times its gate, written once into the output; differentiable where ``fills_strips``."""
    gates = gates.to(torch.promote_types(x.dtype, gates.dtype))
    recorded = torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)
    if kernels_are_on(x) and not recorded:
        return scale_into(x if inplace else torch.empty_like(x, dtype=gates.dtype), x, gates, tile)
    cut = 0 if recorded else cuts(tile, x)
    if cut:
        rows, gate = in_rows(x, cut), over_rows(gates, tile, x, cut)
        if not inplace:
            return shaped(rows * gate, x)
        torch.mul(rows, gate, out=rows)
        return x
    if not inplace and fills_strips(tile, x):
        if gates.shape[2:] == (1, 1):
            return x * gates
        ((strips, gate),) = along_rows(gates, tile, x)
        return shaped(strips_of(x, strips) * gate, x)
    return scale_into(x if inplace else torch.empty_like(x, dtype=gates.dtype), x, gates, tile)


def shaped(product: Tensor, x: Tensor) -> Tensor:
    """A product in the shape of x.

    It is not a view: torch refuses to change a view in place when the view was made under no_grad.
    """
    return torch.ops.aten._unsafe_view(product, x.shape)


def scale_into(out: Tensor, x: Tensor, gates: Tensor, tile: Tile) -> Tensor:
    """``out`` = each tile times its gate; x itself may be ``out``. No gradient is recorded."""
    if kernels_are_on(x):
        from .kernels import multiply

        return multiply(x, gates.expand(x.shape[0], -1, -1, -1), out, *tile.scaled(*x.shape[2:]))
    cut = cuts(tile, x) if out.is_contiguous() else 0
    if cut:
        torch.mul(in_rows(x, cut), over_rows(gates, tile, x, cut), out=in_rows(out, cut))
        return out
    for rows, gate in along_rows(gates, tile, x):
        torch.mul(strips_of(x, rows), gate, out=strips_of(out, rows))
    return out


def cuts(tile: Tile, x: Tensor) -> int:
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


def in_rows(x: Tensor, cut: int) -> Tensor:
    """A view of the pieces of all rows: (N, C, H * cut, W / cut)."""
    return x.view(x.shape[0], x.shape[1], x.shape[2] * cut, x.shape[3] // cut)


def over_rows(gates: Tensor, tile: Tile, x: Tensor, cut: int) -> Tensor:
    """Strips' values, one for each of those pieces: (N, C, H * cut, 1)."""
    height, width = x.shape[2:]
    n, channels, strips, _ = gates.shape
    each = tile.size(height, width)[0] * cut
    return gates.expand(-1, -1, -1, each).reshape(n, channels, strips * each, 1)[:, :, : height * cut]


def fills_strips(tile: Tile, x: Tensor) -> bool:
    """Whether strips divide the map, so that the product is one call and its memory is the output's."""
    if not is_dense(x):
        return False  # what torch gives for other strides need not be seen as a map again
    return tile.single or x.shape[2] % tile.size(x.shape[2], 1)[0] == 0


def along_rows(grid: Tensor, tile: Tile, x: Tensor) -> Iterator[tuple[Span, Tensor]]:
    """One value a tile as (N, C, rows, 1, 1 or W) for each run of strips, to be broadcast over their rows."""
    height, width = x.shape[2:]
    tall, wide = tile.scaled(height, width)
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
