"""Segmentation as a task: index masks, mean intersection over union."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..data.images import Batch, ListedImages
from ..data.preprocessing import read_image
from ..errors import TiledSEError, told_as
from ..extras import missing
from ..files import is_file
from ..numerals import quoted
from .adapters import Segmenter
from .classification import SUFFIXES
from .statistics import bootstrap_interval, resampled_weights
from .tasks import Paired, Task


class MaskedImages(ListedImages):
    """Images with a mask each.

    Args:
        data: A CSV file with the columns ``file,mask`` (relative to it), a folder with ``images`` and ``masks`` in it,
            or a folder of images.
        segmenter: Makes the inputs.
        masks: For a folder of images: the folder of their masks, PNG files of the same names.

    Raises:
        TiledSEError: nothing there, an image without a mask or a mask without an image.
    """

    def __init__(self, data: str | Path, segmenter: Segmenter, masks: str | Path | None = None) -> None:
        data = Path(data)
        if data.suffix == ".csv":
            if masks is not None:
                raise TiledSEError(f"--masks goes with a folder of images; {data} names the masks itself")
            pairs, root = _listed(data), data.parent
        else:
            root = data
            if masks is None:
                if not (data / "images").is_dir() or not (data / "masks").is_dir():
                    raise TiledSEError(
                        f"no masks for {data}: expected folders images and masks in it, a CSV file with the columns "
                        "file,mask, or --masks with the folder of masks"
                    )
                data, masks = data / "images", data / "masks"
            pairs = _folders(data, Path(masks), root)
        self.masks = [root / mask for _, mask in pairs]
        super().__init__(root, [(image, place) for place, (image, _) in enumerate(pairs)], segmenter.prepare)


def _listed(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TiledSEError(f"cannot read {path}: {error}") from error
    if not rows:
        raise TiledSEError(f"{path} lists no image: the set is empty")
    if not {"file", "mask"} <= set(rows[0]):
        raise TiledSEError(f"{path}: expected the columns file,mask, got {','.join(map(str, rows[0]))}")
    pairs = [(row["file"] or "", row["mask"] or "") for row in rows]
    for line, pair in enumerate(pairs, 2):
        for name in pair:
            if not name or not is_file(path.parent / name):
                raise TiledSEError(f"{path}, line {line}: there is no file {quoted(name)} in {path.parent}")
    return pairs


def _folders(images: Path, masks: Path, root: Path) -> list[tuple[str, str]]:
    for folder in (images, masks):
        if not folder.is_dir():
            raise TiledSEError(f"no images at {folder}: there is no such folder")
    pictures = {
        p.relative_to(images).with_suffix(""): p
        for p in sorted(images.rglob("*"))
        if p.suffix.lower() in SUFFIXES
    }
    truths = {p.relative_to(masks).with_suffix(""): p for p in sorted(masks.rglob("*.png"))}
    if not pictures:
        raise TiledSEError(f"no image in {images}: the set is empty")
    alone = sorted(pictures.keys() ^ truths.keys())
    if alone:
        what, lacks = ("image", "mask") if alone[0] in pictures else ("mask", "image")
        raise TiledSEError(
            f"{what} {alone[0]} has no {lacks} ({len(alone)} of {len(pictures)} images "
            f"and {len(truths)} masks are alone); list the pairs in a CSV file with the columns file,mask"
        )
    resolved = root.resolve()
    return [
        (_relative(pictures[name], resolved), _relative(truths[name], resolved)) for name in sorted(pictures)
    ]


def _relative(path: Path, root: Path) -> str:
    path = path.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


class Segmentation(Task[np.ndarray]):
    """Mean IoU over classes, pixels of all images taken together; drops are of that.

    A result is the image's confusion matrix (classes, classes), rows the true class, from torchmetrics.

    Args:
        images: The set.
        segmenter: Decodes outputs and masks.
        resamples: Bootstrap samples for intervals.
    """

    name: ClassVar[str] = "segment"
    metric: ClassVar[str] = "mIoU"

    def __init__(self, images: MaskedImages, segmenter: Segmenter, resamples: int = 1000) -> None:
        self.images: MaskedImages = images
        self.segmenter, self.resamples = segmenter, resamples
        _confusion()

    def targets(self, batch: Batch) -> list[Tensor]:
        """The true index map (H, W) of each image."""
        return [self._truth(place, name) for place, name in zip(batch.labels.tolist(), batch.names)]

    def _truth(self, place: int, name: str) -> Tensor:
        path = self.images.masks[place]
        truth = read_image(path, f"{path.name} (the mask of {name})", self.segmenter.truth, scaled=False)
        if truth.ndim != 2:
            raise TiledSEError(f"mask {path.name}: expected an index map (H, W), got {tuple(truth.shape)}")
        values = set(truth.unique().tolist()) - {self.segmenter.ignore}
        beyond = [value for value in values if not 0 <= value < len(self.segmenter.classes)]
        if beyond:
            raise TiledSEError(
                f"mask {path.name} has class {beyond[0]}, but the network has {len(self.segmenter.classes)} "
                f"(0 to {len(self.segmenter.classes) - 1}); map the masks in an --adapter"
            )
        return truth

    def judge(self, batch: Batch, targets: Any, output: Any, who: str) -> list[np.ndarray]:
        """See Task."""
        sizes = [(int(t.shape[0]), int(t.shape[1])) for t in targets]
        with told_as(f"the adapter fails on what the {who} network gives"):
            found = self.segmenter.segment(output, sizes)
        if len(found) != len(targets):
            raise TiledSEError(f"the adapter gave {len(found)} maps for a batch of {len(targets)} images")
        results = []
        for predicted, truth, name in zip(found, targets, batch.names):
            predicted = torch.as_tensor(predicted)
            if predicted.shape != truth.shape or predicted.is_floating_point():
                raise TiledSEError(
                    f"image {name}: the adapter gave a map of {tuple(predicted.shape)}, {predicted.dtype}; expected "
                    f"class indices of shape {tuple(truth.shape)}, as the mask"
                )
            if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < len(
                self.segmenter.classes
            ):
                raise TiledSEError(
                    f"image {name}: the adapter gave class {int(predicted.max())}; the network has "
                    f"{len(self.segmenter.classes)} classes"
                )
            results.append(self._count(predicted.cpu(), truth))
        return results

    def _count(self, predicted: Tensor, truth: Tensor) -> np.ndarray:
        classes = len(self.segmenter.classes)
        return confusion(predicted, truth, classes, self.segmenter.ignore).numpy().astype(np.int64)

    def _scored(self) -> list[int]:
        scored = self.segmenter.scored
        return list(range(len(self.segmenter.classes)) if scored is None else scored)

    def mean_iou(self, matrices: np.ndarray) -> np.ndarray:
        """``mean_iou`` of the scored classes."""
        return mean_iou(matrices, self._scored())

    def score(self, results: Sequence[np.ndarray]) -> dict[str, float]:
        """mIoU over all pixels, mIoU_image (mean of the images' own), pixel accuracy, and the IoU of each class."""
        stacked = np.stack(results)
        whole = stacked.sum(0)
        iou = 100 * _iou(whole)
        scores = {
            "mIoU": float(self.mean_iou(whole)),
            "mIoU_image": float(np.nanmean(self.mean_iou(stacked))),
            "pixel_accuracy": pixel_accuracy(whole),
        }
        return scores | {
            f"IoU_{self.segmenter.classes[c]}": float(iou[c]) for c in self._scored() if np.isfinite(iou[c])
        }

    def alone(self, results: Sequence[np.ndarray]) -> np.ndarray:
        """(images,): mean IoU of each image by itself."""
        return self.mean_iou(np.stack(results))

    def compare(self, se: Sequence[np.ndarray], tse: Sequence[np.ndarray]) -> Paired:
        """Interval and p-value from drawing images again; images are lost and gained by their own mean IoU."""
        first, second = np.stack(se), np.stack(tse)
        n, classes = first.shape[:2]
        weights = resampled_weights(n, self.resamples)

        def drawn(matrices: np.ndarray) -> np.ndarray:
            return self.mean_iou((weights @ matrices.reshape(n, -1)).reshape(-1, classes, classes))

        low, high, p_value = bootstrap_interval(drawn(first) - drawn(second))
        a, b = self.alone(se), self.alone(tse)
        lost, gained = int((b < a - 1e-9).sum()), int((b > a + 1e-9).sum())
        drop = float(self.mean_iou(first.sum(0)) - self.mean_iou(second.sum(0)))
        return Paired(n - lost - gained, lost, gained, p_value, drop, (low, high))


def confusion(predicted: Tensor, truth: Tensor, classes: int, ignore: int | None) -> Tensor:
    """Pixels by true class (rows) and predicted class: (classes, classes) int64, where the maps are.

    Args:
        predicted: Index maps of any shape.
        truth: Of the same shape.
        classes: How many there are.
        ignore: Pixels with this true class are left out; None leaves out none.

    Raises:
        TiledSEError: torchmetrics is not installed.
    """
    return _confusion()(predicted.long(), truth.long(), classes, ignore_index=ignore, validate_args=False)


def mean_iou(matrices: np.ndarray, scored: Sequence[int] | None = None) -> np.ndarray:
    """Mean IoU in percent of confusion matrices (..., classes, classes), over the classes that are there.

    Example:
        >>> float(mean_iou(np.array([[2, 0], [0, 3]])))
        100.0
    """
    iou = _iou(matrices)
    iou = iou if scored is None else iou[..., list(scored)]
    there = np.isfinite(iou)
    with np.errstate(invalid="ignore"):
        return 100 * np.where(there, iou, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Percent of the pixels of a confusion matrix that have their true class.

    Example:
        >>> pixel_accuracy(np.array([[2, 1], [1, 0]]))
        50.0
    """
    return float(100 * np.trace(matrix) / max(1, matrix.sum()))


def _iou(matrices: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; not-a-number where a class is neither true nor predicted."""
    both = np.diagonal(matrices, axis1=-2, axis2=-1)
    either = matrices.sum(-1) + matrices.sum(-2) - both
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(either > 0, both / np.where(either > 0, either, 1), np.nan)


def _confusion() -> Any:
    try:
        from torchmetrics.functional.classification import multiclass_confusion_matrix
    except ImportError as error:
        raise missing("segmentation needs", "torchmetrics", error=error) from error
    return multiclass_confusion_matrix
