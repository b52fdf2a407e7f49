"""LR-ASPP on a timm backbone: the segmentation network of the paper's Table 6, to be trained.

Source: Howard et al., "Searching for MobileNetV3", 2019, section 6.4; torchvision's ``LRASPP``.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import TiledSEError, first_line


class _Features(nn.Module):
    """A timm feature extractor as torchvision's LRASPP takes it: ``low`` at stride 8 and ``high``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body = backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low, high = self.body(x)
        return {"low": low, "high": high}


def build_segmenter(
    model: str, classes: int, input_size: tuple[int, int, int], stride: int = 16
) -> nn.Module:
    """LR-ASPP with random weights; its output is ``{"out": (N, classes, H, W)}``.

    Args:
        model: ``timm:NAME`` of a backbone, or ``torchvision:lraspp_mobilenet_v3_large``.
        classes: Of the head.
        input_size: (C, H, W).
        stride: Output stride of a timm backbone, 8, 16 or 32.

    Raises:
        TiledSEError: no such backbone, or none with features at stride 8.

    Example:
        >>> import torch
        >>> network = build_segmenter("timm:mobilenetv3_small_100", 11, (3, 64, 64)).eval()
        >>> network(torch.zeros(1, 3, 64, 64))["out"].shape
        torch.Size([1, 11, 64, 64])
    """
    import timm
    from torchvision import models
    from torchvision.models.segmentation import LRASPP

    source, _, name = model.partition(":")
    if model == "torchvision:lraspp_mobilenet_v3_large":
        return models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    if source != "timm" or not timm.is_model(name):
        raise TiledSEError(
            f"no backbone '{model}'; expected timm:NAME or torchvision:lraspp_mobilenet_v3_large"
        )
    try:
        probe = timm.create_model(name, features_only=True, output_stride=stride)
        strides = probe.feature_info.reduction()
        low = strides.index(8)
        body = timm.create_model(
            name,
            features_only=True,
            output_stride=stride,
            out_indices=(low, len(strides) - 1),
            in_chans=input_size[0],
        )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise TiledSEError(
            f"{model} gives no features at strides 8 and {stride} ({first_line(error)}); take a convolutional backbone "
            "such as timm:mobilenetv3_large_100"
        ) from error
    fine, coarse = body.feature_info.channels()
    return LRASPP(_Features(body), fine, coarse, classes)


def backbone_of(network: nn.Module) -> nn.Module:
    """The part of a segmenter that has weights from classification."""
    inner = network.backbone
    return inner.body if isinstance(inner, _Features) else inner  # type: ignore[return-value]
