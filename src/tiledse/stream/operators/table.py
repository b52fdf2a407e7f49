"""The table of operators: a function for each, which adds its node to the row graph; and what such functions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..builder import Builder, Ref, Treatment
from ..maps import SAME, Window

Fx = torch.fx.Node
TABLE: dict[str, Treatment] = {}


def on(*names: str) -> Callable[[Treatment], Treatment]:
    """Enter a function into the table."""

    def enter(treatment: Treatment) -> Treatment:
        TABLE.update(dict.fromkeys(names, treatment))
        return treatment

    return enter


def shape_of(fx: Fx, pick: Any) -> tuple[int, ...]:
    """The shape of an operator's result; ``pick`` is which of several."""
    return tuple((fx.meta["val"] if pick is None else fx.meta["val"][pick]).shape)


def argument(fx: Fx, index: int, default: Any) -> Any:
    """An operator's argument, or the default that the trace leaves out."""
    return fx.args[index] if len(fx.args) > index else default


def argument_of(args: tuple[Any, ...], index: int, default: Any = None) -> Any:
    """The same of arguments with constants in place of nodes."""
    return args[index] if len(args) > index else default


def padded(part: Tensor, window: Window, lo: int, hi: int, fill: float = 0.0) -> Tensor:
    """Rows (N, C, rows, ...) for output rows lo to hi: with the padding above and below that belongs to them."""
    above = max(0, window.top - lo * window.stride)
    below = (hi - lo - 1) * window.stride + window.size - above - part.shape[2]
    if not above and below <= 0:
        return part
    return F.pad(part, (*(0, 0) * (part.dim() - 3), above, max(0, below)), value=fill)


def by_row(b: Builder, fx: Fx, pick: Any, row_dim: int | None, fresh: bool = False) -> Ref:
    """One row to one row, by the operator itself on rows."""
    refs, call = b.call(fx, pick)
    assert len(refs) == 1

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return call(parts)

    return b.add(fx, "row", refs, [SAME], run, row_dim, pick, fresh=fresh)
