"""Operators put off until it is clear whether their rows are asked for, or only their sum over rows.

``((x - mean) ** 2).mean(rows)`` waits for the mean, and would hold all of x. But it is a sum of products of rows, each
times something that is known at the end: ``x * x``, ``-2 mean * x``, ``mean ** 2``. So elementwise operators that join
rows with what the end brings are put off, and so is a softmax over rows. What is not summed up is built as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..builder import Builder, Ref
from .table import Fx


@dataclass(frozen=True)
class Term:
    """A product: rows, perhaps a softmax over them, and what is known at the end.

    Args:
        rows: Maps of rows.
        weight: The numbers of which the softmax over rows is a factor.
        ends: Numbers, constants of one row, and values that come as one piece.
    """

    rows: tuple[Ref, ...] = ()
    weight: Ref | None = None
    ends: tuple[Any, ...] = ()


class Late(Ref):
    """A sum of terms that is built when somebody asks for its rows, and not where only their sum is asked for.

    Args:
        terms: The sum.
        row_dim: The axis of the rows.
        build: Builds it as it stands in the network.
    """

    __slots__ = ("_built", "build", "row_dim", "terms")

    def __init__(self, terms: tuple[Term, ...], row_dim: int, build: Callable[[], Ref]) -> None:
        self.terms, self.row_dim, self.build = terms, row_dim, build
        self._built: Ref | None = None

    @property
    def index(self) -> int:  # type: ignore[override]
        """Of the value, which is built by now."""
        if self._built is None:
            self._built = self.build()
        return self._built.index


def put_off(b: Builder, fx: Fx, terms: tuple[Term, ...], row_dim: int, plain: Callable[[], Ref]) -> Late:
    """Put an operator off; ``plain`` builds it as it stands."""
    operands = {arg: b.env[arg] for arg in fx.all_input_nodes if arg in b.env}

    def build() -> Ref:
        # What is written in place afterwards is not what this operator was given.
        now = {arg: b.env[arg] for arg in operands}
        b.env.update(operands)
        try:
            return plain()
        finally:
            b.env.update(now)

    return Late(terms, row_dim, build)


def is_rows(b: Builder, a: Any) -> bool:
    """Whether an operand is a map of several rows."""
    if isinstance(a, Late):
        return True
    return isinstance(a, Ref) and b.values[a.index].row_dim is not None and b.values[a.index].height > 1


def row_dim_of(b: Builder, a: Ref) -> int:
    """The axis of its rows."""
    found = a.row_dim if isinstance(a, Late) else b.values[a.index].row_dim
    assert found is not None
    return found


def shape_of(b: Builder, a: Ref) -> tuple[int, ...]:
    """Its shape; of what is put off, that of its rows, which what the end brings may still broaden."""
    if isinstance(a, Late):
        parts = [
            b.values[r.index].shape for t in a.terms for r in (*t.rows, *([t.weight] if t.weight else []))
        ]
        return tuple(torch.broadcast_shapes(*parts))
    return b.values[a.index].shape


def _terms(b: Builder, a: Any, place: int) -> tuple[Term, ...] | None:
    """An operand as a sum of terms; None where it is something else, such as a constant of many rows."""
    if isinstance(a, Late):
        return a.terms
    if isinstance(a, Ref):
        if is_rows(b, a):
            return (Term(rows=(a,)),)
        value = b.values[a.index]
        at_the_end = value.row_dim is None or (value.maker >= 0 and b.nodes[value.maker].absorbs)
        one = len(value.shape) < place or value.shape[-place] == 1
        return (Term(ends=(a,)),) if at_the_end and one else None
    if isinstance(a, (int, float)):
        return (Term(ends=(a,)),)
    if isinstance(a, Tensor) and a.is_floating_point() and (a.dim() < place or a.shape[-place] == 1):
        return (Term(ends=(a,)),)
    return None


def combined(b: Builder, name: str, given: list[Any], place: int) -> tuple[Term, ...] | None:
    """The terms of an operator's result."""
    one = _terms(b, given[0], place)
    if one is None:
        return None
    if name == "neg":
        return _times(one, (Term(ends=(-1.0,)),))
    if name in ("square", "pow"):
        if name == "pow" and given[1] not in (2, 2.0):
            return None
        return _times(one, one)
    other = _terms(b, given[1], place)
    if other is None:
        return None
    if name == "add":
        return one + other
    if name in ("sub", "rsub"):
        first, second = (one, other) if name == "sub" else (other, one)
        minus = _times(second, (Term(ends=(-1.0,)),))
        return None if minus is None else first + minus
    if name == "mul":
        return _times(one, other)
    # A quotient of what is known at the end.
    if len(other) != 1 or other[0].rows or other[0].weight is not None:
        return None
    return _times(one, (Term(ends=tuple(Inverse(end) for end in other[0].ends)),))


@dataclass(frozen=True)
class Inverse:
    """One divided by what is known at the end."""

    of: Any


def _times(one: tuple[Term, ...], other: tuple[Term, ...]) -> tuple[Term, ...] | None:
    made = []
    for a in one:
        for c in other:
            if a.weight is not None and c.weight is not None:
                return None  # the square of a softmax
            made.append(Term(a.rows + c.rows, a.weight or c.weight, a.ends + c.ends))
    return tuple(made)
