"""The operator with its excitation inside: fused.py on a GPU, compiled.py on a CPU, else composed.py; its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tile import Tile
from . import compiled, composed, formula, fused
from .grids import is_batched
from .triton_on import fused_is_on, kernels_are_on
from .two_layers import ACTS, GATES, TwoLayers


def _geometry(x: Tensor, tile: Tile, layers: TwoLayers) -> fused.Geometry | None:
    """How the kernel on a GPU goes about it, if it does."""
    if not fused_is_on(x):
        return None
    found = fused.geometry(x, tile, layers.w1.shape[0], layers.act, layers.gate)
    return found if found is not None and (kernels_are_on(x) or fused.wins(found)) else None


def has_kernel(x: Tensor, tile: Tile, layers: TwoLayers) -> bool:
    """Whether it is not PyTorch's own operators that compute this."""
    return compiled.takes(x, tile) or _geometry(x, tile, layers) is not None


def run(x: Tensor, layers: TwoLayers, tile: Tile, inplace: bool) -> Tensor:
    """The operator; gradients are recorded where something asks for them."""
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in layers.weights)):
        return Whole.apply(x, *layers.weights, layers.act, layers.gate, tile)
    geometry = _geometry(x, tile, layers)
    if geometry is None and not compiled.takes(x, tile):
        return composed.forward(x, layers, tile, inplace)
    out = x if inplace else torch.empty_like(x)
    if geometry is None:
        return compiled.forward(x, out, layers, tile)
    return fused.forward(x, out, layers.weights, geometry, None, fused.cut_of(geometry, x.dtype))


def forward_saving(x: Tensor, layers: TwoLayers, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scaled map, descriptors, hidden layer and gates; see library.squeeze_excite."""
    geometry = _geometry(x, tile, layers)
    if geometry is not None:
        return fused.forward_saving(x, layers.weights, geometry)
    return (compiled if compiled.takes(x, tile) else composed).forward_saving(x, layers, tile)


def gradients(
    x: Tensor, grad: Tensor, layers: TwoLayers, saved: Sequence[Tensor], tile: Tile, map_wanted: bool = True
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Of x, w1, b1, w2 and b2, from that of the scaled map and what ``forward_saving`` kept."""
    descriptors, hidden, gates = saved
    geometry = _geometry(x, tile, layers)
    w1, w2 = layers.w1, layers.w2
    dx: Tensor | None
    if geometry is not None:
        cut = fused.cut_of(geometry, x.dtype)
        dx, to_a1, to_a2 = fused.backward(x, grad, (w1, w2), hidden, gates, geometry, cut)
    elif compiled.takes(x, tile):
        dx, to_a1, to_a2 = compiled.backward(x, grad, w1, w2, hidden, gates, tile, layers.act, layers.gate)
    else:
        dx, to_a1, to_a2 = composed.backward(x, grad, layers, hidden, gates, tile, map_wanted)
    return dx, *of_weights(to_a1, to_a2, descriptors, hidden, layers.act, w1.dtype)


def of_weights(
    to_a1: Tensor, to_a2: Tensor, descriptors: Tensor, hidden: Tensor, act: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w1, b1, w2 and b2 from those of both layers' sums."""
    return (
        (to_a1.t() @ descriptors).to(dtype),
        to_a1.sum(0).to(dtype),
        (to_a2.t() @ ACTS[act](hidden)).to(dtype),
        to_a2.sum(0).to(dtype),
    )


class Whole(torch.autograd.Function):
    """(x, weights and biases) to y; back by the same means and four sums over tiles."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, act: str, gate: str, tile: Tile
    ) -> Tensor:
        """Saves the map, which whoever made it holds anyway, and a few numbers a tile."""
        out, *saved = forward_saving(x, TwoLayers(w1, b1, w2, b2, act, gate), tile)
        ctx.names, ctx.tile = (act, gate), tile
        ctx.save_for_backward(x, w1, b1, w2, b2, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of all five, where asked for."""
        x, w1, b1, w2, b2, *saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled() or is_batched(grad):
            found = _of_formula((x, w1, b1, w2, b2), grad, wanted, ctx.tile, *ctx.names)
        else:
            layers = TwoLayers(w1, b1, w2, b2, *ctx.names)
            found = gradients(x, grad, layers, saved, ctx.tile, wanted[0])
        return *(g if asked else None for g, asked in zip(found, wanted)), None, None, None


def _of_formula(
    inputs: tuple[Tensor, ...], grad: Tensor, wanted: Sequence[bool], tile: Tile, act: str, gate: str
) -> list[Tensor | None]:
    """Gradients by torch's own, where a graph of them is asked for, or many at once."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not graph:
            inputs = tuple(value.detach().requires_grad_(asked) for value, asked in zip(inputs, wanted))
        x, w1, b1, w2, b2 = inputs
        z = formula.squeeze(x, tile, formula.mean)
        h = ACTS[act](F.conv2d(z, w1[:, :, None, None], b1))
        y = formula.scale(x, GATES[gate](F.conv2d(h, w2[:, :, None, None], b2)), tile)
        asked = [value for value, want in zip(inputs, wanted) if want]
        given = iter(torch.autograd.grad(y, asked, grad, create_graph=graph))
    return [next(given) if want else None for want in wanted[:5]]
