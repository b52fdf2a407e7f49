"""Adapters: how an image becomes a network's input, and its outputs boxes or masks.

A network's own pre- and post-processing is no part of an ONNX file or of an ``nn.Module``. A user gives it as a
function of the input size, named ``package.module:adapter``, that returns a ``Detector`` or a ``Segmenter``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import TiledSEError
from ..networks.strangers import call_named, import_named
from ..networks.zoo.catalogue import Entry

Size = tuple[int, int]


@dataclass(frozen=True)
class Detector:
    """A detector's pre- and post-processing.

    Args:
        prepare: PIL image of any mode to input (C, H, W).
        detect: (outputs of a batch, sizes) to one array (K, 6) for each image: x1, y1, x2, y2 in pixels of the image
            as it was before ``prepare``, score, and category id of the annotations. ``sizes`` are the (width, height)
            of those images.
    """

    prepare: Callable[[Image.Image], Tensor]
    detect: Callable[[Any, Sequence[Size]], Sequence[Any]]


@dataclass(frozen=True)
class Segmenter:
    """A segmentation network's pre- and post-processing.

    Args:
        classes: Their names, by index.
        prepare: PIL image of any mode to input (C, H, W).
        segment: (outputs of a batch, sizes) to one index map (H, W) for each image; ``sizes`` are the (H, W) of the
            true maps.
        truth: PIL image of a mask to its true index map (H, W).
        ignore: An index in true maps that is left out.
        scored: The classes whose IoU is averaged; None for all.
    """

    classes: tuple[str, ...]
    prepare: Callable[[Image.Image], Tensor]
    segment: Callable[[Any, Sequence[Size]], Sequence[Tensor]]
    truth: Callable[[Image.Image], Tensor]
    ignore: int | None = 255
    scored: tuple[int, ...] | None = None


Adapter = TypeVar("Adapter", Detector, Segmenter)


def load_adapter(text: str, kind: type[Adapter], input_size: tuple[int, int, int]) -> Adapter:
    """Call the function that ``package.module:adapter`` names; the working folder is searched too.

    Raises:
        TiledSEError: there is none, it fails, or it gives something else.

    Example:
        >>> load_adapter("nowhere:adapter", Detector, (3, 512, 512))
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: cannot import the adapter 'nowhere:adapter': No module named 'nowhere'; ...
    """
    path, colon, attribute = text.partition(":")
    if not colon or not path or not attribute:
        raise TiledSEError(f"no adapter '{text}'; expected package.module:adapter")
    expected = (
        "package.module:adapter, a function of the input size (C, H, W) that gives a "
        f"tiledse.evaluate.adapters.{kind.__name__}"
    )
    function = import_named(text, "the adapter", expected)
    adapter = call_named(function, f"the adapter {text}", input_size)
    if not isinstance(adapter, kind):
        raise TiledSEError(
            f"the adapter {text} gave a {type(adapter).__name__}; expected a tiledse.evaluate.adapters.{kind.__name__}"
        )
    return adapter


def resized(image: Image.Image, size: Size, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An image stretched to (H, W) by PIL's bilinear filter, its values in 0..1 normalised: (3, H, W)."""
    pixels = np.asarray(
        image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32
    )
    x = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def semantic(
    classes: Sequence[str],
    input_size: tuple[int, int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Segmenter:
    """For networks whose output is logits (N, classes, h, w), alone or as ``out``: torchvision's LR-ASPP and others.

    Images are stretched to the input size and normalised (as ImageNet's, unless told); logits are resized to the true
    map.
    """

    def segment(output: Any, sizes: Sequence[Size]) -> list[Tensor]:
        logits = (
            output["out"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
        )
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != len(classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TiledSEError(
                f"expected logits of shape (N, {len(classes)}, h, w) for {len(classes)} classes, got {got}; give the "
                "network's --adapter"
            )
        return [
            nn.functional.interpolate(one[None].float(), size, mode="bilinear", align_corners=False)[
                0
            ].argmax(0)
            for one, size in zip(logits, sizes)
        ]

    def prepare(image: Image.Image) -> Tensor:
        return resized(image, input_size[1:], mean, std)

    return Segmenter(tuple(classes), prepare, segment, index_mask)


def zoo_segmenter(entry: Entry, input_size: tuple[int, int, int]) -> Segmenter:
    """For a segmenter of the zoo: normalised as in its training; what is no class of it in a mask is left out.

    Example:
        >>> from ..networks.zoo.catalogue import find_entry
        >>> zoo_segmenter(find_entry("camvid-7xW"), (3, 180, 240)).truth(Image.new("L", (2, 1), 11)).tolist()
        [[255, 255]]
    """
    import timm

    source, _, name = entry.model.partition(":")
    config = timm.get_pretrained_cfg(name) if source == "timm" else None
    numbers = (config.mean, config.std) if config is not None else (IMAGENET_MEAN, IMAGENET_STD)
    adapter = semantic(tuple(map(str, range(entry.classes))), input_size, *numbers)

    def truth(mask: Image.Image) -> Tensor:
        values = index_mask(mask)
        return values.masked_fill(values >= entry.classes, 255)

    return replace(adapter, truth=truth)


def index_mask(mask: Image.Image) -> Tensor:
    """A mask whose pixel values are class indices: (H, W) int64.

    Raises:
        TiledSEError: it has several channels.

    Example:
        >>> index_mask(Image.new("L", (2, 1), 7)).tolist()
        [[7, 7]]
    """
    if mask.mode not in ("L", "P", "I", "I;16", "1"):
        raise TiledSEError(f"expected a mask of one channel with class indices, got {mask.mode}")
    return torch.from_numpy(np.array(mask, np.int64))


def effdet_detector(model: nn.Module, input_size: tuple[int, int, int]) -> Detector:
    """For an ``effdet`` network: letterboxed as effdet evaluates, decoded by effdet itself; COCO's ids from 1."""
    from effdet.anchors import Anchors
    from effdet.bench import _batch_detection, _post_process

    config: Any = model.config
    anchors = Anchors.from_config(config)
    height, width = input_size[1:]
    mean = tuple(round(255 * value) for value in IMAGENET_MEAN)

    def fit(size: Size) -> float:
        return min(height / size[1], width / size[0])

    def prepare(image: Image.Image) -> Tensor:
        scale = fit(image.size)
        page = Image.new("RGB", (width, height), mean)
        side = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        page.paste(image.convert("RGB").resize(side, Image.Resampling.BILINEAR))
        return resized(page, (height, width), IMAGENET_MEAN, IMAGENET_STD)

    def detect(output: Any, sizes: Sequence[Size]) -> list[np.ndarray]:
        count = len(sizes)
        classes, boxes, indices, labels = _post_process(
            *output,
            num_levels=config.num_levels,
            num_classes=config.num_classes,
            max_detection_points=config.max_detection_points,
        )
        scales = torch.tensor([1 / fit(size) for size in sizes])
        found = _batch_detection(
            count, classes.cpu(), boxes.cpu(), anchors.boxes.cpu(), indices.cpu(), labels.cpu(), scales,
            torch.tensor(sizes), max_det_per_image=config.max_det_per_image, soft_nms=config.soft_nms,
        )  # fmt: skip
        return [one[one[:, 4] > 0].numpy() for one in found]

    return Detector(prepare, detect)
