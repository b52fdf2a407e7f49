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


class IndexedSE(PoolSE):
    """Gates spread by an index, which torch exports with slices of all that there is."""

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean(2)))))[:, :, None]


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
    cls = {c.__name__: c for c in (ConvSE, PoolSE, IndexedSE, LastSE, VolumeSE, DenseVolumeSE)}[kind]
    axes = 3 if "Volume" in kind else 1
    model = Around(cls(8, 4), axes, kind == "LastSE").eval()
    return model, (4, 21) if axes == 1 else (4, 9, 3, 4)


class ShareSE(ConvSE):
    """speechbrain's call: lengths relative to the longest sound, or none."""

    def forward(self, x, lengths=None):
        frames = x.shape[-1]
        if lengths is None:
            mean = x.mean(2, keepdim=True)
        else:
            mask = (torch.arange(frames)[None] < lengths[:, None] * frames)[:, None]
            mean = (x * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(mean))))


class CountSE(PoolSE):
    """NeMo's call: lengths in frames, which it gives back; frames that are not valid come out as 0."""

    def forward(self, x, lengths):
        mask = (torch.arange(x.shape[-1])[None] < lengths[:, None])[:, None]
        x = x.masked_fill(~mask, 0.0)
        mean = x.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        gate = torch.sigmoid(self.up(torch.relu(self.down(mean.transpose(1, -1)))).transpose(1, -1))
        return x * gate, lengths


class Utterances(nn.Module):
    """A network of sounds of several lengths, with one block that is called with them."""

    def __init__(self, se):
        super().__init__()
        self.first, self.se, self.second = nn.Conv1d(4, 8, 3, padding=1), se, nn.Conv1d(8, 4, 1)

    def forward(self, x, lengths=None):
        y = self.se(self.first(x), lengths)
        return self.second(y[0] if isinstance(y, tuple) else y)


class Residual(nn.Module):
    """A depthwise convolution over time, a pointwise one, SE, the sum with what came in; it sees ``ahead`` frames."""

    def __init__(self, channels, se, ahead, conv=nn.Conv1d, kernel=3, dilation=1):
        super().__init__()
        axes = {nn.Conv1d: 1, nn.Conv3d: 3}[conv]
        size, spread = (kernel, 3, 3)[:axes], (dilation, 1, 1)[:axes]
        self.depth = conv(channels, channels, size, groups=channels, dilation=spread)
        self.point, self.norm = (
            conv(channels, channels, 1),
            (nn.BatchNorm1d if axes == 1 else nn.BatchNorm3d)(channels),
        )
        self.se = se
        past = (kernel - 1) * dilation - ahead
        self.pads = [1, 1] * (axes - 1) + [past, ahead]

    def forward(self, x):
        y = torch.relu(self.norm(self.point(self.depth(nn.functional.pad(x, self.pads)))))
        return x + self.se(y)


def contextnet():
    """ContextNet in small (Han et al., 2020), its convolutions causal: 3 blocks, 16 features; and frames seen ahead."""
    return nn.Sequential(*(Residual(16, PoolSE(16, 4), 0, kernel=5) for _ in range(3))), (16, 40), 0


def ecapa():
    """ECAPA-TDNN in small, up to its pooling: dilations 2, 3, 4, convolutions that see as much ahead as back."""
    return nn.Sequential(*(Residual(16, ConvSE(16, 4), d, dilation=d) for d in (2, 3, 4))), (16, 40), 9


def x3d():
    """X3D in small: 3 frames a convolution, every other block with SE."""
    blocks = [VolumeSE(8, 4), nn.Identity(), VolumeSE(8, 4)]
    return nn.Sequential(*(Residual(8, se, 1, nn.Conv3d) for se in blocks)), (8, 16, 5, 4), 3


def movinet():
    """MoViNet in small, causal: no frame ahead."""
    return nn.Sequential(*(Residual(8, VolumeSE(8, 4), 0, nn.Conv3d) for _ in range(2))), (8, 16, 5, 4), 0
