"""SE blocks as people write them, and blocks that look like SE and are none."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LinearView(nn.Module):
    """The most copied one: pool, view, Linear layers, view, expand_as."""

    def __init__(self, channels=12, reduction=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class ConvMean(nn.Module):
    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        z = x.mean([2, 3], keepdim=True)
        return torch.sigmoid(self.up(F.silu(self.down(z)))) * x


class SequentialInside(nn.Module):
    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, reduced, 1), nn.ReLU(),
            nn.Conv2d(reduced, channels, 1), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x):
        return x * self.se(x)


class FlattenHardSigmoid(nn.Module):
    """Functional pool by the map's own size, flatten, spelled-out hard sigmoid and SiLU."""

    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.a, self.b = nn.Linear(channels, reduced), nn.Linear(reduced, channels)

    def forward(self, x):
        z = F.avg_pool2d(x, x.size()[2:]).flatten(1)
        z = self.a(z)
        z = self.b(z * torch.sigmoid(z))
        gate = (z + 3).clamp(0, 6) / 6
        return x * gate.unsqueeze(-1).unsqueeze(-1)


class TwoMeans(nn.Module):
    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.a, self.n, self.b = (
            nn.Conv2d(channels, reduced, 1),
            nn.BatchNorm2d(reduced),
            nn.Conv2d(reduced, channels, 1),
        )

    def forward(self, x):
        z = x.mean(3, keepdim=True).mean(2, keepdim=True)
        return x.mul(self.b(self.n(self.a(z)).relu()).sigmoid())


class ViewMean(nn.Module):
    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.a, self.b = nn.Linear(channels, reduced), nn.Linear(reduced, channels)

    def forward(self, x):
        n, c = x.shape[0], x.shape[1]
        z = x.view(n, c, -1).mean(-1)
        return x * torch.sigmoid(self.b(torch.relu(self.a(z)))).reshape(n, c, 1, 1)


class ChannelsLast(nn.Module):
    """(N, H, W, C) in and out."""

    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.a, self.b = nn.Linear(channels, reduced), nn.Linear(reduced, channels)

    def forward(self, x):
        return x * self.b(self.a(x.mean((1, 2), keepdim=True)).relu()).sigmoid()


class FixedWindow(nn.Module):
    """Pools a window of the map's size, as old code does."""

    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.pool = nn.AvgPool2d(10)
        self.a, self.b = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        return x * self.b(self.a(self.pool(x)).relu()).sigmoid()


class OneLayer(nn.Module):
    """Effective SE: one dense layer."""

    def __init__(self, channels=12):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))


class Eca(nn.Module):
    """Channel attention by a convolution along the channels."""

    def __init__(self, channels=12):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.unused = nn.Identity()

    def forward(self, x):
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        return x * self.conv(y).sigmoid().view(x.shape[0], -1, 1, 1)


class Grouped(nn.Module):
    def __init__(self, channels=12):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 4, 1, groups=4), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


SE = (
    LinearView,
    ConvMean,
    SequentialInside,
    FlattenHardSigmoid,
    TwoMeans,
    ViewMean,
    FixedWindow,
    OneLayer,
    Eca,
    Grouped,
)
REDUCED = {OneLayer: None, Eca: None, Grouped: 4}


class MaxToo(nn.Module):
    reason = "maximum"

    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)
        return x * self.b(self.a(z).relu()).sigmoid()


class PoolsAnother(nn.Module):
    """The tensor that is pooled is not the one that is gated."""

    reason = "not multiplied back|before it is pooled"

    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.a, self.b = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        return x * self.b(self.a(self.conv(x).mean((2, 3), keepdim=True)).relu()).sigmoid()


class Adds(nn.Module):
    """Global context that is added, not multiplied."""

    reason = "not multiplied back"

    def __init__(self, channels=12):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.a(x.mean((2, 3), keepdim=True))


class Branches(nn.Module):
    """Control flow on values, which are others in each tile."""

    reason = "looks at values"

    def __init__(self, channels=12, reduced=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        if z.sum() > 0:
            z = z * 1.0
        return x * self.b(self.a(z).relu()).sigmoid()


class NoLayers(nn.Module):
    reason = "no dense layer"

    def __init__(self, channels=12):
        super().__init__()
        self.scale = nn.Identity()

    def forward(self, x):
        return x * self.scale(x.mean((2, 3), keepdim=True)).sigmoid()


class GlobalResponse(nn.Module):
    reason = "not multiplied back|norm"

    def __init__(self, channels=12):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.fc(x.norm(p=2, dim=(2, 3), keepdim=True)).sigmoid()


NOT_SE = (MaxToo, PoolsAnother, Adds, Branches, NoLayers, GlobalResponse)


class Net(nn.Module):
    """A stem, one block, a head that pools."""

    def __init__(self, block, channels=12):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.block = block
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class NhwcNet(Net):
    """The same around a block that takes (N, H, W, C)."""

    def forward(self, x):
        return self.head(self.block(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))
