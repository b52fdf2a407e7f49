"""Operators along axes: norms, linear layers, softmax, means; over the rows a mean is a running one."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ..builder import Builder, Ref
from ..maps import Total
from .table import Fx, argument, by_row, on, shape_of


@on("batch_norm", "_native_batch_norm_legit_no_training", "prelu")
def norm(b: Builder, fx: Fx, pick: Any) -> Ref:
    """By channel."""
    refs, _ = b.call(fx)
    training = "batch_norm.default" in str(fx.target) and fx.args[5]
    if len(refs) != 1 or b.values[refs[0].index].row_dim == 1 or training:
        return b.whole(fx, pick)
    return by_row(b, fx, pick, b.values[refs[0].index].row_dim, fresh=True)


@on("layer_norm", "native_layer_norm", "rms_norm")
def last_axes(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Norms over the last axes: local in rows if the rows are not among them."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    if len(refs) != 1 or value.row_dim is None or value.row_dim >= len(value.shape) - len(fx.args[1]):  # type: ignore[arg-type]
        return b.whole(fx, pick)
    return by_row(b, fx, pick, value.row_dim, fresh=True)


@on("linear")
def linear(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Over the last axis."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    if len(refs) != 1 or value.row_dim is None or value.row_dim == len(value.shape) - 1:
        return b.whole(fx, pick)
    return by_row(b, fx, pick, value.row_dim, fresh=True)


@on("softmax", "_softmax", "log_softmax", "glu", "cumsum")
def over_axis(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Over one axis."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    dim = fx.args[1] if len(fx.args) > 1 else -1
    if not isinstance(dim, int) or dim % len(value.shape) == value.row_dim:
        return b.whole(fx, pick)
    return by_row(b, fx, pick, value.row_dim, fresh=True)


@on("mean", "sum", "amax", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def reduced(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A mean, sum or maximum; over the rows it is a running one."""
    refs, _ = b.call(fx, pick)
    value, out = b.values[refs[0].index], shape_of(fx, pick)
    rank, row_dim, name = len(value.shape), value.row_dim, str(fx.target)
    assert row_dim is not None
    if "adaptive" in name:
        if set(out[2:]) == {1} and row_dim == 2:
            return _total(b, fx, refs[0], "mean", list(range(2, rank)), True)
        return b.whole(fx, pick)
    axes, keep = argument(fx, 1, None), bool(argument(fx, 2, False))
    if not isinstance(axes, (list, tuple)) or not axes or fx.kwargs:
        return b.whole(fx, pick)
    dims = sorted(d % rank for d in axes)
    if row_dim in dims:
        return _total(b, fx, refs[0], name.split(".")[1], dims, keep)
    return by_row(b, fx, pick, row_dim if keep else row_dim - sum(d < row_dim for d in dims), fresh=True)


def _total(b: Builder, fx: Fx, ref: Ref, how: str, dims: list[int], keep: bool) -> Ref:
    """A running reduction: sums row by row, one result at the end."""
    value = b.values[ref.index]
    row_dim = value.row_dim
    assert row_dim is not None

    def absorb(part: Tensor, state: Any) -> Any:
        now = part.amax(dims, keep) if how == "amax" else part.sum(dims, keep)
        rows = prod(part.shape[d] for d in dims)
        if state is None:
            return now, rows
        return (torch.maximum(state[0], now) if how == "amax" else state[0] + now), state[1] + rows

    def finish(state: Any) -> Tensor:
        return state[0] / state[1] if how == "mean" else state[0]

    kept = row_dim if keep else None
    return b.add(
        fx, "mean" if how == "mean" else how, [ref], [Total()], absorb, kept, None, finish=finish, fresh=True
    )
