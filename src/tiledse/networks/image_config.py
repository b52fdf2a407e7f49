"""What a network's library says of the images that it takes."""

from __future__ import annotations

from typing import Any

from torch import nn


def image_config(name: str, model: nn.Module) -> dict[str, Any] | None:
    """The image of a network that was loaded by its MODEL text, in the keys of timm's ``pretrained_cfg``.

    Returns:
        Size, mean, std, interpolation and crop; None where the network says nothing.
    """
    source, _, rest = name.partition(":")
    if source == "torchvision":
        from torchvision import models

        return torchvision_config(rest) if rest in models.list_models(models) else None
    return getattr(model, "pretrained_cfg", None)


def torchvision_config(name: str) -> dict[str, Any]:
    """How torchvision evaluates a classifier with its default weights, in timm's words.

    Other networks of torchvision have no transform that ends in one size.

    Example:
        >>> config = torchvision_config("mobilenet_v3_large")
        >>> config["interpolation"], int(224 / config["crop_pct"])
        ('bilinear', 232)
    """
    from torchvision import models

    preset = models.get_model_weights(name).DEFAULT.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return {
        "input_size": (3, crop, crop),
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
        # timm resizes to the floor of input / crop_pct; the half keeps rounding away from the next number.
        "crop_pct": crop / (resize + 0.5),
    }
