"""How far a network's outputs are from the SE network's, without labels, in a measure whose parts nearly add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..data.images import Batch, ImageSet
from ..evaluate.tasks import Paired, Task

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


class Apart(Task[Any]):
    """A task whose divergence is ``additive_divergence``; judged as it is, or not judged at all.

    Args:
        task: The task.
        images: The images to look at.
        judged: Whether labels are read and outputs judged; else only divergences are found.
    """

    name: ClassVar[str] = "apart"
    metric: ClassVar[str] = ""
    divergence_name: ClassVar[str] = "divergence whose parts nearly add up"

    def __init__(self, task: Task[Any], images: ImageSet, judged: bool = False) -> None:
        self.task, self.images, self.judged = task, images, judged

    def targets(self, batch: Batch) -> Any:
        """See Task."""
        return self.task.targets(batch) if self.judged else None

    def judge(self, batch: Batch, targets: Any, output: Any, who: str) -> list[Any]:
        """See Task."""
        return self.task.judge(batch, targets, output, who) if self.judged else [None] * len(batch.names)

    def score(self, results: Sequence[Any]) -> dict[str, float]:
        """See Task."""
        return self.task.score(results)

    def compare(self, se: Sequence[Any], tse: Sequence[Any]) -> Paired:
        """See Task."""
        return self.task.compare(se, tse)

    def shares(self, results: Sequence[Any]) -> np.ndarray | None:
        """See Task."""
        return self.task.shares(results)

    def divergence(self, se: Any, tse: Any) -> Tensor:
        """See ``additive_divergence``."""
        return additive_divergence(self.task, se, tse)


def _probabilities(x: Tensor) -> bool:
    return x.is_floating_point() and bool(x.numel()) and float(x.min()) >= 0 and float(x.max()) <= 1
