"""How far a network's outputs are from the SE network's, without labels, in a measure whose parts nearly add up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..evaluate.tasks import Task

# Probabilities are kept this far from 0 and 1: what lies beyond decides nothing.
_LEAST = 1e-6


def additive_divergence(task: Task[Any], se: Any, tse: Any) -> Tensor:
    """(N,): the divergence of each image.

    Where outputs are maps of probabilities (a detector's heat map, a mask), it is their Kullback-Leibler divergence,
    summed over the map: other outputs, such as sizes of boxes, mean something at a few peaks only and would drown them.
    Elsewhere it is the task's own.

    Example:
        >>> from tiledse.evaluate.classification import Comparison
        >>> half, most = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 0.9)
        >>> additive_divergence(Comparison(None), half, half).tolist()
        [0.0]
        >>> round(float(additive_divergence(Comparison(None), half, most)), 3)
        2.043
    """
    pairs = [
        (a, b)
        for a, b in zip(tree_leaves(se), tree_leaves(tse), strict=True)
        if isinstance(a, Tensor) and a.ndim == 4 and _probabilities(a) and _probabilities(b)
    ]
    if not pairs:
        return task.divergence(se, tse)
    total = torch.zeros(len(pairs[0][0]), dtype=torch.float64)
    for a, b in pairs:
        p, q = (v.clamp(_LEAST, 1 - _LEAST) for v in (a.float(), b.float()))
        apart = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        total += apart.flatten(1).double().sum(1).cpu()
    return total.clamp_min(0)


def _probabilities(x: Tensor) -> bool:
    return x.is_floating_point() and bool(x.numel()) and float(x.min()) >= 0 and float(x.max()) <= 1
