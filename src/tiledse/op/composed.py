"""The operator with an excitation of two layers in PyTorch's own operators: what fused.py and compiled.py are to equal.

Squeeze, excite and scale come from fast.py and two_layers.py. One node instead of autograd's six is for maps of less
than a megabyte, where calls are most of the time, and for what is saved: descriptors, hidden layer and gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tile import Tile
from . import fast
from .grids import accumulation_type, is_channels_last, like
from .two_layers import ACTS, GATES, TwoLayers


def forward(x: Tensor, layers: TwoLayers, tile: Tile, inplace: bool) -> Tensor:
    """The scaled map, where no gradient is recorded; x itself with ``inplace``."""
    if not inplace:
        done = fast.strips(x, layers.excite, tile)
        if done is not None:
            return done
    return fast.scale(x, layers.excite(fast.squeeze(x, tile)), tile, inplace)


def forward_saving(x: Tensor, layers: TwoLayers, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scaled map, descriptors, hidden layer and gates; see library.squeeze_excite."""
    w1, b1, w2, b2 = layers.weights
    z = _flat(fast.squeeze(x, tile)).contiguous()
    hidden = torch.addmm(b1, z, w1.t())
    gates = GATES[layers.gate](torch.addmm(b2, ACTS[layers.act](hidden), w2.t()))
    y = fast.scale_into(like(x), x, _grid(gates, x, tile), tile)
    kept = accumulation_type(x.dtype)
    return y, z.to(kept), hidden.to(kept), gates.to(kept)


def backward(
    x: Tensor, grad: Tensor, layers: TwoLayers, hidden: Tensor, gates: Tensor, tile: Tile, map_wanted: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    w1, w2 = layers.w1, layers.w2
    to_a2 = _through_gate(layers.gate, _flat(fast.dot(grad, x, tile)).to(gates.dtype), gates)
    to_a1 = _through_act(layers.act, (to_a2.to(w2.dtype) @ w2).to(hidden.dtype), hidden)
    if not map_wanted:
        return None, to_a1, to_a2
    to_z = _grid((to_a1.to(w1.dtype) @ w1).to(x.dtype), x, tile)
    dx = fast.spread(grad, _grid(gates.to(x.dtype), x, tile), to_z, tile, is_channels_last(x))
    return dx, to_a1, to_a2


def _through_act(act: str, grad: Tensor, a: Tensor) -> Tensor:
    aten = torch.ops.aten
    if act == "relu":
        return aten.threshold_backward(grad, a, 0)
    return aten.silu_backward(grad, a) if act == "silu" else aten.hardswish_backward(grad, a)


def _through_gate(gate: str, grad: Tensor, g: Tensor) -> Tensor:
    """From a gate's value: what its argument was is not kept."""
    if gate == "sigmoid":
        return torch.ops.aten.sigmoid_backward(grad, g)
    return grad * (((g > 0) & (g < 1)).to(g.dtype) / 6)


def _flat(grid: Tensor) -> Tensor:
    """(N, C, rows, cols) to (tiles, C)."""
    return grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])


def _grid(flat: Tensor, x: Tensor, tile: Tile) -> Tensor:
    """(tiles, C) to (N, C, rows, cols)."""
    n, channels, height, width = x.shape
    rows, cols = tile.grid(height, width)
    return flat.view(n, rows, cols, channels).permute(0, 3, 1, 2)
