"""COCO's average precision for any weighting of the images, so that images can be drawn again and again.

``pycocotools`` matches detections with true boxes and gives the numbers that are printed. Its matches are kept here,
and AP is summed from them with each image counted as often as it was drawn: the same as evaluating the drawn set.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

STATISTICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_CHUNK = 2_000_000  # numbers worked on at a time


class Matches:
    """Detections of one network on some images, matched with the true boxes.

    Args:
        truth: pycocotools' COCO with the annotations.
        image_ids: The images, in the order in which weights are given.
        detections: For each image (K, 6): x1, y1, x2, y2, score, category id.

    Attributes:
        statistics: COCO's, in percent; not-a-number where there is no true box of that size.
    """

    def __init__(self, truth: Any, image_ids: Sequence[int], detections: Sequence[np.ndarray]) -> None:
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            evaluation = COCOeval(truth, _results(truth, image_ids, detections), "bbox")
            evaluation.params.imgIds = list(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = np.where(evaluation.stats[:6] < 0, np.nan, 100 * evaluation.stats[:6])
        self.statistics = dict(zip(STATISTICS, map(float, values), strict=True))
        self.images = len(image_ids)
        self._thresholds = evaluation.params.recThrs
        self._categories = list(self._sorted(evaluation, image_ids))

    def _sorted(self, evaluation: Any, image_ids: Sequence[int]) -> Any:
        """For each category: scores falling, which detections are right at each IoU, and true boxes an image."""
        params = evaluation.params
        order = {image: place for place, image in enumerate(image_ids)}
        areas, images = len(params.areaRng), len(params.imgIds)
        for number in range(len(params.catIds)):
            start = number * areas * images  # the first area is "all"
            entries = [e for e in evaluation.evalImgs[start : start + images] if e is not None]
            if not entries:
                continue
            limit = params.maxDets[-1]
            scores = np.concatenate([e["dtScores"][:limit] for e in entries])
            right = np.concatenate([e["dtMatches"][:, :limit] > 0 for e in entries], 1)
            skipped = np.concatenate([e["dtIgnore"][:, :limit] > 0 for e in entries], 1)
            image = np.concatenate(
                [np.full(len(e["dtScores"][:limit]), order[e["image_id"]]) for e in entries]
            )
            boxes = np.zeros(len(image_ids))
            for e in entries:
                boxes[order[e["image_id"]]] += np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
            if not boxes.any():
                continue
            by_score = np.argsort(-scores, kind="mergesort")
            right, skipped, image = right[:, by_score], skipped[:, by_score], image[by_score]
            # What is found after the last true box is found changes no precision that is read off.
            hits = np.flatnonzero((right & ~skipped).any(0))
            end = hits[-1] + 1 if len(hits) else 0
            yield right[:, :end] & ~skipped[:, :end], ~right[:, :end] & ~skipped[:, :end], image[:end], boxes

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """AP in percent for each row of weights.

        Args:
            weights: (samples, images): how often each image counts.

        Returns:
            (samples,); not-a-number where no image that counts has a true box.
        """
        weights = np.asarray(weights, np.float64)
        total, number = np.zeros(len(weights)), np.zeros(len(weights))
        for right, wrong, image, boxes in self._categories:
            step = max(1, _CHUNK // max(1, right.size))
            for at in range(0, len(weights), step):
                w = weights[at : at + step]
                true = w @ boxes
                there = true > 0
                number[at : at + step] += there
                if right.size and there.any():
                    total[at : at + step][there] += self._category(
                        right, wrong, w[there][:, image], true[there]
                    )
        with np.errstate(invalid="ignore"):
            return 100 * total / np.where(number > 0, number, np.nan)

    def _category(self, right: np.ndarray, wrong: np.ndarray, w: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Mean over IoU and recall thresholds of one category's precision: (samples,)."""
        good = np.cumsum(w[:, None] * right, 2)
        bad = np.cumsum(w[:, None] * wrong, 2)
        precision = good / (good + bad + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, :, ::-1], 2)[:, :, ::-1]
        recall = good / true[:, None, None]
        samples, ious, length = recall.shape
        # How many thresholds each recall reaches: whole numbers, so that all rows can be lifted into one rising
        # sequence and searched at once without rounding.
        count = len(self._thresholds)
        reached = np.searchsorted(self._thresholds, recall.ravel(), side="right").reshape(-1, length)
        lift = (count + 1) * np.arange(samples * ious)[:, None]
        place = np.searchsorted(
            (reached + lift).ravel(), (np.arange(1, count + 1) + lift).ravel(), side="left"
        )
        place = place.reshape(-1, count) - np.arange(samples * ious)[:, None] * length
        padded = np.concatenate([precision.reshape(-1, length), np.zeros((samples * ious, 1))], 1)
        read = np.take_along_axis(padded, np.minimum(place, length), 1)
        return read.reshape(samples, -1).mean(1)


def _results(truth: Any, image_ids: Sequence[int], detections: Sequence[np.ndarray]) -> Any:
    """Detections as pycocotools has them; its own loader fails where there is none at all."""
    from pycocotools.coco import COCO

    results = COCO()
    entries: list[dict[str, Any]] = []
    for image, rows in zip(image_ids, detections, strict=True):
        for x1, y1, x2, y2, score, category in np.asarray(rows, np.float64).tolist():
            wide, high = x2 - x1, y2 - y1
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": [x1, y1, wide, high],
                    "score": score,
                    "area": wide * high,
                    "iscrowd": 0,
                }
            )
    results.dataset = {
        "images": truth.dataset["images"],
        "categories": truth.dataset["categories"],
        "annotations": entries,
    }
    results.createIndex()
    return results
