"""From an image file to the tensor that a network was trained to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from PIL import Image
from torch import Tensor, nn

from ..errors import TiledSEError, first_line
from .pixels import BROKEN, decoded, opened

Kind = Literal["network", "crop"]

_COLOURS = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input; callable, PIL image to float tensor (C, H, W).

    Args:
        input_size: (C, H, W) of the input. C is 1 (grey) or 3 (RGB).
        mean: For each channel, subtracted from values in 0..1.
        std: For each channel, divided by afterwards.
        interpolation: Of the resize, such as ``bicubic``.
        crop_pct: The resized image's side is the input's divided by this.
        crop_mode: timm's: ``center``, ``squash`` or ``border``.
        kind: ``network`` resizes and crops as timm's evaluation transform does. ``crop`` is for images that
            are scaled already: no resize, the middle H x W of the image, the offset rounded down.

    Raises:
        TiledSEError: an unknown kind, or a mean or std that does not go with C.

    Example:
        >>> cut = Preprocessing((3, 2, 2), (0.5,) * 3, (0.5,) * 3, kind="crop")
        >>> cut(Image.new("RGB", (5, 4), "white"))[0]
        tensor([[1., 1.],
                [1., 1.]])
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    kind: Kind = "network"
    _transform: Callable[[Image.Image], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise TiledSEError(f"preprocessing: expected 'network' or 'crop', got '{self.kind}'")
        channels = self.input_size[0]
        if channels not in _COLOURS or {len(self.mean), len(self.std)} != {channels}:
            raise TiledSEError(
                f"preprocessing: expected an input of 1 or 3 channels with a mean and std for each, got "
                f"{channels} channels, {len(self.mean)} means and {len(self.std)} stds"
            )
        object.__setattr__(self, "_transform", self._build())

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_size: tuple[int, int, int] | None = None,
        kind: Kind = "network",
        config: dict[str, Any] | None = None,
    ) -> Preprocessing:
        """What timm says the network was evaluated with (``timm.data.resolve_data_config``).

        A network that says nothing (no ``pretrained_cfg``) gets timm's defaults: ImageNet's mean and std,
        bicubic, crop 0.875.

        Args:
            model: The network.
            input_size: (C, H, W), where it is not the network's own.
            kind: See the class.
            config: What holds in place of the network's ``pretrained_cfg``, in its keys.
        """
        from timm.data import resolve_data_config

        said = dict(getattr(model, "pretrained_cfg", None) or {}) if config is None else config
        resolved = resolve_data_config({"input_size": input_size}, pretrained_cfg=said)
        channels, height, width = resolved["input_size"]
        return cls(
            (channels, height, width),
            tuple(resolved["mean"]),
            tuple(resolved["std"]),
            resolved["interpolation"],
            resolved["crop_pct"],
            resolved["crop_mode"],
            kind,
        )

    def _build(self) -> Callable[[Image.Image], Tensor]:
        from torchvision import transforms

        if self.kind == "crop":
            return transforms.Compose(
                [self._cut, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
            )
        from timm.data import create_transform

        transform: Callable[[Image.Image], Tensor] = create_transform(
            self.input_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return transform

    def _cut(self, image: Image.Image) -> Image.Image:
        """The middle of the image. (torchvision's CenterCrop rounds to even: 227 to 224 from 2, not 1.)"""
        _, height, width = self.input_size
        if image.width < width or image.height < height:
            raise TiledSEError(
                f"it is {image.height}x{image.width} (rows x columns), smaller than the input "
                f"{height}x{width}; 'crop' does not resize, take the network's own preprocessing"
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image of any mode to (C, H, W)."""
        return self._transform(image.convert(_COLOURS[self.input_size[0]]))


def read_image(
    source: Path | BinaryIO, name: str, preprocess: Callable[[Image.Image], Tensor], scaled: bool = True
) -> Tensor:
    """Read one image and make it an input.

    Args:
        source: The file, or its open bytes.
        name: What errors call it.
        preprocess: PIL image to tensor (C, H, W).
        scaled: Whether values become 0 to 255 by their type's range; not for masks, whose values are classes.

    Returns:
        (C, H, W).

    Raises:
        TiledSEError: the image is missing, cut off, no image, or too small; it is named.
    """
    try:
        if scaled:
            with opened(source) as image:
                return preprocess(image)
        with decoded(source) as mask:
            return preprocess(mask)
    except TiledSEError as error:
        raise TiledSEError(f"image {name}: {error}") from error
    except BROKEN as error:
        raise TiledSEError(
            f"image {name}: cannot be read: {first_line(error)}; replace it or take it out of the set"
        ) from error
