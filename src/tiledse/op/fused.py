"""The whole operator in one kernel of fused_kernels.py: for which maps and excitations, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tile import Tile
from . import functional
from .counters import counters
from .grids import is_batched, is_channels_last

_ACTS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_GATES = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid"}


class TwoLayers(NamedTuple):
    """An excitation that kernels can compute: two 1x1 convolutions, an activation and a gate function."""

    first: nn.Conv2d
    act: str
    second: nn.Conv2d
    gate: str


@dataclass(frozen=True)
class Cut:
    """How a tile is cut for programs.

    Attributes:
        channels: Of a program; a power of two.
        pixels: Of a program; a power of two.
        warps: Of a program.
        across: Programs beside each other in the channels of a tile.
        parts: In its pixels.
    """

    channels: int
    pixels: int
    warps: int
    across: int
    parts: int

    @property
    def programs(self) -> int:
        """Of a tile."""
        return self.across * self.parts


class Geometry(NamedTuple):
    """Map, tile and excitation, as the kernels take them."""

    channels: int
    reduced: int
    height: int
    width: int
    tall: int
    wide: int
    strides: tuple[int, int, int]
    act: str
    gate: str

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return -(-self.height // self.tall) * -(-self.width // self.wide)


def cut(geometry: Geometry, channels: int, pixels: int, warps: int) -> Cut:
    """A tile by channels and pixels of a program, no more than it has."""
    channels, pixels = min(channels, _power(geometry.channels)), min(pixels, _power(geometry.tall * geometry.wide))
    return Cut(
        channels, pixels, warps, -(-geometry.channels // channels), -(-geometry.tall * geometry.wide // pixels)
    )


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def forward(
    x: Tensor, out: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], geometry: Geometry,
    saved: tuple[Tensor, Tensor, Tensor] | None, cut: Cut, launches: int | None = None,
) -> Tensor:  # fmt: skip
    """``out`` = x by its gates; ``saved`` is filled with descriptors, hidden layer and gates, float32."""
    from .fused_kernels import forward_kernel

    tiles = x.shape[0] * geometry.tiles
    launches = launches or _launches(x, cut)
    partial, sums, ready = _exchange(x, tiles, geometry, cut, launches)
    descriptors, hidden, gates = saved if saved is not None else (sums, sums, sums)
    for phase in (0,) if launches == 1 else (1, 2):
        forward_kernel[(tiles * cut.programs,)](
            x, out, *weights, partial, sums, ready, descriptors, hidden, gates, x.stride(0),
            **_constants(geometry, cut, launches), SAVE=saved is not None, PHASE=phase,
        )  # fmt: skip
    return out


def backward(
    x: Tensor, grad: Tensor, weights: tuple[Tensor, Tensor], hidden: Tensor, gates: Tensor, geometry: Geometry,
    cut: Cut, launches: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    from .fused_kernels import backward_kernel

    tiles = x.shape[0] * geometry.tiles
    launches = launches or _launches(x, cut)
    partial, sums, ready = _exchange(x, tiles, geometry, cut, launches)
    out = torch.empty_like(x)
    grad_a1, grad_a2 = torch.empty_like(hidden), gates.new_empty((tiles, cut.parts, geometry.channels))
    for phase in (0,) if launches == 1 else (1, 2):
        backward_kernel[(tiles * cut.programs,)](
            x, grad, out, *weights, partial, sums, ready, hidden, gates, grad_a1, grad_a2, x.stride(0),
            **_constants(geometry, cut, launches), PHASE=phase,
        )  # fmt: skip
    return out, grad_a1, grad_a2.sum(1) if cut.parts > 1 else grad_a2[:, 0]


def _launches(x: Tensor, cut: Cut) -> int:
    """One, unless the programs of a tile might not run all at once; Triton's interpreter runs one at a time."""
    return 1 if cut.programs <= _multiprocessors(x.device) else 2


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _exchange(x: Tensor, tiles: int, g: Geometry, cut: Cut, launches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what programs give, for their sums, and for the count of those that have given."""
    room = torch.empty(tiles * (cut.programs + 1), g.reduced, dtype=torch.float32, device=x.device)
    ready = counters(tiles, x.device) if launches == 1 else room
    return room[tiles:], room[:tiles], ready


@lru_cache(maxsize=1024)
def _constants(g: Geometry, cut: Cut, launches: int) -> dict[str, Any]:
    # A weight's block is held beside the tile: at most 32 numbers a thread.
    block_r = min(_power(g.reduced), max(16, 1024 * cut.warps // cut.channels))
    return {
        "C": g.channels, "R": g.reduced, "HEIGHT": g.height, "WIDTH": g.width, "TALL": g.tall, "WIDE": g.wide,
        "SC": g.strides[0], "SH": g.strides[1], "SW": g.strides[2], "ACT": g.act, "GATE": g.gate,
        "ACROSS": cut.across, "PARTS": cut.parts, "BLOCK_C": cut.channels, "BLOCK_P": cut.pixels,
        "BLOCK_R": block_r, "BLOCK_G": _power(cut.programs),
        "ONCE": int(launches == 1 and cut.programs * g.reduced > _MANY), "num_warps": cut.warps,
    }  # fmt: skip


# Numbers given by a tile's programs, above which one of them sums for all.
_MANY = 2048


Weights = tuple[Tensor, Tensor, Tensor, Tensor]


class Fused(torch.autograd.Function):
    """(x, weights and biases) to y, in one launch; back in one launch and three products of small matrices."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, geometry: Geometry, tile: Tile
    ) -> Tensor:
        """Saves the map, which whoever made it holds anyway, and a few numbers a tile."""
        tiles = x.shape[0] * geometry.tiles
        cut = cut_of(geometry, x.dtype)
        descriptors, hidden, gates = saved = tuple(
            torch.empty(shape, dtype=torch.float32, device=x.device)
            for shape in (
                (tiles, cut.parts, geometry.channels), (tiles, geometry.reduced), (tiles, geometry.channels)
            )
        )  # fmt: skip
        out = forward(x, torch.empty_like(x), (w1, b1, w2, b2), geometry, saved, cut)
        descriptors = descriptors.sum(1) if cut.parts > 1 else descriptors[:, 0]
        ctx.geometry, ctx.tile = geometry, tile
        ctx.save_for_backward(x, w1, b1, w2, b2, descriptors, hidden, gates)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of all five, where asked for."""
        x, w1, b1, w2, b2, descriptors, hidden, gates = ctx.saved_tensors
        geometry, wanted = ctx.geometry, ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(grad):
            return *_of_formula((x, w1, b1, w2, b2), grad, wanted, geometry, ctx.tile), None, None
        grad = grad.contiguous(
            memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format
        )
        cut = cut_of(geometry, x.dtype)
        dx, da1, da2 = backward(x, grad, (w1, w2), hidden, gates, geometry, cut)
        given = (
            dx if wanted[0] else None,
            (da1.t() @ descriptors).to(w1.dtype) if wanted[1] else None,
            da1.sum(0).to(b1.dtype) if wanted[2] else None,
            (da2.t() @ _FUNCTIONS[geometry.act](hidden)).to(w2.dtype) if wanted[3] else None,
            da2.sum(0).to(b2.dtype) if wanted[4] else None,
        )
        return *given, None, None


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "silu": F.silu, "hardswish": F.hardswish, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid,
}  # fmt: skip


def _of_formula(
    inputs: tuple[Tensor, ...], grad: Tensor, wanted: Sequence[bool], geometry: Geometry, tile: Tile
) -> list[Tensor | None]:
    """Gradients by torch's own, where a graph of them is asked for, or many at once."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not graph:
            inputs = tuple(value.detach().requires_grad_(asked) for value, asked in zip(inputs, wanted))
        x, w1, b1, w2, b2 = inputs
        z = functional._squeeze(x, tile, functional.mean)
        h = _FUNCTIONS[geometry.act](F.conv2d(z, w1[:, :, None, None], b1))
        y = functional._scale(x, _FUNCTIONS[geometry.gate](F.conv2d(h, w2[:, :, None, None], b2)), tile)
        asked = [value for value, want in zip(inputs, wanted) if want]
        given = iter(torch.autograd.grad(y, asked, grad, create_graph=graph))
    return [next(given) if want else None for want in wanted[:5]]


def layers_of(excite: object) -> TwoLayers | None:
    """The two layers of an excitation, where it says what its layers are (``layers()``) and kernels know them."""
    owner = getattr(excite, "__self__", None)
    layers = owner.layers() if owner is not None and hasattr(owner, "layers") else None
    return None if layers is None else _two_layers(tuple(layers))


def _two_layers(layers: tuple[nn.Module, ...]) -> TwoLayers | None:
    from .excitation import is_pointwise

    layers = tuple(layer for layer in layers if type(layer) is not nn.Identity)
    if len(layers) != 4:
        return None
    first, act, second, gate = layers
    if not (is_pointwise(first) and is_pointwise(second)) or first.bias is None or second.bias is None:
        return None
    names = _name(act, _ACTS), _name(gate, _GATES)
    if names[0] is None or names[1] is None:
        return None
    return TwoLayers(first, names[0], second, names[1])


def _name(layer: nn.Module, known: dict[type[nn.Module], str]) -> str | None:
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return None
    for cls, name in known.items():
        if type(layer) is cls:
            return name
        if type(layer).__module__ == "timm.layers.activations" and type(layer).__name__.lower() == name:
            return name
    return None


def geometry_of(x: Tensor, tile: Tile, layers: TwoLayers) -> Geometry | None:
    """What the kernels are to do, or None where they cannot: other squeezes, types, strides, or tiles too large."""
    height, width = x.shape[2:]
    weights = (layers.first.weight, layers.first.bias, layers.second.weight, layers.second.bias)
    if tile.single or tile.squeeze == "running" or x.numel() == 0 or x.dtype == torch.float64:
        return None
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return None
    same = all(w.dtype == x.dtype and w.device == x.device for w in weights if w is not None)
    if not same or layers.first.in_channels != x.shape[1] or layers.second.out_channels != x.shape[1]:
        return None
    tall, wide = tile.size(height, width)
    geometry = Geometry(
        x.shape[1], layers.first.out_channels, height, width, tall, wide, x.stride()[1:], layers.act, layers.gate
    )
    return geometry if cut_of(geometry, x.dtype).programs <= _MOST_PROGRAMS else None


def weights_of(layers: TwoLayers) -> Weights:
    """Weights and biases as matrices and vectors."""
    first, second = layers.first, layers.second
    assert first.bias is not None and second.bias is not None
    return first.weight.flatten(1), first.bias, second.weight.flatten(1), second.bias


def run(x: Tensor, layers: TwoLayers, geometry: Geometry, tile: Tile, inplace: bool) -> Tensor:
    """The operator."""
    weights = weights_of(layers)
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
        return Fused.apply(x, *weights, geometry, tile)
    return forward(
        x, x if inplace else torch.empty_like(x), weights, geometry, None, cut_of(geometry, x.dtype)
    )


@lru_cache(maxsize=512)
def cut_of(geometry: Geometry, dtype: torch.dtype) -> Cut:
    """How a tile is cut, forward and backward: what was fastest on an H100 of the cuts in benchmarks/gpu.py.

    Programs of 4 warps that hold 32 or 64 elements a thread, so that several run on a multiprocessor: while one waits
    for the others of its tile, the next one reads. Where channels lie side by side, runs of at least 64 bytes.
    """
    last = geometry.strides[0] == 1
    wide_weights = geometry.reduced > 128  # 8 warps hold them
    pixels = min(_power(geometry.tall * geometry.wide), 512 if last else 1024 if wide_weights else 2048)
    elements = 1 << 14 if wide_weights else 1 << 13 if pixels >= 512 else 1 << 12
    channels = max(elements // pixels, (32 if dtype.itemsize == 2 else 16) if last else 1)
    while cut(geometry, channels, pixels, 4).programs > _MOST_PROGRAMS and channels < geometry.channels:
        channels *= 2
    return cut(geometry, channels, pixels, 8 if channels * pixels > 1 << 13 else 4)


# All programs of a tile run at once on a GPU of as many multiprocessors.
_MOST_PROGRAMS = 128
