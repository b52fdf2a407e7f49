"""Four depthwise SE blocks on large maps: what a compiler does where a map does not stay on the chip."""

from __future__ import annotations

from timm.layers import SqueezeExcite
from torch import Tensor, nn


class Residual(nn.Module):
    """1x1, depthwise 3x3, SE and 1x1 about a shortcut."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, channels, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.se = SqueezeExcite(wide, rd_ratio=0.25)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.depthwise(self.expand(x).relu()).relu())
        return x + self.project(y)


class Network(nn.Module):
    """A stem with stride 2, four blocks of 32 channels, and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1)
        self.blocks = nn.Sequential(*[Residual(8, 32) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()))


def network() -> Network:
    """For images of 448 x 448: maps of 224 x 224."""
    return Network().eval()
