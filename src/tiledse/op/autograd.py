"""Gradients of tiled squeeze-and-excite in two reads of the gradient, one of the map and one write.

The obvious graph saves the same, but its backward pass makes four values of the map's size: gradient times gate,
gradient times map, the descriptors' gradient repeated over the tiles, and their sum. Here the map goes through two
nodes about any excitation::

    x ---- Squeeze ---- x ------------------ Scale ---- y
              |                                |
              '---- z ---- excite ---- g ------'

Going back, ``Scale`` reduces gradient * map to the gates' gradient and leaves the map's own gradient
to ``Squeeze``: it passes the gradient of y on as it is, and the gates beside it, and ``Squeeze`` forms
gradient * gate + share of the descriptors in one go. The map between the two nodes is seen by nobody else. Where a
graph of the gradient is asked for (double backward), or many gradients at once (vmap), both nodes give torch's own
gradients of the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tile import Tile
from . import by_pytorch, formula
from .grids import is_batched, is_channels_last


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
        return x.view_as(x), by_pytorch.squeeze(x, tile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The gradient of x, from that of y (see the module) or of x and that of the descriptors."""
        gates, ctx.link.gates = ctx.link.gates, None
        if grad is not None and gates is not None:
            return by_pytorch.spread(grad, gates, grad_z, ctx.tile, ctx.channels_last), None, None
        if grad_z is not None:
            # The squeeze is linear: its gradient depends on no number of the map.
            x = torch.zeros((), dtype=grad_z.dtype, device=grad_z.device).expand(ctx.shape).requires_grad_()
            (given,) = _of_formula(lambda: formula.squeeze(x, ctx.tile, formula.mean), [x], grad_z)
            grad = given if grad is None else grad + given
        return grad, None, None


class Scale(torch.autograd.Function):
    """(x, gates) to y. Its gradient of x is a promise that ``Squeeze`` keeps: use it on nothing else's x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, tile: Tile, link: Link) -> Tensor:
        """Saves the map, which whoever made it holds anyway, and the gates."""
        ctx.tile, ctx.link = tile, link
        ctx.save_for_backward(x, gates)
        return by_pytorch.scale(x, gates, tile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The gradient of y, left to be scaled, and that of the gates."""
        x, gates = ctx.saved_tensors
        tile, link = ctx.tile, ctx.link
        link.gates = None
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(grad):
            if not torch.is_grad_enabled():
                x, gates = x.detach().requires_grad_(wanted[0]), gates.detach().requires_grad_(wanted[1])
            inputs = [value for value, asked in zip((x, gates), wanted) if asked]
            given = iter(_of_formula(lambda: formula.scale(x, gates, tile), inputs, grad))
            return next(given) if wanted[0] else None, next(given) if wanted[1] else None, None, None
        sums = by_pytorch.dot(grad, x, tile) if wanted[1] else None
        if wanted[0]:
            link.gates = gates.detach()
        return grad if wanted[0] else None, sums, None, None


def _of_formula(value: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        return torch.autograd.grad(value(), inputs, grad, create_graph=graph)
