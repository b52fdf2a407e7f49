"""Statistics over rows as running sums: deviations, and means whose weights are a softmax over rows.

As in online softmax, the sums of a softmax are kept relative to the largest logit so far.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv 1805.02867.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..builder import Builder, Ref, numbers_in
from ..maps import SAME, First, Total
from .late import Inverse, Late, Term, combined, is_rows, put_off, row_dim_of, shape_of
from .table import Fx, argument, by_row, on

_LOWEST = float(torch.finfo(torch.float32).min)
# Products of sums have as many terms as both together; a network's statistics have three or four.
_MOST_TERMS = 16


def followed(b: Builder, fx: Fx, plain: Callable[[], Ref]) -> Ref | None:
    """An operator that is put off, or sums up one that was; None where it is neither.

    Args:
        b: Walks the network.
        fx: The operator.
        plain: Builds it as it stands.
    """
    name = str(fx.target).removeprefix("aten.").split(".")[0].rstrip("_")
    if name in ("sum", "mean"):
        return _summed(b, fx, name)
    if fx.kwargs:
        return None
    given: list[Any] = [b.env.get(a, a) if isinstance(a, Fx) else a for a in fx.args]
    if name in ("softmax", "_softmax"):
        rows = given[0]
        if not is_rows(b, rows) or isinstance(rows, Late):
            return None
        value = b.values[rows.index]
        own = given[1] if len(given) > 1 else -1
        typed = len(given) > 2 and given[2] not in (None, False)
        if typed or not isinstance(own, int) or own % len(value.shape) != value.row_dim:
            return None
        assert value.row_dim is not None
        return put_off(b, fx, (Term(weight=rows),), value.row_dim, plain)
    if name not in ("add", "sub", "mul", "div", "pow", "square", "neg", "rsub") or len(given) > 2:
        return None
    maps = [a for a in given if isinstance(a, Ref) and is_rows(b, a)]
    late = any(isinstance(a, Late) for a in given)
    if not maps or not (late or any(isinstance(a, Ref) and not is_rows(b, a) for a in given)):
        return None
    row_dim = row_dim_of(b, maps[0])
    if any(row_dim_of(b, r) != row_dim or len(shape_of(b, r)) != len(fx.meta["val"].shape) for r in maps):
        return None
    terms = combined(b, name, given, len(fx.meta["val"].shape) - row_dim)
    if terms is None or len(terms) > _MOST_TERMS:
        return None
    return put_off(b, fx, terms, row_dim, plain)


def _summed(b: Builder, fx: Fx, how: str) -> Ref | None:
    """A sum or mean over the rows of what was put off; None for others, and for those over other axes as well."""
    given = b.env.get(fx.args[0]) if isinstance(fx.args[0], Fx) else None
    if not isinstance(given, Late) or fx.kwargs:
        return None
    axes, keep = argument(fx, 1, None), bool(argument(fx, 2, False))
    rank = len(shape_of(b, given))
    if not isinstance(axes, (list, tuple)) or [a % rank for a in axes] != [given.row_dim]:
        return None
    base = next(r for term in given.terms for r in (*term.rows, term.weight) if r is not None)
    refs: list[Ref] = []
    ends: list[tuple[Any, ...]] = []
    for term in given.terms:
        idle = how == "mean" and not term.rows and term.weight is None
        summed = None if idle else _total(b, fx, term, base, given.row_dim, how, keep)
        places = []
        for end in ([] if summed is None else [summed]) + list(term.ends):
            inner = end.of if isinstance(end, Inverse) else end
            if isinstance(inner, Ref):
                refs.append(inner)
                inner = _At(len(refs) - 1)
            places.append(Inverse(inner) if isinstance(end, Inverse) else inner)
        ends.append(tuple(places))
    return _finished(b, fx, refs, ends, rank - given.row_dim, keep)


@dataclass(frozen=True)
class _At:
    """Which of the operands."""

    number: int


def _finished(
    b: Builder, fx: Fx, refs: list[Ref], terms: list[tuple[Any, ...]], place: int, keep: bool
) -> Ref:
    """The sum of products of what is known at the end."""
    out = len(fx.meta["val"].shape) + (0 if keep else 1)

    def part(end: Any, parts: list[Tensor]) -> Any:
        if isinstance(end, Inverse):
            return 1 / part(end.of, parts)
        x = parts[end.number] if isinstance(end, _At) else end
        # One row, where the result has none.
        return x.squeeze(-place) if isinstance(x, Tensor) and not keep and x.dim() == out else x

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        total: Any = 0
        for term in terms:
            product: Any = 1
            for end in term:
                product = product * part(end, parts)
            total = total + product
        made: Tensor = total.to(fx.meta["val"].dtype)
        return made

    known = [end.of if isinstance(end, Inverse) else end for term in terms for end in term]
    numbers = numbers_in(known)
    return b.add(fx, "row", refs, [First()] * len(refs), run, None, sizes=numbers, fresh=True)


def _total(b: Builder, fx: Fx, term: Term, base: Ref, row_dim: int, how: str, keep: bool) -> Ref:
    """The sum, or mean, over rows of a product of rows; of no rows at all it is how many there are."""
    maps = [b.values[r.index].shape for r in (*term.rows, *([term.weight] if term.weight else []))]
    shape = tuple(torch.broadcast_shapes(*maps)) if maps else b.values[base.index].shape
    if term.weight is None:
        rows = _product(b, fx, term.rows or (base,), shape, row_dim, not term.rows)
        made = [side for d, side in enumerate(shape) if keep or d != row_dim]
        if keep:
            made[row_dim] = 1
        return _running(b, fx, rows, [row_dim], keep, how, tuple(made))
    weighed = _product(b, fx, (term.weight, *term.rows), shape, row_dim, stacked=True)
    return _softmax(b, fx, weighed, row_dim, how, keep, shape)


def _product(
    b: Builder, fx: Fx, rows: tuple[Ref, ...], shape: tuple[int, ...], row_dim: int, ones: bool = False,
    stacked: bool = False,
) -> Ref:  # fmt: skip
    """Rows times each other; or ones; or in a last axis the first, and the product of the others."""
    if len(rows) == 1 and not ones and not stacked:
        return rows[0]
    unique = list({r.index: r for r in rows}.values())
    at = [[u.index for u in unique].index(r.index) for r in rows]

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        if ones:
            return torch.ones_like(parts[0])
        own = [parts[i] for i in at]
        head, *rest = own
        product = torch.ones_like(head) if stacked else head
        for x in rest:
            product = product * x
        return torch.stack(torch.broadcast_tensors(head, product), -1) if stacked else product

    whole = (*shape, 2) if stacked else shape
    return b.add(fx, "join", unique, [SAME] * len(unique), run, row_dim, macs=0, fresh=True, shape=whole)


def _running(
    b: Builder, fx: Fx, ref: Ref, dims: list[int], keep: bool, how: str, shape: tuple[int, ...] | None = None
) -> Ref:
    """A running sum or mean."""

    def absorb(part: Tensor, state: Any) -> Any:
        now, rows = part.sum(dims, keep), prod(part.shape[d] for d in dims)
        return (now, rows) if state is None else (state[0] + now, state[1] + rows)

    def finish(state: Any) -> Tensor:
        made: Tensor = state[0] / state[1] if how == "mean" else state[0]
        return made

    return b.add(
        fx, how, [ref], [Total()], absorb, None, finish=finish, fresh=True, macs=0, wide=True, shape=shape
    )


def _softmax(
    b: Builder, fx: Fx, ref: Ref, row_dim: int, how: str, keep: bool, shape: tuple[int, ...]
) -> Ref:  # fmt: skip
    """A sum over rows weighed by a softmax over them: state (largest, sums of weights and of products, rows)."""

    def absorb(part: Tensor, state: Any, inside: Tensor | None = None) -> Any:
        logits = part.select(-1, 0)
        if inside is not None:
            logits = torch.where(inside, logits, _LOWEST)
        top = logits.amax(row_dim, True).clamp(min=_LOWEST)
        share = torch.exp(logits - top)
        if inside is not None:
            share = share * inside.to(share.dtype)
        now = torch.stack([share, share * part.select(-1, 1)], -1).sum(row_dim, True)
        rows = part.shape[row_dim]
        if state is None:
            return top, now, rows
        most = torch.maximum(state[0], top)
        before, after = torch.exp(state[0] - most)[..., None], torch.exp(top - most)[..., None]
        return most, state[1] * before + now * after, state[2] + rows

    def finish(state: Any) -> Tensor:
        _, sums, rows = state
        made = sums.select(-1, 1) / sums.select(-1, 0)
        made = made / rows if how == "mean" else made
        return made if keep else made.squeeze(row_dim)

    made = tuple(1 if d == row_dim else side for d, side in enumerate(shape) if keep or d != row_dim)
    return b.add(
        fx,
        "softmax",
        [ref],
        [Total()],
        absorb,
        None,
        finish=finish,
        fresh=True,
        macs=0,
        wide=True,
        shape=made,
    )


@on("std", "var", "std_mean", "var_mean")
def deviation(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A standard deviation or variance; over the rows by running sums of numbers and of their squares."""
    refs, _ = b.call(fx)
    value, (name, overload) = b.values[refs[0].index], str(fx.target).removeprefix("aten.").split(".")[:2]
    axes = argument(fx, 1, None)
    unbiased = overload == "dim"
    correction = int(argument(fx, 2, True)) if unbiased else fx.kwargs.get("correction", 1)
    keep = bool(argument(fx, 3, False) if unbiased else fx.kwargs.get("keepdim", False))
    known = overload in ("dim", "correction") and isinstance(axes, (list, tuple)) and axes
    if not known or value.row_dim is None:
        return b.whole(fx, pick)
    rank, row_dim = len(value.shape), value.row_dim
    dims = sorted(d % rank for d in axes)
    if row_dim not in dims:
        return by_row(b, fx, pick, row_dim if keep else row_dim - sum(d < row_dim for d in dims), fresh=True)
    less: Any = 1 if correction is None else correction
    alone = prod(value.shape[d] for d in dims if d != row_dim) <= less
    meta = fx.meta["val"] if pick is None else fx.meta["val"][pick]

    def absorb(part: Tensor, state: Any) -> Any:
        now, rows = (
            torch.stack([part.sum(dims, keep), part.square().sum(dims, keep)]),
            prod(part.shape[d] for d in dims),
        )
        return (now, rows) if state is None else (state[0] + now, state[1] + rows)

    def finish(state: Any) -> Tensor:
        (total, squares), count = state
        mean = total / count
        if pick == 1:
            return mean.to(meta.dtype)
        left = count - less
        # In a step it is a number before the end as well, where nobody asks for it.
        left = left.clamp(min=1) if isinstance(left, Tensor) else left
        spread = (squares - total * mean).clamp(min=0) / left
        return (spread.sqrt() if name.startswith("std") else spread).to(meta.dtype)

    return b.add(
        fx,
        "sum",
        refs,
        [Total()],
        absorb,
        None,
        pick,
        finish=finish,
        fresh=True,
        macs=0,
        wide=True,
        least=1 + int(less) if alone else 1,
    )
