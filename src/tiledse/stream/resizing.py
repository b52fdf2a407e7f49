"""Interpolation in rows: which rows an output row reads, learnt by running the operator on row numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .maps import Linear, Repeat, Table


def nearest(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], height: int, width: int, out: tuple[int, ...]
) -> tuple[Table | Repeat, Any]:
    """Nearest: the operator itself, on a map of row and of column numbers, says where each row comes from."""
    kwargs = dict(kwargs)

    def numbers(length: int, dim: int) -> Tensor:
        # float64 holds every row number exactly; the place is computed in the same way for each type.
        along = [1, 1, 1, 1]
        along[dim] = length
        return torch.arange(length, dtype=torch.float64).view(along)

    rows = target(numbers(height, 2), *_size(args, out, 1), **kwargs)
    cols = target(numbers(width, 3), *_size(args, out, 0), **kwargs)
    first = rows[0, 0, :, 0].long().numpy()
    column = cols[0, 0, 0].long()
    table = Table(first, first)
    factor = out[2] // height
    if out[2] == factor * height and (first == np.arange(out[2]) // factor).all():

        def repeat(parts: list[Tensor], lo: int, hi: int) -> Tensor:
            rows_now = torch.arange(lo, hi, device=parts[0].device) // factor - lo // factor
            part = parts[0].index_select(2, rows_now)
            same = bool((column == torch.arange(width)).all()) if len(column) == width else False
            return part if same else part.index_select(3, column.to(part.device))

        return Repeat(factor), repeat

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        rows_now = torch.from_numpy(first[lo:hi] - first[lo]).to(parts[0].device)
        return parts[0].index_select(2, rows_now).index_select(3, column.to(parts[0].device))

    return table, run


def _size(args: tuple[Any, ...], out: tuple[int, ...], only: int) -> tuple[Any, ...]:
    """The operator's other arguments: the output size is kept in one axis, and one in the other."""
    rest = list(args[1:])
    if rest and isinstance(rest[0], (list, tuple)):
        rest[0] = [out[2], 1] if only else [1, out[3]]
    return tuple(rest)


def bilinear(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], height: int, out: tuple[int, ...]
) -> tuple[Table | Linear, Any]:
    """Bilinear: columns by the operator itself, then each row from the two rows that it lies between."""
    aligned = bool(args[2] if len(args) > 2 else kwargs.get("align_corners", False))
    given = args[3] if len(args) > 3 else kwargs.get("scale_factors")
    scale = 1 / given[0] if given is not None and not aligned else None
    rows = out[2]
    at = np.arange(rows, dtype=np.float64)
    if aligned:
        place = at * ((height - 1) / (rows - 1) if rows > 1 else 0.0)
    else:
        place = np.maximum((at + 0.5) * (scale or height / rows) - 0.5, 0.0)
    first = np.minimum(place.astype(np.int64), height - 1)
    last = np.minimum(first + 1, height - 1)
    share = torch.from_numpy(place - first)
    columns = None if given is None else float(given[1])
    factor = rows // height
    if not aligned and rows == factor * height and (scale is None or scale * factor == 1):
        return Linear(factor), _linear(Linear(factor), out[3], columns)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        part = parts[0]
        # An axis that keeps its size is copied, so this resizes the columns alone.
        wide = torch.ops.aten.upsample_bilinear2d.default(
            part, [part.shape[2], out[3]], aligned, 1.0, columns
        )
        base = int(first[lo])
        above = torch.from_numpy(first[lo:hi] - base).to(part.device)
        below = torch.from_numpy(last[lo:hi] - base).to(part.device)
        weight = share[lo:hi].to(part)[:, None]
        return wide.index_select(2, above) * (1 - weight) + wide.index_select(2, below) * weight

    return Table(first, last), run


def _linear(how: Linear, width: int, columns: float | None) -> Any:
    """A whole factor: the rows and their shares are the same at any height."""

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        part = parts[0]
        wide = torch.ops.aten.upsample_bilinear2d.default(part, [part.shape[2], width], False, 1.0, columns)
        return _between(wide, how, lo, hi, 2)

    return run


def _between(x: Tensor, how: Linear, lo: int, hi: int, dim: int) -> Tensor:
    """Rows, or columns, lo to hi of an interpolation by a whole factor, from those of a map from ``how.low(lo)`` on."""
    at = np.arange(lo, hi)
    upper, base = how.above(at), int(how.low(lo))
    share = at / how.factor - upper if how.corner else (at + 0.5) / how.factor - 0.5 - upper
    one, other = (
        torch.from_numpy(np.clip(row - base, 0, x.shape[dim] - 1)).to(x.device) for row in (upper, upper + 1)
    )
    weight = torch.from_numpy(share).to(x).view(-1, *[1] * (x.dim() - 1 - dim))
    return x.index_select(dim, one) * (1 - weight) + x.index_select(dim, other) * weight


@torch.library.custom_op("tiledse_stream::corners", mutates_args=())
def corners(x: Tensor, rows: int, columns: int) -> Tensor:
    """Linear interpolation by whole factors in which element i lies at ``i / factor``; torch has none."""
    wide = _between(x, Linear(columns, True), 0, columns * x.shape[3], 3)
    return _between(wide, Linear(rows, True), 0, rows * x.shape[2], 2)


@corners.register_fake
def _(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:2], rows * x.shape[2], columns * x.shape[3]))


def by_corners(rows: int, columns: int, width: int) -> tuple[Linear, Any]:
    """The same in rows."""
    how = Linear(rows, True)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        wide = _between(parts[0], Linear(columns, True), 0, columns * width, 3)
        return _between(wide, how, lo, hi, 2)

    return how, run
