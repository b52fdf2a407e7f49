"""Segmentation: cross-entropy of each pixel, mean intersection over union."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TiledSEError
from ..evaluate.processes import gather, part
from ..evaluate.segmentation import confusion, mean_iou, pixel_accuracy
from ..networks.segmenter import backbone_of, build_segmenter
from ..networks.weights import read_state
from .classification import own_preprocessing
from .images import Ticket, TrainingImages, mix
from .masks import IGNORED, Masked, open_masked
from .objective import Objective, Setting
from .recipe import Recipe
from .sections import Augment
from .variants import load_fitting


class Segmentation(Objective):
    """LR-ASPP on images with masks; trained on ``train``, judged on ``val`` (and ``test``, where there is one)."""

    metric: ClassVar[str] = "mIoU"

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        data = setting.data[0]
        if not data.is_dir():
            raise TiledSEError(f"no data at {data}: there is no such folder")
        self._source = open_masked(data, "train", recipe.classes)
        self._held = {"": open_masked(data, "val", recipe.classes)}
        if (data / "test_masks").is_dir() or (data / "masks" / "test").is_dir():
            self._held["test_"] = open_masked(data, "test", recipe.classes)
        prepare = own_preprocessing(recipe)
        self._mean, self._std = (
            255 * torch.tensor(numbers, device=setting.device)[:, None, None]
            for numbers in (prepare.mean, prepare.std)
        )
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def build(self) -> nn.Module:
        """See Objective."""
        recipe = self.recipe
        return build_segmenter(self.model, recipe.classes, recipe.input_size, recipe.backbone_stride)

    def load(self, model: nn.Module, path: Path) -> None:
        """Weights of a whole segmenter, or of its backbone from classification."""
        whole = any(key.startswith("backbone.") for key in read_state(path))
        load_fitting(model if whole else backbone_of(model), path)

    def images(self, seed: int) -> TrainingImages:
        """See Objective."""
        recipe = self.recipe
        if recipe.subset != 1:
            raise TiledSEError("recipe: subset goes with classify and distill; leave it out")
        reads = MaskedPictures(
            self._source, recipe.input_size[1:], recipe.augment, self._mean, self._std, seed
        )
        if recipe.cache:
            reads.kept = self._keep(self._source)
        return reads

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """Cross-entropy of the pixels that have a class."""
        return F.cross_entropy(model(inputs)["out"].float(), targets, ignore_index=IGNORED)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """mIoU and pixel accuracy in percent, at the size of the masks; of ``test`` too, as test_mIoU."""
        return {
            f"{name}{key}": value
            for name, held in self._held.items()
            for key, value in self._judge(model, held)
        }

    def _judge(self, model: nn.Module, held: Masked) -> list[tuple[str, float]]:
        number, processes = part()
        classes = self.recipe.classes
        matrix = torch.zeros(classes, classes, dtype=torch.int64, device=self.setting.device)
        indices = range(number, len(held.pairs), processes)
        together = (
            self.setting.evaluation_batch if self.recipe.cache else 1
        )  # sizes may differ where nothing is kept
        for start in range(0, len(indices), together):
            images, mask = self._stacked(held, indices[start : start + together])
            inputs = (images.float() - self._mean) / self._std
            size = self.recipe.input_size[1:]
            if inputs.shape[2:] != size:
                inputs = F.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=True)
            logits = model(inputs)["out"].float()
            if logits.shape[2:] != mask.shape[1:]:
                logits = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=False)
            matrix += confusion(logits.argmax(1), mask, classes, IGNORED)
        whole = torch.stack([one.cpu() for one in gather(matrix)]).sum(0).numpy()
        return [("mIoU", float(mean_iou(whole))), ("pixel_accuracy", pixel_accuracy(whole))]

    def _stacked(self, held: Masked, indices: range) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) and masks (n, H, W) on the device."""
        if self.recipe.cache:
            images, masks = self._keep(held)
            return images[indices.start : indices.stop : indices.step], masks[
                indices.start : indices.stop : indices.step
            ]
        pairs = [held.read(index) for index in indices]
        images, masks = (torch.stack([pair[i] for pair in pairs]).to(self.setting.device) for i in (0, 1))
        return images, masks

    def _keep(self, held: Masked) -> tuple[Tensor, Tensor]:
        if id(held) not in self._kept:
            pairs = [held.read(index) for index in range(len(held.pairs))]
            if len({mask.shape for _, mask in pairs}) > 1:
                raise TiledSEError("recipe: cache = 1 needs images of one size; set cache = 0")
            self._kept[id(held)] = (
                torch.stack([image for image, _ in pairs]).to(self.setting.device),
                torch.stack([mask for _, mask in pairs]).to(self.setting.device),
            )
        return self._kept[id(held)]


class MaskedPictures(TrainingImages):
    """Images and masks, scaled, cropped and flipped on the device.

    Args:
        source: The pairs.
        size: (H, W) of the input.
        augment: ``resize_range`` and ``flip`` are used.
        mean: (3, 1, 1), of values in 0..255.
        std: Likewise.
        seed: Of the variation.

    Attributes:
        kept: Images and masks that are on the device already.
    """

    def __init__(
        self, source: Masked, size: tuple[int, int], augment: Augment, mean: Tensor, std: Tensor, seed: int
    ) -> None:
        self._source, self._size, self._augment, self._seed = source, size, augment, seed
        self._mean, self._std = mean, std
        self.kept: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._source.pairs)

    def __getitem__(self, ticket: Ticket) -> tuple[Any, Any, Tensor]:
        epoch, index = ticket
        row = torch.rand(4, generator=torch.Generator().manual_seed(mix(self._seed, epoch, index)))
        if self.kept is not None:
            return index, index, row
        return (*self._source.read(index), row)

    def ready(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised, and (N, H, W) int64."""
        images, masks, rows = (part.to(device, non_blocking=True) for part in batch)
        if self.kept is not None:
            images, masks = self.kept[0][images], self.kept[1][masks]
        inputs = (images.float() - self._mean) / self._std
        return vary(inputs, masks, self._size, rows, self._augment)


def vary(
    images: Tensor, masks: Tensor, size: tuple[int, int], rows: Tensor, augment: Augment
) -> tuple[Tensor, Tensor]:
    """Scale, crop and flip each image with its mask; what lies outside the image is 0 and ignored.

    Args:
        images: (N, C, h, w).
        masks: (N, h, w).
        size: (H, W) of the results.
        rows: (N, 4) in 0..1: the random numbers of scale, place (x, y) and flip.
        augment: Ranges; a scale of 1 shows as much of the image as the size has of its pixels.

    Returns:
        (N, C, H, W) and (N, H, W) int64.

    Example:
        >>> same = Augment(resize_range=(1.0, 1.0), flip=0.0)
        >>> image, mask = torch.rand(1, 3, 4, 6), torch.arange(24).view(1, 4, 6)
        >>> a, b = vary(image, mask, (4, 6), torch.rand(1, 4), same)
        >>> torch.allclose(a, image, atol=1e-6), torch.equal(b, mask)
        (True, True)
    """
    low, high = augment.resize_range
    factor = low * (high / low) ** rows[:, 0]
    height, width = (side / own / factor for side, own in zip(size, images.shape[2:], strict=True))
    # A window larger than the image lies anywhere that holds all of it.
    x, y = ((2 * place - 1) * (1 - side).abs() for place, side in ((rows[:, 1], width), (rows[:, 2], height)))
    mirror = torch.where(rows[:, 3] < augment.flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta, [len(images), 1, *size], align_corners=False)
    inputs = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    # Shifted by one, so that the zeros outside are told from class 0.
    classes = F.grid_sample(masks[:, None].float() + 1, grid, mode="nearest", align_corners=False)[
        :, 0
    ].long()
    return inputs, torch.where(classes == 0, IGNORED, classes - 1)
