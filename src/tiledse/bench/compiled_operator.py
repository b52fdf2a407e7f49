"""torch.compile of SE, of the paper's code and of ours, beside all three as they are."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..op import TiledSqueezeExcite
from ..tile import Tile
from .interleave import Timing, interleave
from .operator import LAYOUTS, SHAPES, PaperBlock, Shape, rounded

# Two of RegNetY-800MF and one of MobileNetV3-L: compiling takes longer than timing.
COMPILED_SHAPES = (SHAPES[0], SHAPES[1], SHAPES[6])


@dataclass(frozen=True)
class CompiledComparison:
    """One map and layout, tile 7xW.

    Attributes:
        shape: The map.
        layout: ``NCHW`` or ``channels_last``.
        inference: ``copy``, ``se``, ``paper``, ``tse``, and the three compiled.
        training: The same, forward and backward.
    """

    shape: Shape
    layout: str
    inference: dict[str, Timing]
    training: dict[str, Timing]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: thread time in copies."""
        s = self.shape
        found: dict[str, Any] = {
            "network": s.network,
            "shape": [s.batch, s.channels, s.height, s.width],
            "layout": self.layout,
        }
        for name, timings in (("inference", self.inference), ("training", self.training)):
            found[name] = {
                n: rounded(t.ratio(timings["copy"])) for n, t in timings.items() if n != "copy"
            }  # fmt: skip
        return found


def compare_compiled(
    shape: Shape, layout: str, repeats: int = 9, backend: str = "inductor"
) -> CompiledComparison:
    """Time one map, taking turns; what is compiled is compiled before.

    Args:
        shape: The map.
        layout: ``NCHW`` or ``channels_last``.
        repeats: Turns.
        backend: Of torch.compile; ``inductor`` needs a C++ compiler.
    """
    from timm.layers import SEModule

    form = LAYOUTS[layout]
    torch.manual_seed(0)
    torch._dynamo.reset()
    source = torch.randn(shape.batch, shape.channels, shape.height, shape.width).to(memory_format=form)
    x, out, upstream = source.clone(), torch.empty_like(source), torch.randn_like(source)
    tile = Tile.parse("7xW")
    modules: dict[str, Any] = {
        "se": SEModule(shape.channels, rd_channels=shape.reduced),
        "paper": PaperBlock(shape.channels, shape.reduced, tile.size(shape.height, shape.width)),
        "tse": TiledSqueezeExcite(shape.channels, shape.reduced, tile),
    }
    for module in modules.values():
        module.to(memory_format=form)
    for name in tuple(modules):
        modules[f"compiled {name}"] = torch.compile(
            copy.deepcopy(modules[name]), fullgraph=True, backend=backend
        )
    with torch.no_grad():
        inference = interleave(
            {
                "copy": lambda: out.copy_(x),
                **{name: lambda m=m: m(x) for name, m in modules.items()},  # type: ignore[misc]
            },
            repeats,
            lambda: x.copy_(source),
        )
    leaf = x.copy_(source).requires_grad_()

    def step(module: nn.Module) -> None:
        leaf.grad = None
        module(leaf).backward(upstream)

    training = interleave(
        {
            "copy": lambda: out.copy_(leaf.detach()),
            **{name: lambda m=m: step(m) for name, m in modules.items()},  # type: ignore[misc]
        },
        repeats,
    )
    return CompiledComparison(shape, layout, inference, training)
