"""EfficientDet with a head of so many classes, to be trained: the networks of the paper's Tables 5 and B2.

Source: Tan et al., "EfficientDet", 2020; Wightman's ``effdet``, which the paper used.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import TiledSEError
from .modes import in_train
from .sources import build

# The coarsest of the five levels has a stride of 2 ** 7.
_STRIDE = 128


def build_detector(model: str, classes: int, input_size: tuple[int, int, int]) -> nn.Module:
    """An EfficientDet with random weights; ``config`` is effdet's.

    Args:
        model: ``effdet:NAME``.
        classes: Of the head; labels are 1 to ``classes``.
        input_size: (3, H, W), H and W multiples of 128.

    Raises:
        TiledSEError: no such network, effdet is not installed, or a size that it cannot take.

    Example:
        >>> network = build_detector("effdet:efficientdet_d0", 20, (3, 256, 256))
        >>> network.config.num_classes, tuple(network.config.image_size)
        (20, (256, 256))
    """
    if not model.startswith("effdet:"):
        raise TiledSEError(f"no detector '{model}'; expected effdet:NAME, such as effdet:efficientdet_d0")
    channels, height, width = input_size
    if channels != 3 or height % _STRIDE or width % _STRIDE:
        raise TiledSEError(
            f"{model} takes no image of {channels}x{height}x{width}; expected 3 channels, height and width multiples "
            f"of {_STRIDE}"
        )
    network: Any = build(model, size=input_size)[0]
    if classes != network.config.num_classes:
        network.reset_head(num_classes=classes)
    return in_train(network)
