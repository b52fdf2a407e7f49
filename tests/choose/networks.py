"""A small network with two SE blocks, random but of fixed seed, and images for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.layers import SEModule
from torch import Tensor, nn

SIZE = (3, 44, 24)


class Small(nn.Module):
    """Maps of 22 and 11 rows: 4 rows divide neither."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.se1 = SEModule(8, rd_channels=4)
        self.body = nn.Conv2d(8, 12, 3, 2, 1)
        self.se2 = SEModule(12, rd_channels=6)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se1(self.stem(x).relu())
        x = self.se2(self.body(x).relu())
        return self.head(x.mean((2, 3)))


def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that gates differ between strips
    return model


def images(count: int = 64, size: tuple[int, int, int] = SIZE, seed: int = 0) -> Tensor:
    """Bright at the top or at the bottom: what a strip sees is not the whole, and depends on its place."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *size, generator=generator)
    slope = torch.linspace(-1, 1, size[1])[None, None, :, None]
    return (
        x
        + 2 * slope * (1 + torch.randn(count, 1, 1, 1, generator=generator))
        + torch.randn(count, 3, 1, 1, generator=generator)
    )


def in_batches(x: Tensor, size: int = 20) -> Iterator[Tensor]:
    yield from x.split(size)
