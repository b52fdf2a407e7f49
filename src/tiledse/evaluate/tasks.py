"""Task: what a network is good at, image by image; and one pass of several networks over the images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..data.images import Batch, ImageSet
from ..errors import TiledSEError
from .processes import gather, part, together

R = TypeVar("R")
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Paired:
    """Two networks on the same images.

    Args:
        agree: Images on which both do equally well; for a classifier, give the same class.
        lost: Images on which the second does worse.
        gained: Images on which it does better.
        p_value: How likely so large a difference is by chance.
        drop: Metric of the first less that of the second, in percentage points.
        drop_ci95: 95 % interval of the drop.
    """

    agree: int
    lost: int
    gained: int
    p_value: float
    drop: float
    drop_ci95: tuple[float, float]


class Task(ABC, Generic[R]):
    """What is measured.

    Attributes:
        name: ``classify``, ``detect``, ``segment`` or ``compare`` (no labels).
        metric: What drops are drops of, a key of ``score``; "" where there are no labels.
        images: The set.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    images: ImageSet

    def targets(self, batch: Batch) -> Any:
        """What ``judge`` needs to know of a batch, read once for all networks."""
        return None

    def check(self, output: Any, names: Sequence[str], who: str) -> None:
        """Check that an output can be judged.

        Raises:
            TiledSEError: it is not finite; the image is named.
        """
        check_finite(output, names, who)

    @abstractmethod
    def judge(self, batch: Batch, targets: Any, output: Any, who: str) -> list[R]:
        """One result for each image, small enough to be kept for all.

        Raises:
            TiledSEError: the output is not what the task expects.
        """

    @abstractmethod
    def score(self, results: Sequence[R]) -> dict[str, float]:
        """The metrics over all images, in percent."""

    @abstractmethod
    def compare(self, se: Sequence[R], tse: Sequence[R]) -> Paired:
        """What the difference of two networks is worth."""

    def shares(self, results: Sequence[R]) -> np.ndarray | None:
        """(images,): what each image adds to the metric, where it is a mean over images; None where it is none."""
        return None

    def alone(self, results: Sequence[R]) -> np.ndarray | None:
        """(images,): the metric of each image by itself, in percent; None where one image has none."""
        return None

    def divergence(self, se: Any, tse: Any) -> Tensor:
        """(N,): how far the second network's outputs are from the first's; needs no label.

        The length of the difference of all outputs, relative to that of the first's: 0 for equal ones.
        """
        a, b = _flat(se), _flat(tse)
        return (a - b).norm(dim=1) / a.norm(dim=1).clamp_min(1e-30)

    divergence_name: ClassVar[str] = "relative L2 distance of the outputs"


def _flat(output: Any) -> Tensor:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.cat([leaf.flatten(1).double() for leaf in leaves], 1)


def softmax_divergence(se: Tensor, tse: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the second classifier's probabilities from the first's, in nats: (N,).

    Example:
        >>> softmax_divergence(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]])).tolist()
        [0.0]
    """
    p, q = se.double().log_softmax(1), tse.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1).clamp_min(0)


@dataclass(frozen=True)
class Results(Generic[R]):
    """What a pass over the images gave, in the order of the set.

    Attributes:
        names: Of the images.
        networks: For each network, SE first, one result an image.
        divergence: For each network but SE, one number an image.
    """

    names: tuple[str, ...]
    networks: tuple[tuple[R, ...], ...]
    divergence: tuple[tuple[float, ...], ...]


def run(
    task: Task[R],
    branches: Callable[[Tensor], Iterator[Any]],
    who: Sequence[str],
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    progress: Progress | None = None,
    see: Callable[[Sequence[str]], None] | None = None,
) -> Results[R]:
    """Show every image once to several networks. Under torchrun each process takes its part, and all get everything.

    Args:
        task: Judges the outputs.
        branches: Images (N, C, H, W) to what each network gives, SE first.
        who: What messages call the networks, in that order.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go.
        amp: Autocast to this dtype; None leaves the networks' own.
        progress: Called with (images done, images in all or None) of this process.
        see: Called with the names of a batch before it is shown.

    Raises:
        TiledSEError: an image cannot be read, an output is not finite (the image is named) or not what the task
            expects, or there is no image.
    """
    device = torch.device(device)
    pinned = device.type == "cuda"

    def own() -> list[tuple[tuple[int, ...], str, list[R], list[float]]]:
        found = []
        total = task.images.count(max(batch_size, 1), part())
        for batch in task.images.batches(batch_size, workers, part(), pin_memory=pinned):
            if see is not None:
                see(batch.names)
            inputs = batch.inputs.to(device, non_blocking=pinned)
            targets = task.targets(batch)
            columns: list[list[R]] = []
            apart: list[list[float]] = []
            with (
                torch.no_grad(),
                torch.autocast(device.type, amp, enabled=amp is not None, cache_enabled=False),
            ):
                for name, output in zip(who, _in_memory(branches(inputs), device, batch_size), strict=True):
                    task.check(output, batch.names, name)
                    columns.append(task.judge(batch, targets, output, name))
                    if len(columns) == 1:
                        first = output
                    else:
                        apart.append(task.divergence(first, output).tolist())
            rows = zip(
                batch.places.tolist(), batch.names, zip(*columns), zip(*apart) if apart else _nothing()
            )
            found += [(tuple(place), image, list(results), list(far)) for place, image, results, far in rows]
            if progress is not None:
                progress(len(found), total)
        return found

    rows = sorted((row for rows in gather(together(own)) for row in rows), key=lambda row: row[0])
    if not rows:
        raise TiledSEError("no image to evaluate: the set is empty")
    return Results(
        tuple(row[1] for row in rows),
        tuple(zip(*(row[2] for row in rows))),
        tuple(zip(*(row[3] for row in rows))),
    )


def _in_memory(outputs: Iterator[Any], device: torch.device, batch_size: int) -> Iterator[Any]:
    try:
        yield from outputs
    except torch.OutOfMemoryError as error:
        raise TiledSEError(
            f"{device} has not enough memory for batches of {batch_size} images; take a smaller batch size"
        ) from error


def _nothing() -> Iterator[tuple[float, ...]]:
    while True:
        yield ()


def check_finite(output: Any, names: Sequence[str], who: str) -> None:
    """Check that no output has NaN or infinite numbers.

    Raises:
        TiledSEError: one has; says of which image.
    """
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim and len(leaf) == len(names):
            bad = ~leaf.flatten(1).isfinite().all(1)
            if bad.any():
                raise TiledSEError(
                    f"image {names[int(bad.int().argmax())]}: the {who} network's outputs are not finite; check its "
                    "weights, or evaluate in float32"
                )
