"""Images with masks to train on: folders side by side, or Cityscapes as it is distributed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.pixels import BROKEN, decoded, opened
from ..errors import TiledSEError, first_line
from ..evaluate.classification import SUFFIXES

IGNORED = 255

# Cityscapes' 34 label ids to its 19 classes (cityscapesScripts, helpers/labels.py); the rest is not scored.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES = np.full(256, IGNORED, np.uint8)
_CITYSCAPES[list(_CITYSCAPES_IDS)] = range(19)


@dataclass(frozen=True)
class Masked:
    """Pairs of an image and its mask.

    Args:
        pairs: The files.
        classes: Values of a mask below this are classes; all others are ignored.
        cityscapes: Whether masks hold Cityscapes' label ids.
    """

    pairs: tuple[tuple[Path, Path], ...]
    classes: int
    cityscapes: bool = False

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 and (H, W) uint8 of one pair.

        Raises:
            TiledSEError: one cannot be read, or they have different sizes.
        """
        image_path, mask_path = self.pairs[index]
        try:
            with opened(image_path) as image:
                pixels = np.array(image.convert("RGB"))
            with decoded(mask_path) as mask:
                values, mode = np.array(mask), mask.mode
        except TiledSEError as error:
            raise TiledSEError(f"{image_path} or its mask {mask_path}: {error}") from error
        except BROKEN as error:
            raise TiledSEError(
                f"cannot read {image_path} or its mask: {first_line(error)}; replace it"
            ) from error
        if mode not in ("L", "P"):
            raise TiledSEError(f"mask {mask_path}: expected one channel of class indices, got {mode}")
        if pixels.shape[:2] != values.shape:
            raise TiledSEError(
                f"mask {mask_path} is {values.shape[0]}x{values.shape[1]} (rows x columns) and its image "
                f"{pixels.shape[0]}x{pixels.shape[1]}; give the mask of that image"
            )
        values = _CITYSCAPES[values] if self.cityscapes else np.where(values < self.classes, values, IGNORED)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(values.astype(np.uint8))


def open_masked(data: Path, part: str, classes: int) -> Masked:
    """The pairs of one part of a data folder.

    Raises:
        TiledSEError: neither layout is there, or an image has no mask.
    """
    if (data / "leftImg8bit" / part).is_dir():
        images = sorted((data / "leftImg8bit" / part).rglob("*_leftImg8bit.png"))
        folder = data / "gtFine" / part
        masks = [
            folder / path.parent.name / path.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
            for path in images
        ]
        return _checked(images, masks, folder, classes, True)
    for images_in, masks_in in ((part, f"{part}_masks"), (f"images/{part}", f"masks/{part}")):
        if (data / images_in).is_dir():
            images = sorted(p for p in (data / images_in).iterdir() if p.suffix.lower() in SUFFIXES)
            folder = data / masks_in
            return _checked(images, [folder / f"{path.stem}.png" for path in images], folder, classes, False)
    raise TiledSEError(
        f"no '{part}' images with masks in {data}: expected {part} and {part}_masks, images/{part} and masks/{part}, "
        "or Cityscapes' leftImg8bit and gtFine"
    )


def _checked(images: list[Path], masks: list[Path], folder: Path, classes: int, cityscapes: bool) -> Masked:
    if not images:
        raise TiledSEError(f"no image beside {folder}: the set is empty")
    for image, mask in zip(images, masks, strict=True):
        if not mask.is_file():
            raise TiledSEError(f"image {image.name} has no mask: expected {mask}")
    return Masked(tuple(zip(images, masks, strict=True)), classes, cityscapes)
