"""Classification as a task, and comparison of outputs for images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from ..data.images import Batch, ImageSet, ListedImages, Preprocess
from ..errors import TiledSEError
from .evaluation import Evaluation, ImageResult
from .logits import check_logits
from .tasks import Paired, Task, softmax_divergence

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}


class Guess(NamedTuple):
    """What a classifier says of one image: the true class, the class put first, whether it is among five."""

    label: int
    first: int
    among5: bool


def ranked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class put first, and whether the true one is among the first five (or all, of fewer): (N,) each.

    Args:
        logits: (N, classes).
        labels: (N,), on any device.

    Example:
        >>> import torch
        >>> [t.tolist() for t in ranked(torch.eye(6)[:2], torch.tensor([0, 0]))]
        [[0, 1], [True, True]]
    """
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
    return best[:, 0], (best == labels.cpu()[:, None]).any(1)


class Classification(Task[Guess]):
    """Top-1 and top-5 of labelled images; drops are of top-1.

    Args:
        images: The set, from ``open_images``.
    """

    name: ClassVar[str] = "classify"
    metric: ClassVar[str] = "top1"
    divergence_name: ClassVar[str] = "Kullback-Leibler divergence of the softmax from SE's, nats"

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def judge(self, batch: Batch, targets: Any, output: Any, who: str) -> list[Guess]:
        """See Task; the output is logits (N, classes)."""
        check_logits(batch, output, who, self.images.classes)
        first, among = ranked(output, batch.labels)
        return [
            Guess(label, one, five)
            for label, one, five in zip(batch.labels.tolist(), first.tolist(), among.tolist())
        ]

    def score(self, results: Sequence[Guess]) -> dict[str, float]:
        """top1, top5 in percent."""
        n = len(results)
        return {
            "top1": 100 * sum(r.first == r.label for r in results) / n,
            "top5": 100 * sum(r.among5 for r in results) / n,
        }

    def compare(self, se: Sequence[Guess], tse: Sequence[Guess]) -> Paired:
        """See ``accuracy.Evaluation``: McNemar's exact test, and the interval of ``drop_interval``."""
        both = Evaluation(
            tuple(ImageResult("", a.label, a.first, b.first, a.among5, b.among5) for a, b in zip(se, tse))
        )
        return Paired(both.agree, both.lost, both.gained, both.p_value, both.drop, both.drop_ci95)

    def shares(self, results: Sequence[Guess]) -> np.ndarray:
        """100 for an image that is right, 0 for one that is not."""
        return np.array([100.0 * (r.first == r.label) for r in results])

    def check(self, output: Any, names: Sequence[str], who: str) -> None:
        """Nothing: ``judge`` looks at the logits."""

    def divergence(self, se: Tensor, tse: Tensor) -> Tensor:
        """``softmax_divergence``."""
        if se.shape[1] != tse.shape[1]:
            raise TiledSEError(
                f"SE gives {se.shape[1]} classes and TSE {tse.shape[1]}; expected two forms of one network"
            )
        return softmax_divergence(se, tse)


class Comparison(Task[None]):
    """Images without labels: outputs are compared with the SE network's, and nothing is right or wrong.

    Args:
        images: The set.
        logits: Whether the outputs are a classifier's.
    """

    name: ClassVar[str] = "compare"
    metric: ClassVar[str] = ""

    def __init__(self, images: ImageSet, logits: bool = False) -> None:
        self.images, self.logits = images, logits

    def judge(self, batch: Batch, targets: Any, output: Any, who: str) -> list[None]:
        """Nothing to judge."""
        return [None] * len(batch.names)

    def score(self, results: Sequence[None]) -> dict[str, float]:
        """Nothing."""
        return {}

    def compare(self, se: Sequence[None], tse: Sequence[None]) -> Paired:
        """Never called: there is no metric."""
        raise TiledSEError("images without labels have no accuracy; give labelled ones")


def open_unlabelled(folder: str | Path, preprocess: Preprocess) -> ListedImages:
    """The images of a folder and its subfolders, in sorted order; their labels are 0 and mean nothing.

    Raises:
        TiledSEError: no folder, or no image in it.

    Example:
        >>> open_unlabelled("/nowhere", lambda image: image)
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: no images at /nowhere: there is no such folder
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TiledSEError(f"no images at {folder}: there is no such folder")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
    )
    if not names:
        raise TiledSEError(f"no image in {folder}; expected files such as .jpg or .png")
    return ListedImages(folder, [(name, 0) for name in names], preprocess)
