"""The operator as one Triton kernel of triton_kernels.py, on an NVIDIA GPU: for which maps, and how tiles are cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .grids import layout, like

if TYPE_CHECKING:
    from .choosing import Call

_TRITON = find_spec("triton") is not None
# Triton chooses its interpreter when it is imported.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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


def why_not(call: Call, asked: bool = False) -> str | None:
    """Why the kernel does not take a call; None if it does.

    Unasked it takes row strips, HxW among them. 7xW in float32, 32 images on an H100: forward 1.06 to 2.08 copies,
    PyTorch 1.9 to 9.0; a training step 2.7 to 6.7 of them, PyTorch 6.7 to 16.6 (results/speed/h100.txt; R up to 168).
    Columns and patches were checked there, and not timed.
    """
    if call.device.type != "cuda" and not (_INTERPRETED and asked):
        return f"the map is on {call.device.type}"
    if not _TRITON:
        return "triton is not installed"
    if call.device.type == "cuda" and _capability(call.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    tile = call.tile
    if tile.single or (tile.slides and not tile.sees_all(call.shape[2])):
        return f"it does not squeeze {tile}"
    if 0 in call.shape or call.dtype == torch.float64 or call.last is None:
        return "the map is empty, float64, or neither contiguous nor channels_last"
    found = geometry(call)
    if not asked and (found.wide < found.width or found.reduced > 256):
        return "columns, patches and hidden layers above 256 were not timed; kernels 'triton' takes them"
    cut = cut_of(found, call.dtype)
    if cut.programs > _MOST_PROGRAMS or cut.channels * cut.pixels > _MOST_ELEMENTS:
        return "the tile is too large for the programs that can run at once"
    return None


def prepare(call: Call) -> Geometry:
    """Map, tile and excitation of a call."""
    return geometry(call)


def geometry(call: Call) -> Geometry:
    """See Geometry."""
    _, channels, height, width = call.shape
    strides = (1, width * channels, channels) if call.last else (height * width, width, 1)
    return Geometry(
        channels, call.reduced, height, width, *call.tile.size(height, width), strides, call.act, call.gate
    )


@lru_cache(maxsize=64)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


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
    x: Tensor, weights: Sequence[Tensor], geometry: Geometry, save: bool, out: Tensor | None,
    launches: int | None = None, cut: Cut | None = None,
) -> list[Tensor]:  # fmt: skip
    """The scaled map, and with ``save`` descriptors, hidden layer and gates; see registered.py."""
    from .triton_kernels import forward_kernel

    cut, tiles = cut or cut_of(geometry, x.dtype), x.shape[0] * geometry.tiles
    y = like(x) if out is None else out
    launches = launches or _launches(x, cut)
    w1, b1, w2, b2 = (w.contiguous() for w in weights)
    partial, sums, ready = _exchange(x, tiles, geometry, cut, launches)
    shapes = (tiles, cut.parts, geometry.channels), (tiles, geometry.reduced), (tiles, geometry.channels)
    kept = [torch.empty(s, dtype=torch.float32, device=x.device) for s in shapes] if save else [sums] * 3
    for phase in (0,) if launches == 1 else (1, 2):
        forward_kernel[(tiles * cut.programs,)](
            x, y, w1, b1, w2, b2, partial, sums, ready, *kept, x.stride(0),
            **constants(geometry, cut, launches), SAVE=save, PHASE=phase,
        )  # fmt: skip
    if not save:
        return [y]
    return [y, kept[0].sum(1) if cut.parts > 1 else kept[0].view(tiles, -1), *kept[1:]]


def backward(
    x: Tensor, grad: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor, gates: Tensor, geometry: Geometry,
    launches: int | None = None, cut: Cut | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    from .triton_kernels import backward_kernel

    cut, tiles = cut or cut_of(geometry, x.dtype), x.shape[0] * geometry.tiles
    launches = launches or _launches(x, cut)
    partial, sums, ready = _exchange(x, tiles, geometry, cut, launches)
    grad = grad.contiguous(memory_format=layout(x))
    w1, w2, out = w1.contiguous(), w2.contiguous(), like(x)
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
    ready = _counters(tiles, x.device) if launches == 1 else room
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


# Counters that launches captured into CUDA graphs take theirs from: 4 MB, enough for a thousand launches of 1024 tiles.
_RESERVED = 1 << 20


class _Counters:
    """Counters for the kernels of one GPU, without a launch that sets them.

    Kernels of one stream run one after the other, so they share counters. A launch that is captured into a CUDA
    graph may run later, beside any other, so it gets counters that no other launch has.
    """

    def __init__(self) -> None:
        self._by_stream: dict[int, Tensor] = {}
        self._reserve: Tensor | None = None
        self._taken = 0

    def take(self, number: int, device: torch.device) -> Tensor:
        """At least ``number`` counters, int32."""
        number = -(-number // 64) * 64
        if torch.cuda.is_current_stream_capturing():
            if self._reserve is None or self._taken + number > _RESERVED:
                return torch.zeros(number, dtype=torch.int32, device=device)
            self._taken += number
            return self._reserve[self._taken - number : self._taken]
        stream = torch.cuda.current_stream(device).cuda_stream
        counters = self._by_stream.get(stream)
        if counters is None or counters.numel() < number:
            counters = torch.zeros(max(number, 4096), dtype=torch.int32, device=device)
            self._by_stream[stream] = counters
            if self._reserve is None:
                self._reserve = torch.zeros(_RESERVED, dtype=torch.int32, device=device)
                # Written before any stream reads them; once for each GPU.
                torch.cuda.synchronize(device)
        return counters


_of_device: dict[torch.device, _Counters] = {}


def _counters(number: int, device: torch.device) -> Tensor:
    """At least ``number`` counters for a kernel that adds 256, or nothing, to each."""
    if device.type != "cuda":
        return torch.zeros(number, dtype=torch.int32, device=device)
    return _of_device.setdefault(device, _Counters()).take(number, device)
