"""The operator with an excitation of two layers, by name: ``torch.ops.tiledse.forward`` and ``backward``.

Eager and compiled code call it alike. Under autocast it runs as it is given: maps keep their type, and what lies
between squeeze and scale is float32. Exporters get the formula in its place: a file needs nothing of this package.

    forward   x (N, C, H, W), w1 (R, C, 1, 1) or (R, C), b1 (R), w2 (C, R, 1, 1) or (C, R), b2 (C); tile, activation
              and gate function by name. Gives [y], and with ``save`` what the gradient needs: descriptors (tiles, C),
              the hidden layer before its activation (tiles, R) and gates (tiles, C), tiles counted image by image.
    backward  The gradients [x, w1, b1, w2, b2] from that of y and what was saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TiledSEError
from ..tile import Tile
from . import by_cpp, formula
from .choosing import chosen
from .excitation import ACTS, GATES, TwoLayers
from .grids import accumulation_type, is_batched, like

_library = torch.library.Library("tiledse", "FRAGMENT")
_library.define(
    "forward(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, str tile, str act, str gate, bool save) -> Tensor[]"
)
_library.define(
    "backward(Tensor grad, Tensor x, Tensor w1, Tensor w2, Tensor descriptors, Tensor hidden, Tensor gates, str tile, "
    "str act, str gate) -> Tensor[]"
)
_FORWARD = torch.ops.tiledse.forward.default
_BACKWARD = torch.ops.tiledse.backward.default

_dispatch_modes, _function_modes, _autocast_somewhere = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._is_any_autocast_enabled,
)
_tile = lru_cache(maxsize=1024)(Tile.parse)
_text = lru_cache(maxsize=1024)(str)


def run(x: Tensor, layers: TwoLayers, tile: Tile, inplace: bool) -> Tensor:
    """The operator on what is computed now; gradients are recorded where something asks for them."""
    *weights, act, gate = layers
    w1, b1, w2, b2 = weights
    negative = w1.is_neg() or b1.is_neg() or w2.is_neg() or b2.is_neg()
    direct = not negative and _nobody_listens() and _is_plain(x)
    if torch.is_grad_enabled() and (
        x.requires_grad or w1.requires_grad or b1.requires_grad or w2.requires_grad or b2.requires_grad
    ):
        return Recorded.apply(x, *weights, _text(tile), act, gate, direct)
    if inplace and _is_plain(x):
        with torch._C._AutoDispatchBelowAutograd(), _without_autocast(x):
            _computed(x, weights, tile, act, gate, False, x)
        if not x.is_inference():
            # Kernels write where torch sees nobody write, but whoever saved the map must learn of it.
            torch.autograd.graph.increment_version(x)
        return x
    if direct:
        return _computed(x, weights, tile, act, gate, False)[0]
    with torch._C._AutoDispatchBelowAutograd():
        y = _FORWARD(x, *weights, _text(tile), act, gate, False)[0]
    return x.copy_(y) if inplace else y


def _nobody_listens() -> bool:
    """Whether torch's dispatcher would come to the kernels by nobody else: no mode, profiler or autocast is on.

    It takes 5 us with its code in the cache, and 50 between other work.
    """
    return not (
        _dispatch_modes() or _function_modes() or _autocast_somewhere() or torch.autograd._profiler_enabled()
    )


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor holds its numbers as they are, on a device that the kernels know."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and (x.is_cpu or x.is_cuda)
        and not (x.is_neg() or x._is_zerotensor())
    )


def traced(x: Tensor, layers: TwoLayers, tile: Tile) -> Tensor:
    """The operator in a program that a compiler makes."""
    return torch.ops.tiledse.forward(x, *layers.weights, str(tile), layers.act, layers.gate, False)[0]


def _computed(
    x: Tensor,
    weights: Sequence[Tensor],
    tile: Tile,
    act: str,
    gate: str,
    save: bool,
    out: Tensor | None = None,
) -> list[Tensor]:
    kernel, prepared = chosen(x, weights[0], tile, act, gate)
    return kernel.forward(x, weights, prepared, save, out)


def _forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tile: str, act: str, gate: str, save: bool
) -> list[Tensor]:
    return _computed(x, (w1, b1, w2, b2), _tile(tile), act, gate, save)


def _backward(
    grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, descriptors: Tensor, hidden: Tensor, gates: Tensor,
    tile: str, act: str, gate: str,
) -> list[Tensor]:  # fmt: skip
    kernel, prepared = chosen(x, w1, _tile(tile), act, gate)
    dx, to_a1, to_a2 = kernel.backward(x, grad, w1, w2, hidden, gates, prepared)
    if isinstance(prepared, by_cpp.Job):
        few = by_cpp.of_weights(to_a1, to_a2, descriptors.contiguous(), hidden, w1, w2, prepared)
        if few is not None:
            return [dx, *few] if w1.dtype == torch.float32 else [dx, *(part.to(w1.dtype) for part in few)]
    return [
        dx,
        (to_a1.t() @ descriptors).to(w1.dtype).view(w1.shape),
        to_a1.sum(0).to(w1.dtype),
        (to_a2.t() @ ACTS[act](hidden)).to(w1.dtype).view(w2.shape),
        to_a2.sum(0).to(w1.dtype),
    ]


def _forward_of_shapes(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tile: str, act: str, gate: str, save: bool
) -> list[Tensor]:
    rows, cols = Tile.parse(tile).grid(x.shape[2], x.shape[3])
    tiles, kept = x.shape[0] * rows * cols, accumulation_type(x.dtype)
    saved = [x.new_empty((tiles, n), dtype=kept) for n in (x.shape[1], w1.shape[0], x.shape[1])]
    return [like(x), *saved] if save else [like(x)]


def _backward_of_shapes(
    grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, descriptors: Tensor, hidden: Tensor, gates: Tensor,
    tile: str, act: str, gate: str,
) -> list[Tensor]:  # fmt: skip
    shapes = w1.shape, w1.shape[:1], w2.shape, w1.shape[1:2]
    return [like(x), *(w1.new_empty(shape) for shape in shapes)]


class Recorded(torch.autograd.Function):
    """(x, weights and biases) to y; back by the same means and four sums over tiles."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tile: str, act: str, gate: str,
        direct: bool,
    ) -> Tensor:  # fmt: skip
        """Saves the map, which whoever made it holds anyway, and a few numbers a tile; ``direct``: see ``run``."""
        ctx.names, ctx.direct = (tile, act, gate), direct
        with torch._C._AutoDispatchBelowAutograd():
            out, *saved = (_forward if direct else _FORWARD)(x, w1, b1, w2, b2, tile, act, gate, True)
        ctx.save_for_backward(x, w1, b1, w2, b2, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of all five, where asked for."""
        x, w1, b1, w2, b2, *saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled() or is_batched(grad):
            tile, *names = ctx.names
            value = partial(_formula, tile=_tile(tile), act=names[0], gate=names[1])
            found = formula.gradients(value, (x, w1, b1, w2, b2), wanted[:5], grad)
        else:
            direct = ctx.direct and _nobody_listens() and all(map(_is_plain, (grad, x, w1, w2, *saved)))
            with torch._C._AutoDispatchBelowAutograd():
                found = (_backward if direct else _BACKWARD)(grad, x, w1, w2, *saved, *ctx.names)
        return *(g if asked else None for g, asked in zip(found, wanted)), None, None, None, None


def _formula(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tile: Tile, act: str, gate: str
) -> Tensor:
    z = formula.squeeze(x, tile, formula.mean).to(w1.dtype)
    h = ACTS[act](F.conv2d(z, w1.view(*w1.shape[:2], 1, 1), b1))
    gates = GATES[gate](F.conv2d(h, w2.view(*w2.shape[:2], 1, 1), b2))
    return formula.scale(x, gates.to(x.dtype), tile)


def _record(*arguments: Any) -> list[Tensor]:
    """What calls by name come to: compiled code, and whoever calls torch.ops.tiledse.forward."""
    *inputs, save = arguments
    if torch.is_grad_enabled() and any(value.requires_grad for value in inputs[:5]):
        if save:
            raise TiledSEError(
                "tiledse.forward with save gives no gradients; leave save out, or call it in no_grad"
            )
        return [Recorded.apply(*inputs, False)]
    with torch._C._AutoDispatchBelowAutograd():
        return _FORWARD(*arguments)


def _as_it_is(operator: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The rule under autocast."""

    def call(*arguments: Any) -> list[Tensor]:
        with _without_autocast(arguments[0]):
            return operator(*arguments)

    return call


def _without_autocast(x: Tensor) -> Any:
    return torch._C._ExcludeDispatchKeyGuard(_AUTOCAST)


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)

_library.impl("forward", _forward, "CompositeExplicitAutograd")
_library.impl("backward", _backward, "CompositeExplicitAutograd")
_library.impl("forward", _forward_of_shapes, "Meta")
_library.impl("backward", _backward_of_shapes, "Meta")
_library.impl("forward", _record, "Autograd")
for _key in ("AutocastCPU", "AutocastCUDA"):
    _library.impl("forward", _as_it_is(_FORWARD), _key)
    _library.impl("backward", _as_it_is(_BACKWARD), _key)
