"""SE and TSE side by side on any task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.images import ImageSet
from ..network import Network
from ..opening import open as open_network
from ..plan import Plan
from .accuracy import evaluation_of
from .classification import Classification
from .evaluation import Evaluation
from .frames import Frames
from .tasks import Paired, Progress, Task, run


@dataclass(frozen=True)
class TaskComparison:
    """What ``accuracy.Evaluation`` is for a classifier, for any task.

    Args:
        task: Name of the task.
        metric: What the drop is a drop of.
        n: Images.
        se: Metrics of plain SE, in percent.
        tse: Metrics with tiles.
        paired: Of both.
        divergence: How far the outputs are apart, mean over the images.
    """

    task: str
    metric: str
    n: int
    se: dict[str, float]
    tse: dict[str, float]
    paired: Paired
    divergence: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of ``eval``; metrics that are undefined are null."""
        p = self.paired
        return {
            "task": self.task,
            "n": self.n,
            "se": _plain(self.se),
            "tse": _plain(self.tse),
            "paired": {"agree": p.agree, "lost": p.lost, "gained": p.gained, "p_value": p.p_value},
            "drop": p.drop,
            "drop_ci95": list(p.drop_ci95),
            "metric": self.metric,
            "divergence": self.divergence,
        }

    def __str__(self) -> str:
        p = self.paired
        width = max(4, *map(len, self.se))
        lines = [f"{self.n} images, percent", f"{'':{width}}      SE     TSE"]
        lines += [
            f"{key:{width}}  {value:6.2f}  {self.tse.get(key, float('nan')):6.2f}"
            for key, value in self.se.items()
        ]
        lines += [
            f"alone, {p.agree} images score the same, {p.lost} lower with TSE and {p.gained} higher",
            f"drop of {self.metric} {p.drop:.2f} percentage points, 95 % interval {p.drop_ci95[0]:.2f} to "
            f"{p.drop_ci95[1]:.2f}, p = {p.p_value:.2g} (images drawn again)",
        ]
        return "\n".join(lines)


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in scores.items()}


def evaluate(
    model: Any,
    plan: Plan,
    images: ImageSet | Task[Any],
    *,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    progress: Progress | None = None,
    frames: bool = False,
) -> Evaluation | TaskComparison:
    """Measure SE and TSE on the same images, in one pass; what comes before the first tile runs once an image.

    Under torchrun (``processes.joined_processes``) each process takes every n-th batch, or every n-th shard, and all
    get the whole result.

    Args:
        model: The network, or what ``tiledse.open`` takes.
        plan: The tiles.
        images: Labelled images of a classifier (``tiledse.open_images``), or the task: what is measured on what.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go; left out, where the network is.
        amp: Autocast to this dtype, such as torch.bfloat16; None leaves the network's own.
        progress: Called with (images done, images in all or None) of this process.
        frames: The images are frames: those whose names differ in their last number only are one video, in the order
            of these numbers. They are shown one at a time, and ``batch_size`` is not looked at.

    Returns:
        An ``Evaluation`` with top-1 and top-5 for a classifier, else a ``TaskComparison``.

    Raises:
        TiledSEError: the plan is none of this network, or see ``tasks.run``.
    """
    network = open_network(model, None if isinstance(model, Network) else plan.input_size)
    plan.check_network(network.plan)
    task = images if isinstance(images, Task) else Classification(images)
    shown = Frames(network, plan) if frames else None
    results = run(
        task, network.branches([plan]) if shown is None else shown, ["SE", "TSE"],
        batch_size=batch_size if shown is None else 1, workers=workers,
        device=network.device if device is None else device, amp=amp, progress=progress,
        see=None if shown is None else shown.see,
    )  # fmt: skip
    if isinstance(task, Classification):
        return evaluation_of(results)
    se, tse = results.networks
    return TaskComparison(
        task.name,
        task.metric,
        len(results.names),
        task.score(se),
        task.score(tse),
        task.compare(se, tse),
        float(np.mean(results.divergence[0])),
    )
