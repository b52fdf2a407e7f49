"""What an evaluation of two classifiers found, and what the difference is worth."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..files import written_whole
from .statistics import drop_interval, mcnemar_p_value


class ImageResult(NamedTuple):
    """What both networks say about one image.

    Args:
        name: Of the image.
        label: The true class.
        se: The class that SE puts first.
        tse: The class that TSE puts first.
        se_top5: Whether the label is among SE's first five.
        tse_top5: Whether the label is among TSE's first five.
    """

    name: str
    label: int
    se: int
    tse: int
    se_top5: bool
    tse_top5: bool

    @property
    def outcome(self) -> str:
        """``kept`` (both right), ``lost`` (only SE is), ``gained`` (only TSE is) or ``wrong`` (neither)."""
        return {(True, True): "kept", (True, False): "lost", (False, True): "gained"}.get(
            (self.se == self.label, self.tse == self.label), "wrong"
        )


@dataclass(frozen=True)
class Accuracy:
    """How often one network is right.

    Args:
        n: Images.
        correct: Images whose label comes first.
        correct5: Images whose label is among the first five; all, for a network of five classes or fewer.
    """

    n: int
    correct: int
    correct5: int

    @property
    def top1(self) -> float:
        """Percent of images."""
        return 100 * self.correct / self.n

    @property
    def top5(self) -> float:
        """Percent of images."""
        return 100 * self.correct5 / self.n


@dataclass(frozen=True)
class Evaluation:
    """The accuracies of SE and TSE on the same images, and what their difference is worth.

    Args:
        images: One result for each image, in the order of the set.

    Example:
        >>> row = ImageResult("cat.jpg", 281, 281, 281, True, True)
        >>> print(Evaluation((row, row._replace(name="dog.jpg", tse=3), row)))
        3 images
               top-1 %  top-5 %
        SE      100.00   100.00
        TSE      66.67   100.00
        same prediction on 2 images
        TSE lost 1 and gained 0 images (exact paired p = 1)
        top-1 drops by 33.33 percentage points, 95 % interval -45.59 to 85.59
    """

    images: tuple[ImageResult, ...]

    @property
    def n(self) -> int:
        """Images."""
        return len(self.images)

    @property
    def se(self) -> Accuracy:
        """Of the network with plain SE."""
        return Accuracy(
            self.n, sum(i.se == i.label for i in self.images), sum(i.se_top5 for i in self.images)
        )

    @property
    def tse(self) -> Accuracy:
        """Of the network with tiles."""
        return Accuracy(
            self.n, sum(i.tse == i.label for i in self.images), sum(i.tse_top5 for i in self.images)
        )

    @property
    def agree(self) -> int:
        """Images for which both networks put the same class first, right or wrong."""
        return sum(i.se == i.tse for i in self.images)

    @property
    def lost(self) -> int:
        """Images that SE has right and TSE has not."""
        return sum(i.outcome == "lost" for i in self.images)

    @property
    def gained(self) -> int:
        """Images that TSE has right and SE has not."""
        return sum(i.outcome == "gained" for i in self.images)

    @property
    def p_value(self) -> float:
        """McNemar's exact p-value of lost and gained (``statistics.mcnemar_p_value``)."""
        return mcnemar_p_value(self.lost, self.gained)

    @property
    def drop(self) -> float:
        """Top-1 of SE less that of TSE, in percentage points; above 0 where TSE is worse."""
        return 100 * (self.lost - self.gained) / self.n

    @property
    def drop_ci95(self) -> tuple[float, float]:
        """95 % interval of ``drop``, in percentage points (``statistics.drop_interval``)."""
        low, high = drop_interval(self.lost, self.gained, self.n)
        return 100 * low, 100 * high

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: top1, top5 in percent, agree, lost, gained in images, drops in percentage points."""
        return {
            "task": "classify",
            "n": self.n,
            "se": {"top1": self.se.top1, "top5": self.se.top5},
            "tse": {"top1": self.tse.top1, "top5": self.tse.top5},
            "paired": {
                "agree": self.agree,
                "lost": self.lost,
                "gained": self.gained,
                "p_value": self.p_value,
            },
            "drop": self.drop,
            "drop_ci95": list(self.drop_ci95),
        }

    def __str__(self) -> str:
        low, high = self.drop_ci95
        return "\n".join(
            [
                f"{self.n} images",
                f"{'':5}  top-1 %  top-5 %",
                f"{'SE':5}  {self.se.top1:7.2f}  {self.se.top5:7.2f}",
                f"{'TSE':5}  {self.tse.top1:7.2f}  {self.tse.top5:7.2f}",
                f"same prediction on {self.agree} images",
                f"TSE lost {self.lost} and gained {self.gained} images (exact paired p = {self.p_value:.2g})",
                f"top-1 drops by {self.drop:.2f} percentage points, 95 % interval {low:.2f} to {high:.2f}",
            ]
        )

    def save_images(self, path: str | Path) -> None:
        """Write one line for each image as CSV: file, label, se, tse, outcome.

        Raises:
            TiledSEError: the file cannot be written.
        """
        with written_whole(path) as part_file, part_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "label", "se", "tse", "outcome"])
            writer.writerows([i.name, i.label, i.se, i.tse, i.outcome] for i in self.images)
