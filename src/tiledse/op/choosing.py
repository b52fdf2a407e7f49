"""The kernels of the operator, in the order in which they are asked: each takes a call, or says why not.

==========  ========================================================================================================
``triton``  on an NVIDIA GPU, one launch that reads the map once: row strips (by_triton.py)
``cpp``     on a CPU, unit by unit in its cache: every tile of float32, bfloat16 and float16 maps (by_cpp.py)
``torch``   PyTorch's own operators, for everything else (by_pytorch.py)
==========  ========================================================================================================

``ts.kernels`` and TILEDSE_KERNELS say which may be asked; ``ts.explain`` says which one was taken, and why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import TiledSEError
from ..tile import Tile
from . import by_cpp, by_pytorch, by_triton
from .excitation import TwoLayers

KERNELS: dict[str, ModuleType] = {"triton": by_triton, "cpp": by_cpp, "torch": by_pytorch}
_CHOICES = ("auto", *KERNELS)

_asked = os.environ.get("TILEDSE_KERNELS") or "auto"


@contextmanager
def kernels(name: str) -> Iterator[None]:
    """Which kernels the operator may take, for a while and for the whole process.

    Args:
        name: ``auto``: the first that takes a map. ``triton`` or ``cpp``: that one wherever it can run, columns and
            patches on a GPU too, and PyTorch for the rest. ``torch``: PyTorch alone.

    Raises:
        TiledSEError: there is no such name.

    Example:
        >>> import tiledse as ts
        >>> block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(1, 8, 6, 5)
        >>> with kernels("torch"):
        ...     y = block(x)
        >>> torch.allclose(y, block(x), atol=1e-6)
        True
    """
    global _asked
    before = _asked
    _check(name, "kernels")
    _asked = name
    try:
        yield
    finally:
        _asked = before


def _check(name: str, where: str) -> None:
    if name not in _CHOICES:
        raise TiledSEError(f"{where}: expected one of {', '.join(_CHOICES)}, got {name!r:.40}")


class Call(NamedTuple):
    """What a choice depends on, and nothing else: values, so that the same call is chosen for once.

    Attributes:
        shape: Of the map, (N, C, H, W).
        last: Whether channels lie side by side in memory; None where the map is not dense.
        dtype: Of the map.
        device: Of the map.
        reduced: Width between the two layers.
        threads: Of torch.
        tile: The tile.
        act: Activation between the layers.
        gate: Gate function.
    """

    shape: torch.Size
    last: bool | None
    dtype: torch.dtype
    device: torch.device
    reduced: int
    threads: int
    tile: Tile
    act: str
    gate: str


def call_of(x: Tensor, w1: Tensor, tile: Tile, act: str, gate: str) -> Call:
    """The call for a map and its first weight."""
    return Call(*_values(x, w1), tile, act, gate)


def _values(x: Tensor, w1: Tensor) -> tuple[torch.Size, bool | None, torch.dtype, torch.device, int, int]:
    last = False if x.is_contiguous() else x.is_contiguous(memory_format=torch.channels_last) or None
    return x.shape, last, x.dtype, x.device, w1.shape[0], torch.get_num_threads()


def chosen(x: Tensor, w1: Tensor, tile: Tile, act: str, gate: str) -> tuple[ModuleType, Any]:
    """The kernel that takes the call for a map and its first weight, and what it has prepared for it."""
    return _chosen(_asked, *_values(x, w1), tile, act, gate)


@lru_cache(maxsize=4096)
def _chosen(asked: str, *values: Any) -> tuple[ModuleType, Any]:
    call = Call(*values)
    kernel = KERNELS[next(name for name, reason in _answers(call, asked) if reason is None)]
    return kernel, kernel.prepare(call)


def answers(call: Call) -> list[tuple[str, str | None]]:
    """Each kernel, and why it does not take a call, or None."""
    return list(_answers(call, _asked))


def _answers(call: Call, asked: str) -> Iterator[tuple[str, str | None]]:
    _check(asked, "TILEDSE_KERNELS")
    for name, kernel in KERNELS.items():
        if asked not in ("auto", name) and name != "torch":
            yield name, f"kernels are '{asked}'"
        elif name == "triton":
            yield name, by_triton.why_not(call, asked == "triton")
        else:
            yield name, kernel.why_not(call)


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
