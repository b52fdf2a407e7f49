"""The whole operator in one Triton kernel of fused_kernels.py: for which maps, and how tiles are cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tile import Tile
from .counters import counters
from .grids import is_dense, layout, like

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


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


def geometry(x: Tensor, tile: Tile, reduced: int, act: str, gate: str) -> Geometry | None:
    """What the kernels are to do, or None where they cannot: other squeezes, types, strides, or tiles too large."""
    if tile.single or tile.slides or x.numel() == 0 or x.dtype == torch.float64:
        return None
    if not is_dense(x):
        return None
    height, width = x.shape[2:]
    strides = (x.stride(1), x.stride(2), x.stride(3))
    found = Geometry(x.shape[1], reduced, height, width, *tile.size(height, width), strides, act, gate)
    cut = cut_of(found, x.dtype)
    return found if cut.programs <= _MOST_PROGRAMS and cut.channels * cut.pixels <= _MOST_ELEMENTS else None


def wins(geometry: Geometry) -> bool:
    """Whether the kernel is taken unasked: row strips, HxW among them, where the hidden layer is not too wide.

    7xW in float32, 32 images on an H100: forward 1.06 to 2.08 copies, PyTorch 1.9 to 9.0; a training step 2.7 to 6.7 of
    them, PyTorch 6.7 to 16.6 (results/speed/h100.txt; R up to 168). Columns and patches were checked there, and
    not timed.
    """
    return geometry.wide == geometry.width and geometry.reduced <= 256


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


# All programs of a tile must run at once, and beside them those of tiles that other streams have begun: with room for
# three tiles, three streams cannot block each other. 44 is a third of an H100's multiprocessors.
_MOST_PROGRAMS = 44
# What a program of 8 warps can hold.
_MOST_ELEMENTS = 1 << 14


def cut(geometry: Geometry, channels: int, pixels: int, warps: int) -> Cut:
    """A tile by channels and pixels of a program, no more than it has."""
    channels, pixels = (
        min(channels, _power(geometry.channels)),
        min(pixels, _power(geometry.tall * geometry.wide)),
    )
    return Cut(
        channels,
        pixels,
        warps,
        -(-geometry.channels // channels),
        -(-geometry.tall * geometry.wide // pixels),
    )


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def forward(
    x: Tensor, out: Tensor, weights: Four, geometry: Geometry,
    saved: Three | None, cut: Cut, launches: int | None = None,
) -> Tensor:  # fmt: skip
    """``out`` = x by its gates; ``saved`` is filled with descriptors, hidden layer and gates, float32."""
    from .fused_kernels import forward_kernel

    tiles = x.shape[0] * geometry.tiles
    launches = launches or _launches(x, cut)
    w1, b1, w2, b2 = (w.contiguous() for w in weights)
    partial, sums, ready = _exchange(x, tiles, geometry, cut, launches)
    descriptors, hidden, gates = saved if saved is not None else (sums, sums, sums)
    for phase in (0,) if launches == 1 else (1, 2):
        forward_kernel[(tiles * cut.programs,)](
            x, out, w1, b1, w2, b2, partial, sums, ready, descriptors, hidden, gates, x.stride(0),
            **constants(geometry, cut, launches), SAVE=saved is not None, PHASE=phase,
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
    grad = grad.contiguous(memory_format=layout(x))
    w1, w2 = (w.contiguous() for w in weights)
    out = like(x)
    grad_a1, grad_a2 = torch.empty_like(hidden), gates.new_empty((tiles, cut.parts, geometry.channels))
    for phase in (0,) if launches == 1 else (1, 2):
        backward_kernel[(tiles * cut.programs,)](
            x, grad, out, w1, w2, partial, sums, ready, hidden, gates, grad_a1, grad_a2, x.stride(0),
            **constants(geometry, cut, launches), PHASE=phase,
        )  # fmt: skip
    return out, grad_a1, grad_a2.sum(1) if cut.parts > 1 else grad_a2[:, 0]


def _launches(x: Tensor, cut: Cut) -> int:
    """One, unless the programs of a tile might not run all at once; Triton's interpreter runs one at a time."""
    return 1 if cut.programs == 1 or 3 * cut.programs <= _multiprocessors(x.device) else 2


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _exchange(x: Tensor, tiles: int, g: Geometry, cut: Cut, launches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what programs give, for their sums, and for the count of those that have given."""
    room = torch.empty(tiles * (cut.programs + 1), g.reduced, dtype=torch.float32, device=x.device)
    ready = counters(tiles, x.device) if launches == 1 else room
    return room[tiles:], room[:tiles], ready


@lru_cache(maxsize=1024)
def constants(g: Geometry, cut: Cut, launches: int) -> dict[str, Any]:
    """What a kernel is compiled for."""
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


def forward_saving(x: Tensor, weights: Four, geometry: Geometry) -> Four:
    """The scaled map, descriptors, hidden layer and gates; see library.squeeze_excite."""
    tiles, cut = x.shape[0] * geometry.tiles, cut_of(geometry, x.dtype)
    c, r = geometry.channels, geometry.reduced
    shapes = ((tiles, cut.parts, c), (tiles, r), (tiles, c))
    descriptors, hidden, gates = (torch.empty(s, dtype=torch.float32, device=x.device) for s in shapes)
    out = forward(x, like(x), weights, geometry, (descriptors, hidden, gates), cut)
    return out, descriptors.sum(1) if cut.parts > 1 else descriptors.view(tiles, c), hidden, gates
