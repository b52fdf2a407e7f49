"""The formula: squeeze and scale as plain operators, which compilers and exporters trace and fuse.

Compilers get views of six axes, which they fuse. Exporters get what other people's runtimes take (``is_exported``):
pools, means and nearest interpolation on four axes at the most, and products in place of sums from row to row. OpenVINO
takes 2.3 times SE's time for the views at 4096 x 1024, and 0.9 times for pools; Vela refuses the views. Where an
exporter leaves a side free, it gets the form of ``free_sides.py``.

Every faster way (functional.py lists them) gives the same numbers, and those that have no gradient of their own take
torch's gradient of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TiledSEError
from ..tile import Tile
from . import free_sides
from .grids import Span, by_rows, running, seen, shares, sizes, spans
from .traces import held, kept, sides

Reduce = Callable[[Tensor, "tuple[int, ...]"], Tensor]


def _tiles(x: Tensor, rows: Span, cols: Span) -> Tensor:
    """A view of one rectangle of equal tiles: (N, C, rows, h, cols, w)."""
    x = x.narrow(2, rows.start, rows.number * rows.size).narrow(3, cols.start, cols.number * cols.size)
    return x.unflatten(3, (cols.number, cols.size)).unflatten(2, (rows.number, rows.size))


def mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The squeeze of the paper: the mean over a tile's own elements."""
    return x.mean(dims)


def mean_and_max(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Half the mean and half the maximum: what timm's SE modules squeeze with ``add_maxpool=True``."""
    return 0.5 * x.mean(dims) + 0.5 * x.amax(dims)


def squeeze(x: Tensor, tile: Tile, reduce: Reduce) -> Tensor:
    """Descriptors of the tiles, (N, C, rows, cols)."""
    if is_free(x):
        if reduce is mean:
            return free_sides.squeeze(x, tile)
        raise TiledSEError(
            f"tile {tile}: a squeeze that is more than a mean is exported for one size; leave height and width of the "
            "map fixed in dynamic_shapes"
        )
    if torch.jit.is_tracing() and not tile.whole:
        x = held(x)
    height, width = sides(x)
    if reduce is mean and is_exported(height, width):
        return _pooled(x, tile, height, width)
    if tile.single:
        first, stop = tile.rows(height)
        return reduce(x.narrow(2, first, stop - first), (2, 3))[:, :, None, None]
    if tile.whole:
        return reduce(x, (2, 3))[:, :, None, None]
    tall, wide = tile.size(height, width)
    if tile.slides and reduce is not mean:
        raise TiledSEError(
            f"tile {tile}: a {tile.squeeze} strip is a mean, but this block also squeezes a maximum"
        )
    if by_rows(tile, height):
        return seen(x.mean(3, keepdim=True), tile)
    grid = torch.cat(
        [
            torch.cat([reduce(_tiles(x, rows, cols), (3, 5)) for cols in spans(width, wide)], 3)
            for rows in spans(height, tall)
        ],
        2,
    )
    return running(grid, height, tall) if tile.squeeze == "running" else grid


def scale(x: Tensor, gates: Tensor, tile: Tile) -> Tensor:
    """Each tile times its gate, which is broadcast over a view and never repeated in memory."""
    if is_free(x):
        return free_sides.scale(x, gates, tile)
    height, width = sides(x)
    if tile.grid(height, width) == (1, 1):
        return (kept(x) if torch.jit.is_tracing() and not tile.whole else x) * gates
    tall, wide = tile.scaled(height, width)
    if is_exported(height, width):
        x = kept(x) if torch.jit.is_tracing() else x
        return x * _repeated(gates, tall, wide, height, width)
    bands, row = [], 0
    for rows in spans(height, tall):
        parts, col = [], 0
        for cols in spans(width, wide):
            gate = gates.narrow(2, row, rows.number).narrow(3, col, cols.number)
            scaled = _tiles(x, rows, cols) * gate[:, :, :, None, :, None]
            parts.append(scaled.flatten(4, 5).flatten(2, 3))
            col += cols.number
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, 3))
        row += rows.number
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def is_free(x: Tensor) -> bool:
    """Whether an exporter leaves the height or width of a map free: they are symbols, and no numbers."""
    return torch.compiler.is_exporting() and not all(is_known(side) for side in x.shape[2:])


def is_known(side: int) -> bool:
    """Whether a side is a number; to dynamo, which takes symbols for ints too, whether its bounds close in on one."""
    if not torch.compiler.is_dynamo_compiling():
        return isinstance(side, int)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    low, high = 0, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        if statically_known_true(side < middle):
            high = middle
        elif statically_known_true(side >= middle):
            low = middle
        else:
            return False
    return True


def is_exported(height: int, width: int) -> bool:
    """Whether an exporter, or torch.jit, traces a map of these rows and columns; not where they are symbols."""
    known = isinstance(height, int) and isinstance(width, int)
    return known and (torch.compiler.is_exporting() or torch.jit.is_tracing())


def _pooled(x: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """``squeeze`` for exporters: each window lies within its map, so no runtime has anything to round or pad."""
    if tile.single:
        first, stop = tile.rows(height)
        return x.narrow(2, first, stop - first).mean((2, 3), keepdim=True)
    if tile.squeeze == "two-step":
        return x.mean(3, keepdim=True).mean(2, keepdim=True)
    tall, wide = tile.size(height, width)
    if (tall, wide) == (height, width):
        return x.mean((2, 3), keepdim=True)
    if by_rows(tile, height):
        return _weighted(x.mean(3, keepdim=True), shares(tile, height, x))
    strips = sizes(height, tall)
    # Of a side that is cut, only means are: the other side is averaged before.
    if height % tall and wide == width:
        x, width, wide = x.mean(3, keepdim=True), 1, 1
    if width % wide and tall == height:
        x, height, tall = x.mean(2, keepdim=True), 1, 1
    down, across = spans(height, tall), spans(width, wide)
    bands = []
    for rows in down:
        band = x if len(down) == 1 else x.narrow(2, rows.start, rows.number * rows.size)
        parts = [
            F.avg_pool2d(
                band if len(across) == 1 else band.narrow(3, cols.start, cols.number * cols.size),
                (rows.size, cols.size),
            )
            for cols in across
        ]
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, 3))
    grid = bands[0] if len(bands) == 1 else torch.cat(bands, 2)
    return _weighted(grid, _running_shares(grid, strips)) if tile.squeeze == "running" else grid


def _running_shares(like: Tensor, rows: list[int]) -> Tensor:
    """The share of each strip, of these rows, in the mean of all rows down to the end of each: (strips, strips)."""
    ends = [sum(rows[: j + 1]) for j in range(len(rows))]
    matrix = [[n / end if i <= j else 0.0 for i, n in enumerate(rows)] for j, end in enumerate(ends)]
    return torch.tensor(matrix, dtype=like.dtype, device=like.device)


def _weighted(rows: Tensor, matrix: Tensor) -> Tensor:
    """Weighted means of rows (N, C, rows, 1); the constant stands on the right, as in a dense layer."""
    return (rows.transpose(2, 3) @ matrix.to(rows.dtype).t()).transpose(2, 3)


def _repeated(gates: Tensor, tall: int, wide: int, height: int, width: int) -> Tensor:
    """Gates repeated over the elements of their tiles and cropped; one a row or column is left to broadcast."""
    tall = 1 if tall == height else tall
    wide = 1 if wide == width else wide
    if (tall, wide) != (1, 1):
        gates = F.interpolate(gates, scale_factor=(float(tall), float(wide)), mode="nearest")
    if tall > 1 and height % tall:
        gates = gates.narrow(2, 0, height)
    return gates.narrow(3, 0, width) if wide > 1 and width % wide else gates


def gradients(
    value: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """torch's own gradients of a formula, for a backward pass that is asked for a graph of them, or for many at once.

    Args:
        value: The formula, of the inputs.
        inputs: Its inputs.
        wanted: Which of them get a gradient; the others get None.
        grad: The gradient of what it gives.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not graph:
            inputs = [given.detach().requires_grad_(asked) for given, asked in zip(inputs, wanted)]
        asked_for = [given for given, asked in zip(inputs, wanted) if asked]
        found = iter(torch.autograd.grad(value(*inputs), asked_for, grad, create_graph=graph))
    return [next(found) if asked else None for asked in wanted]
