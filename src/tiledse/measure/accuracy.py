"""Accuracy of SE and TSE side by side, image by image."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import TiledSEError
from ..files import written_whole
from ..networks.modes import evaluating
from .images import Batch, ImageSet
from .processes import gather, part, together
from .statistics import drop_interval, mcnemar_p_value

Runner = Callable[[Tensor], Tensor]
Progress = Callable[[int, int | None], None]


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
        same prediction on 2 images; TSE lost 1 and gained 0 (exact paired p = 1)
        drop 33.33 percentage points, 95 % interval -45.59 to 85.59
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
                f"same prediction on {self.agree} images; TSE lost {self.lost} and gained {self.gained} "
                f"(exact paired p = {self.p_value:.2g})",
                f"drop {self.drop:.2f} percentage points, 95 % interval {low:.2f} to {high:.2f}",
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


def evaluate(
    se: Runner,
    tse: Runner,
    data: ImageSet,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy of two classifiers over the same batches, in one pass.

    Under torchrun (``processes.joined_processes``) each process takes every n-th batch, or every n-th shard,
    and all get the whole result. The batches are those of one process, and so are the numbers.

    Args:
        se: The network with plain SE: (N, C, H, W) on ``device`` to logits (N, classes). A module runs in
            eval mode and is left in the mode that it had.
        tse: The network with tiles, likewise (``convert_shared`` makes it without a copy of the weights).
        data: The images, from ``open_images``.
        batch_size: Images in a batch.
        workers: Processes that read ahead; 0 reads in this one.
        device: Where inputs go; the networks are there already.
        amp: Autocast to this dtype, such as torch.bfloat16; None leaves the networks' own.
        progress: Called with (images done, images in all or None) of this process after each batch.

    Raises:
        TiledSEError: an image cannot be read, a label is outside the network's classes, logits are not
            finite, or there is no image.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from tiledse.measure.images import open_images
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in "black", "white":
        ...     Image.new("RGB", (8, 8), name).save(folder / f"{name}.png")
        >>> _ = (folder / "labels.csv").write_text("file,label\\nblack.png,0\\nwhite.png,1\\n")
        >>> grey = lambda image: torch.full((3, 8, 8), image.getpixel((0, 0))[0] / 255)
        >>> data = open_images(folder, grey)
        >>> bright = lambda x: torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)
        >>> evaluate(bright, lambda x: -bright(x), data).to_dict()["paired"]
        {'agree': 0, 'lost': 2, 'gained': 0, 'p_value': 0.5}
    """
    device = torch.device(device)

    def judge_part() -> list[tuple[tuple[int, int], ImageResult]]:
        found: list[tuple[tuple[int, int], ImageResult]] = []
        total = data.count(max(batch_size, 1), part())
        for batch, first, second in run_pair(
            se, tse, data, batch_size=batch_size, workers=workers, device=device, amp=amp
        ):
            found += _judge(batch, first, second, data.classes)
            if progress is not None:
                progress(len(found), total)
        return found

    results = sorted(result for found in gather(together(judge_part)) for result in found)
    if not results:
        raise TiledSEError("no image to evaluate: the set is empty")
    return Evaluation(tuple(result for _, result in results))


def run_pair(
    se: Runner,
    tse: Runner,
    data: ImageSet,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Run both networks over this process's part of the images; what they give is not looked at.

    Yields:
        (batch, what ``se`` gave, what ``tse`` gave).
    """
    pinned = device.type == "cuda"
    with ExitStack() as stack:
        for network in (se, tse):
            if isinstance(network, nn.Module):
                stack.enter_context(evaluating(network))
        for batch in data.batches(batch_size, workers, part(), pin_memory=pinned):
            inputs = batch.inputs.to(device, non_blocking=pinned)
            with torch.inference_mode(), torch.autocast(device.type, amp, enabled=amp is not None):
                first, second = se(inputs), tse(inputs)
            yield batch, first, second


def _judge(
    batch: Batch, se: Tensor, tse: Tensor, classes: int | None
) -> list[tuple[tuple[int, int], ImageResult]]:
    """The results of one batch, with their places in the set."""
    for who, logits in (("SE", se), ("TSE", tse)):
        check_logits(batch, logits, who, classes)
    width = se.shape[1]
    if tse.shape[1] != width:
        raise TiledSEError(
            f"SE gives {width} classes and TSE {tse.shape[1]}; expected two forms of one network"
        )
    columns = []
    for logits in (se, tse):
        # One sort decides both, so that ties cannot put a label first and yet not among five.
        ranked = logits.topk(min(5, width), dim=1).indices.cpu()
        columns += [ranked[:, 0].tolist(), (ranked == batch.labels[:, None]).any(1).tolist()]
    rows = zip(batch.places.tolist(), batch.names, batch.labels.tolist(), *columns, strict=True)
    return [
        ((place[0], place[1]), ImageResult(name, label, first, second, first5, second5))
        for place, name, label, first, first5, second, second5 in rows
    ]


def check_logits(batch: Batch, logits: object, who: str, classes: int | None) -> None:
    """Check that a network gives logits of classes that the labels are among.

    Args:
        batch: The images and labels.
        logits: What the network gives.
        who: What messages call it.
        classes: How many classes the labels were numbered from; None where that is not known.

    Raises:
        TiledSEError: no logits, not finite (the image is named), or labels outside their classes.
    """
    count = len(batch.names)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != count:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TiledSEError(
            f"the {who} network is no classifier: expected logits of shape ({count}, classes), got {got}"
        )
    bad = ~(logits < float("inf")).all(1)  # not a number, or overflowed
    if bad.any():
        name = batch.names[int(bad.int().argmax())]
        raise TiledSEError(
            f"image {name}: the {who} network's logits are not finite; check its weights, or evaluate in float32"
        )
    width = logits.shape[1]
    if classes is not None and classes != width:
        raise TiledSEError(
            f"labels that do not match: the set has {classes} class folders, the network {width} classes; "
            "give --class-map with the name of a folder a line, in the order of the network's classes"
        )
    high = batch.labels >= width
    if high.any():
        at = int(high.int().argmax())
        raise TiledSEError(
            f"labels that do not match: image {batch.names[at]} has label {int(batch.labels[at])}, but the "
            f"network has {width} classes (0 to {width - 1})"
        )
