"""Contact sheets: images of a set, small enough to lie in the page."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...data.images import ImageSet, ListedImages
from ...names import shown

SIDE = 112
QUALITY = 72


class Thumbnails:
    """Reads images of a set again, as people see them and not as the network does.

    Args:
        images: The set.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def of(self, wanted: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        """Name, caption and picture (a JPEG as a data URL) of some images.

        Args:
            wanted: (name of the image in the set, caption).

        Raises:
            TiledSEError: an image cannot be read any more.
        """
        captions = dict(wanted)
        pictures: dict[str, str] = {}
        for batch in self._set(captions).batches(1) if captions else ():
            for name, pixels in zip(batch.names, batch.inputs):
                if name in captions:
                    pictures[name] = data_url(pixels)
            if len(pictures) == len(captions):
                break
        return [
            {"name": shown(name, 80), "caption": caption, "picture": pictures[name]}
            for name, caption in wanted
            if name in pictures
        ]

    def _set(self, names: dict[str, str]) -> ImageSet:
        """The same set with thumbnails in place of inputs, and of files only those that are wanted."""
        again = copy.copy(self.images)
        again.preprocess = thumbnail  # type: ignore[attr-defined]  # both kinds of set have it
        if isinstance(again, ListedImages):
            again.files = tuple(file for file in again.files if file[0] in names)
        return again


def thumbnail(image: Image.Image) -> Tensor:
    """The middle of an image of any mode, small: (SIDE, SIDE, 3), uint8.

    Example:
        >>> tuple(thumbnail(Image.new("L", (640, 480))).shape)
        (112, 112, 3)
    """
    small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small))


def data_url(pixels: Tensor) -> str:
    """(H, W, 3) uint8 as a JPEG that lies in the page itself."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
