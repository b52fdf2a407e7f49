"""The operator against a copy, plain SE and the paper's code: time, and memory of a training step."""

from __future__ import annotations

import copy as copying
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..op import TiledSqueezeExcite
from ..tile import Tile
from .interleave import Ratio, Timing, interleave


@dataclass(frozen=True)
class Shape:
    """A map that a network gates.

    Args:
        network: Whose map it is.
        batch: N.
        channels: C.
        reduced: Width between the two convolutions of its SE block.
        height: H.
        width: W.
    """

    network: str
    batch: int
    channels: int
    reduced: int
    height: int
    width: int

    @property
    def map_bytes(self) -> int:
        """Bytes of the map in float32."""
        return 4 * self.batch * self.channels * self.height * self.width

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}"


# The maps of the networks' SE blocks; batches that make them larger than 10 MB, and single images.
SHAPES = (
    Shape("RegNetY-800MF", 32, 64, 8, 56, 56),
    Shape("RegNetY-800MF", 32, 144, 16, 28, 28),
    Shape("RegNetY-800MF", 64, 320, 36, 14, 14),
    Shape("RegNetY-800MF", 128, 784, 80, 7, 7),
    Shape("EfficientDet-D2", 1, 96, 4, 192, 192),
    Shape("EfficientDet-D2", 1, 144, 6, 192, 192),
    Shape("MobileNetV3-L 1024x2048", 1, 120, 32, 128, 256),
    Shape("MobileNetV3-L 1024x2048", 1, 672, 168, 64, 128),
    Shape("RegNetY-800MF", 1, 64, 8, 56, 56),
    Shape("RegNetY-800MF", 1, 320, 36, 14, 14),
    Shape("RegNetY-800MF", 1, 784, 80, 7, 7),
)
TILES = ("7xW", "Hx7", "7x7")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class PaperBlock(nn.Module):
    """Figure A1 of the paper, line by line, its layers made once."""

    def __init__(self, channels: int, reduced: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.sq = nn.AvgPool2d(kernel, stride=kernel, ceil_mode=True)
        self.ex = nn.Sequential(
            nn.Conv2d(channels, reduced, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(reduced, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        height, width = x.shape[2:]
        y = self.ex(self.sq(x))
        y = torch.repeat_interleave(y, self.kernel[0], dim=-2)[:, :, :height, :]
        y = torch.repeat_interleave(y, self.kernel[1], dim=-1)[:, :, :, :width]
        return x * y


@dataclass(frozen=True)
class Comparison:
    """One map, layout and tile: the timings of a run, and the bytes of a training step.

    ``half_inference`` is of blocks in bfloat16, ``half_training`` of bfloat16 maps under autocast;
    both of SE and 7xW only.
    """

    shape: Shape
    layout: str
    tile: str
    inference: dict[str, Timing]
    training: dict[str, Timing]
    saved_bytes: dict[str, int]
    peak_bytes: dict[str, int]
    half_inference: dict[str, Timing] = field(default_factory=dict)
    half_training: dict[str, Timing] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON: ratios of thread time, with the middle half of them; bytes."""

        def ratios(timings: dict[str, Timing], base: str) -> dict[str, Any]:
            return {
                name: {
                    "cpu": rounded(t.ratio(timings[base], wall=False)),
                    "wall": rounded(t.ratio(timings[base], wall=True)),
                }
                for name, t in timings.items()
                if name != base
            }

        bases = ("copy", "se", "paper")
        return {
            "network": self.shape.network,
            "shape": [self.shape.batch, self.shape.channels, self.shape.height, self.shape.width],
            "map_bytes": self.shape.map_bytes,
            "layout": self.layout,
            "tile": self.tile,
            "copy_s": round(sorted(self.inference["copy"].cpu_s)[len(self.inference["copy"].cpu_s) // 2], 7),
            "inference": {f"to_{base}": ratios(self.inference, base) for base in bases},
            "training": {f"to_{base}": ratios(self.training, base) for base in bases},
            "bfloat16_inference": {"to_se": ratios(self.half_inference, "se")} if self.half_inference else {},
            "autocast_training": {"to_se": ratios(self.half_training, "se")} if self.half_training else {},
            "saved_bytes": self.saved_bytes,
            "peak_bytes": self.peak_bytes,
        }


def rounded(ratio: Ratio) -> list[float]:
    """Median, and the middle half, for JSON."""
    return [round(value, 3) for value in (ratio.median, ratio.low, ratio.high)]


def compare(shape: Shape, layout: str, tile: str, repeats: int = 15) -> Comparison:
    """Time one map in all ways, taking turns.

    Args:
        shape: The map.
        layout: ``NCHW`` or ``channels_last``.
        tile: The tile.
        repeats: Turns.

    Returns:
        Timings of ``copy`` (into warm memory), ``se`` (timm's SEModule), ``paper`` (figure A1), ``tse`` and,
        in inference, ``tse in place``. Before each call the map is written anew, as the layer before would.
    """
    from timm.layers import SEModule

    form = LAYOUTS[layout]
    torch.manual_seed(0)
    source = torch.randn(shape.batch, shape.channels, shape.height, shape.width).to(memory_format=form)
    x, out, upstream = source.clone(), torch.empty_like(source), torch.randn_like(source)
    modules: dict[str, nn.Module] = {
        "se": SEModule(shape.channels, rd_channels=shape.reduced),
        "paper": PaperBlock(shape.channels, shape.reduced, Tile.parse(tile).size(shape.height, shape.width)),
        "tse": TiledSqueezeExcite(shape.channels, shape.reduced, tile),
    }
    for module in modules.values():
        module.to(memory_format=form)
    inplace = TiledSqueezeExcite(shape.channels, shape.reduced, tile, inplace=True).to(memory_format=form)
    copy = torch.no_grad()(lambda: out.copy_(x))
    with torch.no_grad():
        inference = interleave(
            {
                "copy": copy,
                **{name: lambda m=m: m(x) for name, m in modules.items()},  # type: ignore[misc]
                "tse in place": lambda: inplace(x),
            },
            repeats,
            lambda: x.copy_(source),
        )
    leaf = x.copy_(source).requires_grad_()

    def step(module: nn.Module) -> None:
        leaf.grad = None
        module(leaf).backward(upstream)

    def renew() -> None:
        leaf.grad = None
        with torch.no_grad():
            leaf.copy_(source)

    training = interleave(
        {"copy": copy, **{name: lambda m=m: step(m) for name, m in modules.items()}},  # type: ignore[misc]
        repeats,
        renew,
    )
    saved = {name: saved_bytes(m, leaf) for name, m in modules.items()}
    peak = {name: peak_bytes(lambda m=m: step(m)) for name, m in modules.items()}  # type: ignore[misc]
    half = _half(modules, source, upstream, repeats) if tile == "7xW" else ({}, {})
    return Comparison(shape, layout, tile, inference, training, saved, peak, *half)


def _half(
    modules: dict[str, nn.Module], source: Tensor, upstream: Tensor, repeats: int
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """SE and TSE on bfloat16 maps: in bfloat16, without gradients; and a training step under autocast."""
    x, source, upstream = (value.bfloat16() for value in (source, source, upstream))
    halves = {name: copying.deepcopy(modules[name]).bfloat16() for name in ("se", "tse")}

    def renew() -> None:
        leaf.grad = None
        with torch.no_grad():
            leaf.copy_(source)

    def step(module: nn.Module) -> None:
        leaf.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = module(leaf)
        y.backward(upstream)

    leaf = x
    with torch.no_grad():
        inference = interleave(
            {name: lambda m=m: m(x) for name, m in halves.items()},  # type: ignore[misc]
            repeats,
            renew,
        )
    leaf = x.clone().requires_grad_()
    training = interleave({name: lambda m=modules[name]: step(m) for name in halves}, repeats, renew)  # type: ignore[misc]
    return inference, training


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that the graph of one call keeps for its backward pass, each memory once, parameters left out."""
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x)
    del y
    return sum(held.values())


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Nothing on standard error for a while: the profiler's library reports its own starts and stops there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call holds at once above what was there before, by torch's own allocation events."""
    from torch.profiler import ProfilerActivity, profile

    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
