"""Detection as a task: COCO's annotations, COCO's average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..data.images import Batch, ListedImages, Sample
from ..data.preprocessing import read_image
from ..documents import read_json
from ..errors import TiledSEError, first_line, told_as
from ..extras import missing
from ..numerals import quoted, real, text_of, whole
from .adapters import Detector
from .average_precision import Matches
from .statistics import bootstrap_interval, resampled_weights
from .tasks import Paired, Task


class CocoImages(ListedImages):
    """The images of a COCO annotation file.

    Args:
        path: The file.
        detector: Makes the inputs.
        folder: What the file's ``file_name`` are relative to; left out, the file's own folder.
        slivers: Whether boxes without width or height are taken, as COCO's train2017 has two; no detection can match
            one, so they are nothing to measure with.

    Raises:
        TiledSEError: no such file, no COCO annotations, no image, an image that is missing, an annotation of an image
            or category that is not listed, a box that is none or reaches out of its image by more than a pixel.
    """

    def __init__(
        self, path: str | Path, detector: Detector, folder: str | Path | None = None, slivers: bool = False
    ) -> None:
        path = Path(path)
        self.truth = _read(path, slivers)
        data = self.truth.dataset
        root = path.parent if folder is None else Path(folder)
        self.ids = [image["id"] for image in data["images"]]
        self.sizes = [(image.get("width"), image.get("height")) for image in data["images"]]
        for image in data["images"]:
            if not (root / image["file_name"]).is_file():
                raise TiledSEError(
                    f"{path}: there is no image {image['file_name']} in {root}; say where they are with --images-dir"
                )
        self.categories = {category["id"] for category in data["categories"]}
        files = [(image["file_name"], place) for place, image in enumerate(data["images"])]
        super().__init__(root, files, detector.prepare)

    def sample(self, index: int) -> Sample:
        """Read one image; it must have the size that its annotation says."""
        name, place = self.files[index]

        def prepare(image: Any) -> Tensor:
            said = self.sizes[place]
            if None not in said and image.size != said:
                raise TiledSEError(
                    f"it is {image.width}x{image.height} (width x height), but its annotations are for "
                    f"{said[0]}x{said[1]}; give the images that were annotated"
                )
            self.sizes[place] = image.size
            for entry in self.truth.imgToAnns[self.ids[place]] if None in said else ():
                try:  # only now is it known how large the image is
                    _check_box(entry, image.size, True)
                except ValueError as error:
                    raise TiledSEError(f"annotation {entry['id']}: {error}; mend it or take it out") from None
            return self.preprocess(image)

        return Sample(read_image(self.folder / name, name, prepare), place, name, (0, index))


def _read(path: Path, slivers: bool) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise missing("detection needs", "pycocotools", error=error) from error
    try:
        data = read_json(path.read_bytes(), finite=False)
    except OSError as error:
        raise TiledSEError(f"cannot read annotations {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TiledSEError(f"{path} is no COCO annotation file: {first_line(error)}") from error
    lacking = [
        k for k in ("images", "annotations", "categories") if not isinstance(data, dict) or k not in data
    ]
    if lacking:
        raise TiledSEError(f"{path} is no COCO annotation file: it has no '{lacking[0]}'")
    for kind in ("images", "annotations", "categories"):
        if not isinstance(data[kind], list):
            raise TiledSEError(f"{path} is no COCO annotation file: its {kind} are no list")
    if not data["images"]:
        raise TiledSEError(f"{path} lists no image: the set is empty")
    if not data["categories"]:
        raise TiledSEError(f"{path} lists no category; COCO's AP needs them")
    try:
        for kind in ("annotations", "categories"):
            for entry in data[kind]:
                whole(entry["id"], f"id in {kind}", 0)
        for image in data["images"]:
            if not isinstance(image["id"], str):
                whole(image["id"], "id in images", 0)
        images = {image["id"]: (image.get("width"), image.get("height")) for image in data["images"]}
        for image in data["images"]:
            text_of(image["file_name"], f"file_name of image {quoted(image['id'])}")
            for side in ("width", "height"):
                if image.get(side) is not None:
                    whole(image[side], f"{side} of image {quoted(image['id'])}")
        categories = {category["id"] for category in data["categories"]}
        for entry in data["annotations"]:
            if entry["image_id"] not in images:
                raise TiledSEError(
                    f"{path}: annotation {entry['id']} is of image {entry['image_id']}, which is not listed"
                )
            if entry["category_id"] not in categories:
                raise TiledSEError(
                    f"{path}: annotation {entry['id']} is of category {entry['category_id']}, which is not listed"
                )
            if len(entry["bbox"]) != 4:
                raise TiledSEError(
                    f"{path}: the box of annotation {entry['id']} has {len(entry['bbox'])} numbers, not 4"
                )
            try:
                _check_box(entry, images[entry["image_id"]], slivers)
            except ValueError as error:
                raise TiledSEError(
                    f"{path}: annotation {entry['id']}: {error}; mend it or take it out"
                ) from None
            entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
            entry.setdefault("iscrowd", 0)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise TiledSEError(f"{path} is no COCO annotation file: {what}") from error
    for kind in ("images", "annotations", "categories"):
        _check_unique(path, kind, [entry["id"] for entry in data[kind]])
    truth = COCO()
    truth.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _check_box(entry: dict[str, Any], size: tuple[int | None, int | None], slivers: bool) -> None:
    """Check that a box is one, and within its image but for a pixel."""
    x, y, wide, high = (real(number, "each number of its box") for number in entry["bbox"])
    least = min(wide, high)
    if least < 0 or (least == 0 and not slivers):
        raise ValueError(f"expected a box of a width and height above 0, got {wide:g} x {high:g}")
    real(entry.get("area", 0), "its area", 0)
    if entry.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"expected iscrowd to be 0 or 1, got {quoted(entry['iscrowd'])}")
    ends = (x + wide, y + high)
    outside = min(x, y) < -1 or any(side is not None and end > side + 1 for end, side in zip(ends, size))
    if outside:
        raise ValueError(
            f"its box ({x:g}, {y:g}, {wide:g} wide, {high:g} high) reaches out of its image of "
            f"{size[0]} x {size[1]} by more than a pixel"
        )


def _check_unique(path: Path, kind: str, ids: list[Any]) -> None:
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise TiledSEError(f"{path}: two of its {kind} have the id {quoted(twice)}; give each its own")


class Detection(Task[np.ndarray]):
    """COCO's average precision; drops are of AP, over IoU 0.5 to 0.95.

    Args:
        images: The set.
        detector: Decodes the outputs.
        resamples: Bootstrap samples for intervals.
    """

    name: ClassVar[str] = "detect"
    metric: ClassVar[str] = "AP"

    def __init__(self, images: CocoImages, detector: Detector, resamples: int = 1000) -> None:
        self.images: CocoImages = images
        self.detector, self.resamples = detector, resamples
        self._known: list[tuple[Sequence[np.ndarray], Matches]] = []

    def targets(self, batch: Batch) -> list[tuple[int, int]]:
        """(width, height) of each image before it was prepared."""
        sizes = []
        for place, name in zip(batch.labels.tolist(), batch.names):
            size = self.images.sizes[place]
            if None in size:  # read in a worker, and the annotations do not say
                from PIL import Image

                with Image.open(self.images.folder / name) as image:
                    size = image.size
            sizes.append(size)
        return sizes

    def judge(self, batch: Batch, targets: Any, output: Any, who: str) -> list[np.ndarray]:
        """See Task; the detections of each image, at most the 100 with the highest scores in each category."""
        with told_as(f"the adapter fails on what the {who} network gives"):
            found = self.detector.detect(output, targets)
        if len(found) != len(batch.names):
            raise TiledSEError(
                f"the adapter gave detections of {len(found)} images for a batch of {len(batch.names)}; expected one "
                "array an image"
            )
        return [self._checked(rows, name, who) for rows, name in zip(found, batch.names)]

    def _checked(self, rows: Any, name: str, who: str) -> np.ndarray:
        array = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows, np.float32)
        if array.size == 0:
            return np.zeros((0, 6), np.float32)
        if array.ndim != 2 or array.shape[1] != 6:
            raise TiledSEError(
                f"image {name}: the adapter gave detections of shape {array.shape}; expected (K, 6): x1, y1, x2, y2, "
                "score, category id"
            )
        if not np.isfinite(array).all():
            raise TiledSEError(f"image {name}: the {who} network's detections are not finite")
        unknown = set(array[:, 5].astype(int).tolist()) - self.images.categories
        if unknown:
            raise TiledSEError(
                f"image {name}: the adapter gave category {min(unknown)}, which the annotations do not have "
                f"(they have {len(self.images.categories)}, {min(self.images.categories)} to "
                f"{max(self.images.categories)}); map the network's classes to the annotations' ids"
            )
        return array

    def matches(self, results: Sequence[np.ndarray]) -> Matches:
        """Match the detections of all images; those of one network are matched once."""
        for known, matches in self._known:
            if known is results:
                return matches
        if len(results) != len(self.images.ids):
            raise TiledSEError(f"{len(results)} results for {len(self.images.ids)} images")
        matches = Matches(self.images.truth, self.images.ids, results)
        # The first is the SE network's, which all others are compared with; of the others the last will do.
        self._known = [*self._known[:1], (results, matches)]
        return matches

    def score(self, results: Sequence[np.ndarray]) -> dict[str, float]:
        """AP, AP50, AP75 and AP by size, in percent, from pycocotools."""
        return self.matches(results).statistics

    def alone(self, results: Sequence[np.ndarray]) -> np.ndarray:
        """(images,): AP of each image by itself; not-a-number where it has no true box."""
        matches = self.matches(results)
        return matches.average_precision(np.eye(matches.images))

    def compare(self, se: Sequence[np.ndarray], tse: Sequence[np.ndarray]) -> Paired:
        """Interval and p-value from drawing images again; images are lost and gained by the AP of each alone."""
        first, second = self.matches(se), self.matches(tse)
        a, b = self.alone(se), self.alone(tse)
        weights = resampled_weights(first.images, self.resamples)
        drops = first.average_precision(weights) - second.average_precision(weights)
        low, high, p_value = bootstrap_interval(drops)
        lost, gained = int((b < a - 1e-9).sum()), int((b > a + 1e-9).sum())
        drop = first.statistics["AP"] - second.statistics["AP"]
        return Paired(first.images - lost - gained, lost, gained, p_value, drop, (low, high))
