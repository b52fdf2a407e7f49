"""The operator with an excitation of two layers in PyTorch's own operators: what fused.py and compiled.py are to equal.

Squeeze, excite and scale come from squeezing.py, two_layers.py and scaling.py. One node instead of autograd's six saves
calls, and memory: descriptors, hidden layer and gates are kept, and nothing else of the excitation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tile import Tile
from .gradients import dot, spread
from .grids import accumulation_type, is_channels_last, like
from .scaling import cuts, in_rows, over_rows, scale, scale_into, shaped
from .squeezing import LONGEST_SUM, squeeze
from .two_layers import ACTS, GATES, TwoLayers


def forward(x: Tensor, layers: TwoLayers, tile: Tile, inplace: bool) -> Tensor:
    """The scaled map, where no gradient is recorded; x itself with ``inplace``."""
    if not inplace:
        done = _even_strips(x, layers.excite, tile)
        if done is not None:
            return done
    return scale(x, layers.excite(squeeze(x, tile)), tile, inplace)


def _even_strips(x: Tensor, excite: Callable[[Tensor], Tensor], tile: Tile) -> Tensor | None:
    """Squeeze, excite and scale where strips divide a map, and no gradient is recorded; else None.

    No more than the calls into torch: 60 us for a map of 320 x 14 x 14 and its excitation, where the general way, which
    asks what to do three times, takes 105.
    """
    n, channels, height, width = x.shape
    tall = min(tile.height or height, height)
    if tile.width is not None or tile.squeeze != "tiles" or height % tall or x.device.type != "cpu":
        return None
    if x.is_contiguous():
        cut = x.view(n, channels, height // tall, tall * width)
        gates = excite(cut.mean(3, keepdim=True))
        pieces = cuts(tile, x)
        if pieces:
            return shaped(in_rows(x, pieces) * over_rows(gates, tile, x, pieces), x)
        gates = gates.contiguous()
    elif x.is_contiguous(memory_format=torch.channels_last):
        if tall * width > LONGEST_SUM:
            return None
        cut = x.view(n, channels, height // tall, tall, width)
        gates = excite(F.avg_pool2d(x, (tall, width)))
        gates = gates.contiguous(memory_format=torch.channels_last).unsqueeze(3)
    else:
        return None
    return shaped(cut * gates, x)


def forward_saving(x: Tensor, layers: TwoLayers, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scaled map, descriptors, hidden layer and gates; see library.squeeze_excite."""
    w1, b1, w2, b2 = layers.weights
    z = _flat(squeeze(x, tile)).contiguous()
    hidden = torch.addmm(b1, z, w1.t())
    gates = GATES[layers.gate](torch.addmm(b2, ACTS[layers.act](hidden), w2.t()))
    y = scale_into(like(x), x, _grid(gates, x, tile), tile)
    kept = accumulation_type(x.dtype)
    return y, z.to(kept), hidden.to(kept), gates.to(kept)


def backward(
    x: Tensor, grad: Tensor, layers: TwoLayers, hidden: Tensor, gates: Tensor, tile: Tile, map_wanted: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    w1, w2 = layers.w1, layers.w2
    to_a2 = _through_gate(layers.gate, _flat(dot(grad, x, tile)).to(gates.dtype), gates)
    to_a1 = _through_act(layers.act, (to_a2.to(w2.dtype) @ w2).to(hidden.dtype), hidden)
    if not map_wanted:
        return None, to_a1, to_a2
    to_z = _grid((to_a1.to(w1.dtype) @ w1).to(x.dtype), x, tile)
    dx = spread(grad, _grid(gates.to(x.dtype), x, tile), to_z, tile, is_channels_last(x))
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
