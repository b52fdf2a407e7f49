"""Which way each map took, and why: ``ts.explain``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..tile import Tile
from .choosing import answers, call_of
from .excitation import TwoLayers


@dataclass(frozen=True)
class Taken:
    """The way that one map took.

    Attributes:
        block: The module that gated it, by its name; empty for the module itself.
        tile: Its tile.
        shape: Of the map.
        kernel: ``triton``, ``cpp`` or ``torch``; None where the registered operator was not called.
        reasons: Why the others were not taken, by the kernel's name; under ``the operator``, why none was asked.
    """

    block: str
    tile: str
    shape: tuple[int, ...]
    kernel: str | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        of = f"{self.block or 'the block'}, {self.tile} on {'x'.join(map(str, self.shape))}"
        way = f"the operator in {self.kernel}" if self.kernel else "PyTorch about the excitation"
        return "\n".join([f"{of}: {way}", *(f"  not {name}: {why}" for name, why in self.reasons.items())])


@dataclass
class Explanation:
    """What ``explain`` found.

    Attributes:
        taken: One for each map that was gated, in order.
    """

    taken: list[Taken] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.taken)) or "no map was gated by tiles"


_watching: list[tuple[Explanation, dict[nn.Module, str]]] = []


def explain(block: nn.Module, *inputs: Any) -> Explanation:
    """Run a block, or a whole network, and say which way each map took: which kernel, and why no earlier one.

    Args:
        block: A TiledSqueezeExcite, a converted block, or a module that holds some.
        inputs: What it is called with. As in its call, gradients are recorded where something asks for them.

    Returns:
        To be printed, or read.

    Example:
        >>> import tiledse as ts
        >>> block = ts.TiledSqueezeExcite(8, 4, "7xW", act=nn.GELU)
        >>> print(explain(block, torch.zeros(1, 8, 14, 14)))
        the block, 7xW on 1x8x14x14: PyTorch about the excitation
          not the operator: no kernel knows GELU
    """
    watch = Explanation(), {module: name for name, module in block.named_modules()}
    _watching.append(watch)
    try:
        block(*inputs)
    finally:
        _watching.remove(watch)
    return watch[0]


def tell(x: Tensor, tile: Tile, layers: TwoLayers | str, excite: object) -> None:
    """Say which way a map takes, to those who watch."""
    if not _watching or torch.compiler.is_compiling():
        return
    found, names = _watching[-1]
    if isinstance(layers, str):
        kernel, reasons = None, {"the operator": layers}
    else:
        asked = answers(call_of(x, layers.w1, tile, layers.act, layers.gate))
        kernel = next(name for name, reason in asked if reason is None)
        reasons = {name: reason for name, reason in asked if reason is not None}
    owner = getattr(excite, "__self__", None)
    name = names.get(owner, "") if isinstance(owner, nn.Module) else ""
    found.taken.append(Taken(name, str(tile), tuple(x.shape), kernel, reasons))
