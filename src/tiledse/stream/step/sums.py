"""Sums over a whole image in two numbers: the sum as it is rounded, and what the roundings left out."""

from __future__ import annotations

from torch import Tensor

Sum = tuple[Tensor, Tensor]


def add(total: Sum, more: Tensor) -> Sum:
    """Add to a sum, with the error of the addition kept (Knuth, TAOCP volume 2, section 4.2.2, theorem B).

    A step runs where there may be no float64, and an image may be long: one number would drift.

    Example:
        >>> import torch
        >>> total = torch.zeros(()), torch.zeros(())
        >>> for _ in range(1000):
        ...     total = add(total, torch.tensor(0.1) * 1000)
        >>> float(total[0] + total[1]) / 1000
        100.0
    """
    before, rest = total
    after = before + more
    given = after - before
    return after, rest + ((before - (after - given)) + (more - given))
