"""The network like SE-ResNet that Stream is given: three residual blocks of 1x1, dense 3x3, SE and 1x1."""

from __future__ import annotations

from timm.layers import SqueezeExcite
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 32, 1)
        self.se = SqueezeExcite(64, rd_channels=32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.b(self.a(x).relu()).relu())
        return (x + self.c(y)).relu()


def network() -> nn.Sequential:
    """Three blocks after a stem, for images of 56 x 56."""
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), Residual(), Residual(), Residual()).eval()
