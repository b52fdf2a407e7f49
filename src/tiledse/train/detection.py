"""Detection: EfficientDet as effdet trains it, average precision as COCO has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from ..data.pixels import BROKEN, opened
from ..errors import TiledSEError, first_line
from ..evaluate.adapters import IMAGENET_MEAN, IMAGENET_STD, Detector, effdet_detector
from ..evaluate.average_precision import Matches
from ..evaluate.detection import CocoImages
from ..evaluate.processes import gather, part
from ..networks.detector import build_detector
from ..networks.weights import read_state
from .images import Epochs, Ticket, TrainingImages, _seeded, mix
from .objective import Objective, Setting
from .recipe import Recipe
from .sections import Augment
from .variants import load_fitting


class Detection(Objective):
    """Images with boxes: COCO as it is distributed, or ``instances_train.json`` and ``instances_val.json``."""

    metric: ClassVar[str] = "AP"

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        for key, plain in (("subset", 1.0), ("cache", 0)):
            if getattr(recipe, key) != plain:
                raise TiledSEError(f"recipe: {key} does not go with detect; leave it out")
        network = build_detector(self.model, recipe.classes, recipe.input_size)
        self._config: Any = network.config
        self._detector = effdet_detector(network, recipe.input_size)
        self._source = open_boxes(setting.data[0], "train", self._detector)
        self._held = open_boxes(setting.data[0], "val", self._detector)
        self._categories = categories_by_label(self._source, recipe.classes)
        if missing := self._held.categories - set(self._categories.values()):
            raise TiledSEError(
                f"val has the category {min(missing)}, and train has it not; give annotations of one set of categories"
            )

    def build(self) -> nn.Module:
        """See Objective."""
        return build_detector(self.model, self.recipe.classes, self.recipe.input_size)

    def load(self, model: nn.Module, path: Path) -> None:
        """Weights of a whole detector, or of its backbone from classification."""
        whole = any(key.startswith("backbone.") for key in read_state(path))
        load_fitting(model if whole else model.backbone, path)  # type: ignore[arg-type]

    def trained(self, model: nn.Module) -> nn.Module:
        """The network inside effdet's bench, which gives the loss: focal, and Huber's of the boxes."""
        from effdet import DetBenchTrain

        return DetBenchTrain(model, create_labeler=False)

    def images(self, seed: int) -> TrainingImages:
        """See Objective."""
        return Boxed(self._source, self._categories, self._config, self.recipe.augment, seed)

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """See ``trained``."""
        return model(inputs, targets)["loss"]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """AP, AP50, AP75 and AP by size in percent; sizes of which there is no box are left out."""
        from ..evaluate.tasks import check_finite

        found: list[tuple[int, np.ndarray]] = []
        batch_size = min(self.setting.evaluation_batch, 16)
        for batch in self._held.batches(batch_size, self.setting.workers, part()):
            output = model(batch.inputs.to(self.setting.device))
            check_finite(output, batch.names, "trained")
            places = batch.labels.tolist()
            rows = self._detector.detect(tree_map(Tensor.float, output), self._sizes(places, batch.names))
            found += zip(places, (self._numbered(one) for one in rows))
        every = dict(pair for pairs in gather(found) for pair in pairs)
        statistics: dict[str, float] = {}
        if part()[0] == 0:  # matching takes long, and one process can do it for all
            rows = [every[place] for place in range(len(self._held.ids))]
            statistics = Matches(self._held.truth, self._held.ids, rows).statistics
        statistics = gather(statistics)[0]
        return {key: value for key, value in statistics.items() if not np.isnan(value)}

    def _sizes(self, places: Sequence[int], names: Sequence[str]) -> list[tuple[int, int]]:
        sizes = []
        for place, name in zip(places, names, strict=True):
            if None in self._held.sizes[place]:  # read in a worker, and the annotations do not say
                with Image.open(self._held.folder / name) as image:
                    self._held.sizes[place] = image.size
            sizes.append(self._held.sizes[place])
        return sizes

    def _numbered(self, rows: np.ndarray) -> np.ndarray:
        """Labels of the head as category ids; the head may have labels that no category has."""
        rows = np.asarray(rows, np.float32).reshape(-1, 6)
        known = np.isin(rows[:, 5].astype(int), list(self._categories))
        rows = rows[known]
        rows[:, 5] = [self._categories[int(label)] for label in rows[:, 5]]
        return rows


class Boxed(TrainingImages):
    """Images with boxes, flipped, scaled and cropped by effdet, labelled anchor by anchor as they are read.

    Args:
        source: The images; their ``prepare`` is not used.
        categories: Category id of each label from 1.
        config: effdet's, of the network.
        augment: ``flip`` and ``resize_range`` are used.
        seed: Of the variation.
    """

    def __init__(
        self, source: CocoImages, categories: dict[int, int], config: Any, augment: Augment, seed: int
    ) -> None:
        from effdet.anchors import AnchorLabeler, Anchors
        from effdet.data.loader import DetectionFastCollate
        from effdet.data.transforms import Compose, ImageToNumpy, RandomFlip, RandomResizePad

        self._source, self._seed = source, seed
        self._labels = {category: label for label, category in categories.items()}
        mean = tuple(round(255 * value) for value in IMAGENET_MEAN)
        self._vary = Compose(
            [
                RandomFlip(horizontal=True, prob=augment.flip),
                RandomResizePad(tuple(config.image_size), augment.resize_range, fill_color=mean),
                ImageToNumpy(),
            ]
        )
        labeler = AnchorLabeler(Anchors.from_config(config), config.num_classes)
        self._together = DetectionFastCollate(anchor_labeler=labeler)
        self._mean, self._std = (
            255 * torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD)
        )

    def __len__(self) -> int:
        return len(self._source.ids)

    def boxes(self, index: int) -> dict[str, np.ndarray]:
        """Boxes (K, 4) as effdet has them (y1, x1, y2, x2) and labels (K,) from 1; crowds and slivers are left out."""
        truth = self._source.truth
        entries = truth.loadAnns(truth.getAnnIds(imgIds=[self._source.ids[index]]))
        entries = [e for e in entries if not e["iscrowd"] and min(e["bbox"][2:]) >= 1]
        rows = [(y, x, y + h, x + w) for x, y, w, h in (entry["bbox"] for entry in entries)]
        labels = [self._labels[entry["category_id"]] for entry in entries]
        return {
            "bbox": np.array(rows, np.float32).reshape(-1, 4),
            "cls": np.array(labels, np.int64),
        }

    def __getitem__(self, ticket: Ticket) -> tuple[np.ndarray, dict[str, Any]]:
        epoch, index = ticket
        name = self._source.files[index][0]
        try:
            with opened(self._source.folder / name) as image:
                pixels = image.convert("RGB")
            with _seeded(mix(self._seed, epoch, index)):
                return self._vary(pixels, self.boxes(index))
        except TiledSEError as error:
            raise TiledSEError(f"image {name}: {error}") from error
        except BROKEN as error:
            raise TiledSEError(
                f"image {name}: cannot be read or resized: {first_line(error)}; replace it or take it out of the set"
            ) from error

    def loader(self, batches: Epochs, workers: int, pinned: bool) -> DataLoader[Any]:
        """See TrainingImages."""
        return DataLoader(
            self, batch_sampler=batches, num_workers=workers, pin_memory=pinned, persistent_workers=workers > 0,
            collate_fn=self._together,
        )  # fmt: skip

    def ready(self, batch: Any, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, 3, H, W) normalised, and the labels of all anchors."""
        images, targets = batch
        mean, std = self._mean.to(device), self._std.to(device)
        targets = {key: value.to(device, non_blocking=True) for key, value in targets.items()}
        return (images.to(device, non_blocking=True).float() - mean) / std, targets


def open_boxes(data: Path, name: str, detector: Detector) -> CocoImages:
    """The part ``train`` or ``val`` of a COCO folder, as it is distributed or with the files side by side.

    Raises:
        TiledSEError: neither layout is there; and what ``CocoImages`` refuses.
    """
    if not data.is_dir():
        raise TiledSEError(f"no data at {data}: there is no such folder")
    listed = data / f"instances_{name}.json"
    if listed.is_file():
        return CocoImages(listed, detector, data, slivers=name == "train")
    found = sorted((data / "annotations").glob(f"instances_{name}*.json"))
    if not found:
        raise TiledSEError(
            f"no '{name}' boxes in {data}: expected annotations/instances_{name}2017.json and {name}2017, as COCO is "
            f"distributed, or instances_{name}.json with file names relative to the folder"
        )
    year = found[-1].stem.removeprefix("instances_")
    images = next((p for p in (data / year, data / "images" / year, data) if p.is_dir()), data)
    return CocoImages(found[-1], detector, images, slivers=name == "train")


def categories_by_label(images: CocoImages, classes: int) -> dict[int, int]:
    """The category id of each label of the head, from 1.

    Ids that are labels already stay, as effdet has COCO's 80 categories with ids to 90 in a head of 90; else they are
    numbered in order.

    Raises:
        TiledSEError: more categories than classes.
    """
    ids = sorted(images.categories)
    if len(ids) > classes:
        raise TiledSEError(
            f"the annotations have {len(ids)} categories, and the recipe {classes} classes; set classes = {len(ids)} "
            "in the recipe, or give the recipe's data"
        )
    if ids[0] >= 1 and ids[-1] <= classes:
        return {number: number for number in ids}
    return {label + 1: number for label, number in enumerate(ids)}
