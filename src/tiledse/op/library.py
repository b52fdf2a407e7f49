"""The operator with an excitation of two layers, known to torch by name: ``torch.ops.tiledse.squeeze_excite``.

For compilers and exporters, which see one node instead of a formula, with its gradient as a second one. Whoever loads
an exported program with these nodes must import tiledse.op first. A call goes through torch's dispatcher in Python,
which takes tens of microseconds: eager code does not come this way (functional.py says who does).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tile import Tile
from . import whole
from .grids import accumulation_type, like
from .two_layers import TwoLayers


@torch.library.custom_op("tiledse::squeeze_excite", mutates_args=())
def squeeze_excite(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tile: str, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiled squeeze-and-excite by two layers.

    Args:
        x: Map, (N, C, H, W), contiguous or channels_last.
        w1: (R, C).
        b1: (R,).
        w2: (C, R).
        b2: (C,).
        tile: As text.
        act: ``relu``, ``silu`` or ``hardswish``.
        gate: ``sigmoid`` or ``hardsigmoid``.

    Returns:
        The scaled map; and what the gradient needs: descriptors (tiles, C), the hidden layer before its activation
        (tiles, R) and gates (tiles, C), tiles counted image by image.

    Example:
        >>> x, w, v = torch.ones(1, 1, 3, 2), torch.ones(1, 1), torch.zeros(1)
        >>> y, *_ = torch.ops.tiledse.squeeze_excite(x, w, v, w, v, "2xW", "relu", "hardsigmoid")
        >>> y.flatten().tolist()[0]
        0.666...
    """
    return whole.forward_saving(x, TwoLayers(w1, b1, w2, b2, act, gate), Tile.parse(tile))


@squeeze_excite.register_fake
def _(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tile: str, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, cols = Tile.parse(tile).grid(x.shape[2], x.shape[3])
    tiles = x.shape[0] * rows * cols
    kept = accumulation_type(x.dtype)
    wide = [x.new_empty((tiles, n), dtype=kept) for n in (x.shape[1], w1.shape[0], x.shape[1])]
    return like(x), wide[0], wide[1], wide[2]


@torch.library.custom_op("tiledse::squeeze_excite_backward", mutates_args=())
def squeeze_excite_backward(
    grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, descriptors: Tensor, hidden: Tensor, gates: Tensor,
    tile: str, act: str, gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, b1, w2 and b2, from that of the scaled map and what ``squeeze_excite`` kept."""
    layers = TwoLayers(w1, w1, w2, w2, act, gate)  # biases have no part in it
    saved = (descriptors, hidden, gates)
    dx, dw1, db1, dw2, db2 = whole.gradients(x, grad, layers, saved, Tile.parse(tile))
    assert dx is not None  # it was asked for
    return dx, dw1, db1, dw2, db2


@squeeze_excite_backward.register_fake
def _(
    grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, descriptors: Tensor, hidden: Tensor, gates: Tensor,
    tile: str, act: str, gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    b1, b2 = w1.new_empty(w1.shape[0]), w1.new_empty(w1.shape[1])
    shape1, shape2 = w1.new_empty(w1.shape), w1.new_empty(w2.shape)
    return like(x), shape1, b1, shape2, b2


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w1, _, w2, _, ctx.tile, ctx.act, ctx.gate = inputs
    ctx.save_for_backward(x, w1, w2, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    found = squeeze_excite_backward(grad, *ctx.saved_tensors, ctx.tile, ctx.act, ctx.gate)
    return *(g if asked else None for g, asked in zip(found, ctx.needs_input_grad)), None, None, None


squeeze_excite.register_autograd(_backward, setup_context=_setup)
