"""The operator in PyTorch's own operators, by what torch does fastest on the map's memory layout, and its gradients.

Times in copies of the map, one thread of an AMD EPYC 9004, float32, maps over 10 MB, torch 2.14:

=============  =================================================  =================================================
               NCHW                                               channels_last (on a CPU)
=============  =================================================  =================================================
means, strips  mean over the last axis of a view: 0.4 - 0.5       avg_pool2d: 0.5 (a mean over a view: 3 - 6)
means, others  rows, then columns: 0.9 - 2.5 (at once: 3 - 4)     avg_pool2d: 0.4 - 1.2
times gates    broadcast over a view: 1.0 - 1.2; over columns,    the same, channels side by side: 1.1 - 1.4
               repeated along one row of tiles first: 1.1 - 1.6
=============  =================================================  =================================================

On a GPU the first column's formulas serve both layouts (not measured there). ``squeeze`` and ``scale`` serve every
excitation, with gradients in ``Squeeze`` and ``Scale``; ``forward`` and ``backward`` are those of one with two layers,
as a kernel of choosing.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tile import Tile
from . import formula
from .excitation import ACTS, GATES
from .grids import (
    Span,
    accumulation_type,
    by_rows,
    elements,
    is_batched,
    is_channels_last,
    layout,
    like,
    running,
    seen,
    share,
    spans,
    strips_of,
)

if TYPE_CHECKING:
    from .choosing import Call

# Pooling adds one element after the other, which loses digits: 2e-5 for the mean of 700 x 400 numbers near 100.
# Longer sums are pooled by rows first and then averaged by mean, which adds in pairs: 2e-7.
_LONGEST_SUM = 4096

# Rows of this many elements and more are multiplied by a number each, 0.05 to 0.2 copies less than strips; shorter ones
# take up to 0.4 more.
_WIDE_ROW = 48

# A product of this size is still in the cache when it is summed: 1.5 copies for ``dot``, else 2.0 to 2.7.
_CACHED_BYTES = 1 << 20


def why_not(call: Call) -> str | None:
    """It takes every call."""
    return None


def prepare(call: Call) -> Call:
    """Nothing: what ``forward`` needs is in the call."""
    return call


def squeeze(x: Tensor, tile: Tile) -> Tensor:
    """Means of the tiles, (N, C, rows, cols); differentiable as often as its parts."""
    height, width = x.shape[2:]
    if tile.single:
        first, stop = tile.rows(height)
        return _means(x.narrow(2, first, stop - first), stop - first, width)
    tall, wide = tile.size(height, width)
    if by_rows(tile, height):
        return seen(_means(x, 1, width), tile)
    means = _means(x, tall, wide)
    return running(means, height, tall) if tile.squeeze == "running" else means


def _means(x: Tensor, tall: int, wide: int) -> Tensor:
    """Means of tiles of this size from the upper left on, the ragged ones over what they have: (N, C, rows, cols)."""
    pooled = x.device.type == "cpu" and is_channels_last(x)
    height, width = x.shape[2:]
    if tall == height and wide == width and not pooled:
        return x.mean((2, 3), keepdim=True)
    bands = []
    for rows in spans(height, tall):
        band = x if rows.start == 0 else x.narrow(2, rows.start, rows.size)
        bands.append(_pool(band, rows.size, wide) if pooled else _rows_then_columns(x, rows, wide))
    return _joined(bands, 2).to(x.dtype)


def _pool(band: Tensor, tall: int, wide: int) -> Tensor:
    """By average pooling, which leaves out what does not fill a window: so only the rest is cut out (and copied)."""
    parts = []
    for cols in spans(band.shape[3], wide):
        part = band if cols.start == 0 else band.narrow(3, cols.start, cols.size)
        if tall * cols.size <= _LONGEST_SUM:
            parts.append(F.avg_pool2d(part, (tall, cols.size)))
        else:
            full = part.narrow(2, 0, part.shape[2] // tall * tall)
            rows = F.avg_pool2d(full, (1, cols.size))
            parts.append(strips_of(rows, Span(0, rows.shape[2] // tall, tall)).mean(3))
    return _joined(parts, 3)


def _rows_then_columns(x: Tensor, rows: Span, wide: int) -> Tensor:
    strips = strips_of(x, rows)
    if wide == x.shape[3]:
        one_run = x.stride(3) == 1 and x.stride(2) == wide and x.numel()
        return strips.flatten(3).mean(3, keepdim=True) if one_run else strips.mean((3, 4)).unsqueeze(3)
    band = strips.mean(3, dtype=accumulation_type(x.dtype))
    return _joined(
        [
            band.narrow(3, cols.start, cols.number * cols.size).unflatten(3, (cols.number, cols.size)).mean(4)
            for cols in spans(x.shape[3], wide)
        ],
        3,
    )


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def scale(x: Tensor, gates: Tensor, tile: Tile, out: Tensor | None = None) -> Tensor:
    """``out`` = each tile times its gate, in the map's layout; x itself may be ``out``. No gradient is recorded."""
    if out is None:
        dtype = torch.promote_types(x.dtype, gates.dtype)
        out = torch.empty_like(x, dtype=dtype, memory_format=layout(x))
    for rows, gate in _along_rows(gates, tile, x):
        torch.mul(strips_of(x, rows), gate, out=strips_of(out, rows))
    return out


def _along_rows(grid: Tensor, tile: Tile, x: Tensor) -> Iterator[tuple[Span, Tensor]]:
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
        grid = grid.narrow(3, 0, width)
    elif not last and width >= _WIDE_ROW and wide >= width and grid.shape[2] > 1:
        # One value for each row, all in one call.
        grid = grid.expand(-1, -1, -1, tall).flatten(2).narrow(2, 0, height).unsqueeze(3)
        tall = 1
    else:
        # In the order of the map: channels and strips are then one loop (10 us, else 16, for 320 channels of 14 x 14).
        grid = grid.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    row = 0
    for rows in spans(height, tall):
        yield rows, grid.narrow(2, row, rows.number).unsqueeze(3)
        row += rows.number


def dot(a: Tensor, b: Tensor, tile: Tile) -> Tensor:
    """Sums of a * b over what each gate scales, (N, C, rows, cols); b's layout counts."""
    height, width = b.shape[2:]
    size, count = tile.scaled(height, width), elements(tile, height, width, b)
    # So many images at once.
    many = max(1, _CACHED_BYTES * b.shape[0] // max(1, b.nbytes)) if b.device.type == "cpu" else b.shape[0]
    if many >= b.shape[0]:
        means = _means(torch.mul(a, b, out=like(b)) if b.numel() else a * b, *size)
    else:
        room, pairs = like(b[:many]), zip(a.split(many), b.split(many))
        means = torch.cat([_means(torch.mul(p, q, out=room[: q.shape[0]]), *size) for p, q in pairs])
    return means * count if isinstance(count, int) else (means.to(count.dtype) * count).to(means.dtype)


def spread(grad: Tensor, gates: Tensor, to_z: Tensor | None, tile: Tile, last: bool) -> Tensor:
    """The gradient of the map: grad * gate, plus what each element gave to the descriptors, whose gradient is to_z."""
    height, width = grad.shape[2:]
    form = torch.channels_last if last else torch.contiguous_format
    out = torch.empty_like(grad, memory_format=form)
    given = None if to_z is None else _share(to_z, tile, height, width)
    if given is not None and last and not (tile.single or by_rows(tile, height)):
        for (rows, gate), (_, addend) in zip(_along_rows(gates, tile, out), _along_rows(given, tile, out)):
            torch.addcmul(addend, strips_of(grad, rows), gate, out=strips_of(out, rows))
        return out
    scale(grad, gates, tile, out)
    if given is None:
        return out
    if by_rows(tile, height):
        return out.add_(given)
    if tile.single:
        first, stop = tile.rows(height)
        out.narrow(2, first, stop - first).add_(given)
        return out
    for rows, addend in _along_rows(given, tile, out):
        strips_of(out, rows).add_(addend)
    return out


def _share(grad: Tensor, tile: Tile, height: int, width: int) -> Tensor:
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


def forward(x: Tensor, weights: Sequence[Tensor], call: Call, save: bool, out: Tensor | None) -> list[Tensor]:
    """The scaled map, and with ``save`` descriptors, hidden layer and gates; see registered.py."""
    w1, b1, w2, b2 = weights
    z = _flat(squeeze(x, call.tile)).to(w1.dtype)
    hidden = torch.addmm(b1, z, w1.flatten(1).t())
    gates = GATES[call.gate](torch.addmm(b2, ACTS[call.act](hidden), w2.flatten(1).t()))
    y = scale(x, _grid(gates.to(x.dtype), x, call.tile), call.tile, like(x) if out is None else out)
    kept = accumulation_type(x.dtype)
    return [y, *(part.to(kept).contiguous() for part in (z, hidden, gates))] if save else [y]


def backward(
    x: Tensor, grad: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor, gates: Tensor, call: Call
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    w1, w2, tile = w1.flatten(1).to(hidden.dtype), w2.flatten(1).to(hidden.dtype), call.tile
    to_a2 = _through_gate(call.gate, _flat(dot(grad, x, tile)).to(gates.dtype), gates)
    to_a1 = _through_act(call.act, to_a2 @ w2, hidden)
    to_z = _grid((to_a1 @ w1).to(x.dtype), x, tile)
    return spread(grad, _grid(gates.to(x.dtype), x, tile), to_z, tile, is_channels_last(x)), to_a1, to_a2


def _through_act(act: str, grad: Tensor, a: Tensor) -> Tensor:
    aten = torch.ops.aten
    if act == "relu":
        return aten.threshold_backward(grad, a, 0)
    return aten.silu_backward(grad, a) if act == "silu" else aten.hardswish_backward(grad, a)


def _through_gate(gate: str, grad: Tensor, g: Tensor) -> Tensor:
    """From a gate's value: what its argument was is not kept."""
    if gate == "sigmoid":
        return torch.ops.aten.sigmoid_backward(grad, g)
    return grad * (((g > 0) & (g < 1)).to(g.dtype) / 6)


def _flat(grid: Tensor) -> Tensor:
    """(N, C, rows, cols) to (tiles, C)."""
    return grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])


def _grid(flat: Tensor, x: Tensor, tile: Tile) -> Tensor:
    """(tiles, C) to (N, C, rows, cols)."""
    rows, cols = tile.grid(x.shape[2], x.shape[3])
    return flat.view(x.shape[0], rows, cols, x.shape[1]).permute(0, 3, 1, 2)


# The obvious graph of an excitation that is called saves the same as this one, but its backward pass makes four values
# of the map's size: gradient times gate, gradient times map, the descriptors' gradient repeated over the tiles, and
# their sum. Here the map goes through two nodes about the excitation, and back in two reads of the gradient, one of the
# map and one write:
#
#     x ---- Squeeze ---- x ------------------ Scale ---- y
#               |                                |
#               '---- z ---- excite ---- g ------'
#
# Going back, ``Scale`` reduces gradient * map to the gates' gradient and leaves the map's own to ``Squeeze``: it passes
# the gradient of y on as it is, and the gates beside it, and ``Squeeze`` forms gradient * gate + share of the
# descriptors in one go. The map between the two nodes is seen by nobody else.
#
# One node that runs the excitation on detached descriptors takes as long (docs/performance.md), and would lose what the
# pair has: gradients of a loss on what the excitation computes within, and hooks that are called once a pass.


class Link:
    """What ``Scale`` leaves for ``Squeeze`` in one backward pass: the gates, without their graph."""

    gates: Tensor | None = None


class Squeeze(torch.autograd.Function):
    """x to (x, descriptors)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tile: Tile, link: Link) -> tuple[Tensor, Tensor]:
        """Saves nothing."""
        ctx.tile, ctx.link, ctx.shape = tile, link, x.shape
        ctx.channels_last = is_channels_last(x)
        ctx.set_materialize_grads(False)
        return x.view_as(x), squeeze(x, tile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The gradient of x, from that of y (see above) or of x and that of the descriptors."""
        gates, ctx.link.gates = ctx.link.gates, None
        if grad is not None and gates is not None:
            return spread(grad, gates, grad_z, ctx.tile, ctx.channels_last), None, None
        if grad_z is not None:
            # The squeeze is linear: its gradient depends on no number of the map.
            x = torch.zeros((), dtype=grad_z.dtype, device=grad_z.device).expand(ctx.shape).requires_grad_()
            (given,) = formula.gradients(
                lambda x: formula.squeeze(x, ctx.tile, formula.mean), [x], [True], grad_z
            )
            grad = given if grad is None or given is None else grad + given
        return grad, None, None


class Scale(torch.autograd.Function):
    """(x, gates) to y. Its gradient of x is a promise that ``Squeeze`` keeps: use it on nothing else's x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, tile: Tile, link: Link) -> Tensor:
        """Saves the map, which whoever made it holds anyway, and the gates."""
        ctx.tile, ctx.link = tile, link
        ctx.save_for_backward(x, gates)
        return scale(x, gates, tile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The gradient of y, left to be scaled, and that of the gates."""
        x, gates = ctx.saved_tensors
        tile, link, wanted = ctx.tile, ctx.link, ctx.needs_input_grad[:2]
        link.gates = None
        if torch.is_grad_enabled() or is_batched(grad):
            given = formula.gradients(lambda x, g: formula.scale(x, g, tile), (x, gates), wanted, grad)
            return given[0], given[1], None, None
        sums = dot(grad, x, tile) if wanted[1] else None
        if wanted[0]:
            link.gates = gates.detach()
        return grad if wanted[0] else None, sums, None, None
