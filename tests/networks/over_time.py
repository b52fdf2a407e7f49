"""SE over time as speech, video and medical networks spell it, in small: a class a spelling, from the papers."""

from __future__ import annotations

import torch
from torch import nn


class ConvSE(nn.Module):
    """ECAPA-TDNN (Desplanques et al., 2020): a mean over frames, two pointwise Conv1d."""

    def __init__(self, channels, reduced):
        super().__init__()
        self.down, self.up = nn.Conv1d(channels, reduced, 1), nn.Conv1d(reduced, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean(2, keepdim=True)))))

    def weights(self):
        return [p.detach().double().numpy().squeeze(-1) if p.dim() == 3 else p.detach().double().numpy() for p in
                (self.down.weight, self.down.bias, self.up.weight, self.up.bias)]  # fmt: skip


class PoolSE(nn.Module):
    """ContextNet and Citrinet (Han et al., 2020; Majumdar et al., 2021): AdaptiveAvgPool1d and dense layers."""

    def __init__(self, channels, reduced):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.down, self.up = nn.Linear(channels, reduced), nn.Linear(reduced, channels)

    def forward(self, x):
        z = self.pool(x).transpose(1, -1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(z))).transpose(1, -1))

    def weights(self):
        return [p.detach().double().numpy() for p in self.parameters()]


class LastSE(PoolSE):
    """Channels in the last axis, as (N, T, C)."""

    def forward(self, x):
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.sum(1) / x.shape[1]))))
        return gate[:, None] * x


class VolumeSE(nn.Module):
    """X3D (Feichtenhofer, 2020): a mean over frames, rows and columns, two pointwise Conv3d."""

    def __init__(self, channels, reduced):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.down, self.up = nn.Conv3d(channels, reduced, 1), nn.Conv3d(reduced, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(self.pool(x)))))

    def weights(self):
        return [p.detach().double().numpy().reshape(p.shape[:2]) for p in
                (self.down.weight, self.down.bias, self.up.weight, self.up.bias)]  # fmt: skip


class DenseVolumeSE(VolumeSE):
    """MONAI's ChannelSELayer: the same with dense layers, the mean by flattening."""

    def __init__(self, channels, reduced):
        super().__init__(channels, reduced)
        self.down, self.up = nn.Linear(channels, reduced), nn.Linear(reduced, channels)

    def forward(self, x):
        n, channels = x.shape[:2]
        z = x.flatten(2).mean(2)
        return x * torch.sigmoid(self.up(torch.relu(self.down(z)))).view(n, channels, 1, 1, 1)


class Around(nn.Module):
    """A network about one SE block: (N, 4, ...) to (N, 4, ...)."""

    def __init__(self, se, axes, last=False):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.first, self.se, self.second, self.last = conv(4, 8, 3, padding=1), se, conv(8, 4, 1), last

    def forward(self, x):
        x = self.first(x)
        x = self.se(x.transpose(1, 2)).transpose(1, 2) if self.last else self.se(x)
        return self.second(x)


def build(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network by the name of its spelling, and an input size."""
    torch.manual_seed(0)
    cls = {c.__name__: c for c in (ConvSE, PoolSE, LastSE, VolumeSE, DenseVolumeSE)}[kind]
    axes = 3 if "Volume" in kind else 1
    model = Around(cls(8, 4), axes, kind == "LastSE").eval()
    return model, (4, 21) if axes == 1 else (4, 9, 3, 4)
