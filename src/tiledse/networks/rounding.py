"""Differences of numbers, and how large one may be that is rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Relative to the largest number.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def relative(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference, relative to the largest number expected; infinite where something is not finite.

    Args:
        got: Numbers.
        expected: Numbers.
        floor: What the difference is relative to at the least.

    Example:
        >>> relative(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        0.5
    """
    if got.shape != expected.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    got, expected = got.detach(), expected.detach()
    if got.dtype is not expected.dtype:
        got, expected = got.double(), expected.double()
    difference = float((got - expected).abs().max())  # NaN where one is, or both are infinite
    if not difference:
        return 0.0 if bool(expected.isfinite().all()) else float("inf")
    largest = max(float(expected.abs().max()), floor)
    figure = difference / largest if largest else float("inf")
    return figure if math.isfinite(figure) else float("inf")


class _Types(TorchFunctionMode):
    """Notes the floating types of what is computed inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()}
        return out


def lowest_precision(run: Callable[[], object]) -> torch.dtype:
    """The coarsest floating type that a computation has in it.

    A network in float64 may take its means in float32, as those do that are to run in half precision.

    Example:
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> lowest_precision(lambda: x * x.float().mean()), lowest_precision(lambda: x * x.mean())
        (torch.float32, torch.float64)
    """
    with _Types() as types:
        run()
    return max(types.seen & set(ROUNDING), key=ROUNDING.__getitem__, default=torch.float64)
