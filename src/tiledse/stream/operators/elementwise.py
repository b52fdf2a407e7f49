"""Operators that work element by element, and those that hand rows on as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..builder import Builder, Ref, Slot, numbers_in
from ..maps import SAME, First
from .table import Fx, by_row, on, shape_of


@on("hardswish", "hardsigmoid", "hardtanh", "relu6", "silu", "mish", "gelu", "elu", "celu", "selu", "softplus",
    "log_sigmoid", "leaky_relu", "softsign", "tanhshrink", "where", "type_as")  # fmt: skip
def elementwise(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Maps of the same rows, gates and vectors of one row, constants; by broadcasting."""
    refs, call = b.call(fx, pick)
    out = shape_of(fx, pick)
    values = [b.values[r.index] for r in refs]
    places = {len(v.shape) - v.row_dim for v in values if v.row_dim is not None and v.height > 1}
    places = places or {len(v.shape) - v.row_dim for v in values if v.row_dim is not None}
    if len(places) != 1:
        return b.whole(fx, pick)
    place = places.pop()
    row_dim = len(out) - place
    height = out[row_dim]
    maps: list[Any] = []
    for value in values:
        here = value.shape[-place] if len(value.shape) >= place else 1
        if value.row_dim is not None and value.height == height and here == height:
            maps.append(SAME)
        elif value.height == 1 and here == 1:
            maps.append(First())
        else:
            return b.whole(fx, pick)
    if SAME not in maps:
        return b.whole(fx, pick)
    # The operand with the rows comes first: the height of the result is its height.
    order = sorted(range(len(refs)), key=lambda i: maps[i] is not SAME)
    args, kwargs = b.filled(fx)
    tall = [
        a
        for a in (*args, *kwargs.values())
        if isinstance(a, Tensor) and height > 1 and a.dim() >= place and a.shape[-place] == height
    ]
    if tall:
        return _with_constants(b, fx, pick, row_dim, place, height)

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        return call([part for _, part in sorted(zip(order, parts), key=lambda pair: pair[0])])

    single = len(refs) == 1
    if single:
        run = _unary(fx, call)
    kind = "row" if maps.count(SAME) == 1 else "join"
    return b.add(
        fx, kind, [refs[i] for i in order], [maps[i] for i in order], run, row_dim, pick,
        fresh=not str(fx.target).startswith(("aten.alias", "aten.detach")), sizes=numbers_in((args, kwargs)),
    )  # fmt: skip


def _unary(fx: Fx, call: Callable[[list[Tensor]], Tensor]) -> Any:
    """One operand; with the same written in place, where the operator has that, for rows nobody else holds."""

    class Unary:
        in_place: Any = None

        def __call__(self, parts: list[Tensor], lo: int, hi: int) -> Tensor:
            return call(parts)

    run = Unary()
    name = str(fx.target).split(".")
    twin = getattr(torch.ops.aten, name[1].rstrip("_") + "_", None)
    source = fx.args[0]
    if twin is not None and hasattr(twin, name[2]) and isinstance(source, Fx) and not fx.kwargs:
        rest = fx.args[1:]
        if source.meta["val"].dtype == fx.meta["val"].dtype and not any(isinstance(a, Fx) for a in rest):
            write = getattr(twin, name[2])
            run.in_place = lambda rows: write(rows, *rest)
    return run


def _with_constants(b: Builder, fx: Fx, pick: Any, row_dim: int, place: int, height: int) -> Ref:
    """Elementwise with a constant map, of which each row of the image meets its own row."""
    refs, args, kwargs = b.slotted(fx)
    if len(refs) != 1 or any(isinstance(a, Slot) for a in kwargs.values()):
        return b.whole(fx, pick)
    target: Any = fx.target

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        def fill(a: Any) -> Any:
            if isinstance(a, Slot):
                return parts[a.index]
            if isinstance(a, Tensor) and a.dim() >= place and a.shape[-place] == height:
                return a.narrow(a.dim() - place, lo, hi - lo)
            return a

        return target(*map(fill, args), **kwargs)

    why = f"{b.layer(fx)} has a constant for each row"
    # Its rows are counted, so it stays a node of its own ("join": never appended to the node before).
    return b.add(fx, "join", refs, [SAME], run, row_dim, pick, needs_height=why)


@on("clone", "contiguous", "alias", "detach", "dropout", "feature_dropout", "alpha_dropout", "_to_copy", "to",
    "lift_fresh_copy", "native_dropout")  # fmt: skip
def same_rows(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The rows as they are (dropout is off in eval mode)."""
    refs, _ = b.call(fx)
    return by_row(b, fx, pick, b.values[refs[0].index].row_dim)
