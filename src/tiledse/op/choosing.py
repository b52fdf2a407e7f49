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
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import TiledSEError
from ..tile import Tile
from . import by_cpp, by_pytorch, by_triton
from .grids import is_channels_last, is_dense

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
        tile: The tile.
        reduced: Width between the two layers.
        act: Activation between them.
        gate: Gate function.
        threads: Of torch.
    """

    shape: torch.Size
    last: bool | None
    dtype: torch.dtype
    device: torch.device
    tile: Tile
    reduced: int
    act: str
    gate: str
    threads: int


def call_of(x: Tensor, w1: Tensor, tile: Tile, act: str, gate: str) -> Call:
    """The call for a map and its first weight."""
    last = is_channels_last(x) if is_dense(x) else None
    return Call(x.shape, last, x.dtype, x.device, tile, w1.shape[0], act, gate, torch.get_num_threads())


def chosen(call: Call) -> tuple[ModuleType, object]:
    """The kernel that takes a call, and what it has prepared for it."""
    return _chosen(call, _asked)


@lru_cache(maxsize=4096)
def _chosen(call: Call, asked: str) -> tuple[ModuleType, object]:
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
