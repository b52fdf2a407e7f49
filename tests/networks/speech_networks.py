"""Speech networks with SE over time, written from their papers in small where no package could be installed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Squeeze(nn.Module):
    """SE of NeMo's Citrinet and ContextNet: the mean over all frames, dense layers, a swish or ReLU."""

    def __init__(self, channels, reduction=8, act=nn.SiLU):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False), act(),
            nn.Linear(channels // reduction, channels, bias=False),
        )  # fmt: skip

    def forward(self, x):
        y = self.fc(self.pool(x).transpose(1, -1)).transpose(1, -1)
        return x * torch.sigmoid(y)


def separable(inputs, outputs, kernel, stride=1):
    """A depthwise and a pointwise convolution, and a normalisation."""
    return nn.Sequential(
        nn.Conv1d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False),
        nn.Conv1d(inputs, outputs, 1, bias=False),
        nn.BatchNorm1d(outputs),
    )


class Jasper(nn.Module):
    """A block of Citrinet, ContextNet and TitaNet: repeated separable convolutions, SE, a residual."""

    def __init__(self, inputs, outputs, kernel, repeat, stride=1, act=nn.ReLU):
        super().__init__()
        layers = []
        for number in range(repeat):
            last = number == repeat - 1
            layers.append(
                separable(inputs if not number else outputs, outputs, kernel, stride if last else 1)
            )
            layers += [] if last else [act()]
        self.mconv, self.se = nn.Sequential(*layers), Squeeze(outputs, act=act)
        self.res = nn.Sequential(nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs))
        self.act = act()

    def forward(self, x):
        return self.act(self.se(self.mconv(x)) + self.res(x))


def citrinet():
    """Citrinet (Majumdar et al., 2021), 23 blocks in three strided parts, 32 channels in place of 256 to 1,024."""
    kernels = (5, 11, 13, 15, 17, 19, 21, 13, 15, 17, 19, 21, 23, 25, 25, 27, 29, 31, 33, 35, 37, 39, 41)
    strided = {1: 2, 8: 2, 15: 2}
    blocks = [Jasper(32 if i else 80, 32, k, 1 if i in (0, 22) else 2, strided.get(i, 1))
              for i, k in enumerate(kernels)]  # fmt: skip
    return nn.Sequential(*blocks), (80, 160), 23


def contextnet():
    """ContextNet (Han et al., 2020): 23 blocks, C0 to C22; strides at C3, C7 and C14; SE in all; width 32."""
    blocks = [
        Jasper(32 if i else 80, 32, 5, 1 if i in (0, 22) else 3, 2 if i in (3, 7, 14) else 1, nn.SiLU)
        for i in range(23)
    ]
    return nn.Sequential(*blocks), (80, 160), 23


class AttentivePool(nn.Module):
    """TitaNet's: weights of each frame from the frame, the mean and the deviation of all; then mean and deviation."""

    def __init__(self, channels):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv1d(3 * channels, 16, 1),
            nn.ReLU(),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Conv1d(16, channels, 1),
        )

    def forward(self, x):
        mean, std = x.mean(2, keepdim=True), x.var(2, unbiased=False, keepdim=True).clamp(min=1e-10).sqrt()
        alpha = F.softmax(self.attention(torch.cat([x, mean.expand_as(x), std.expand_as(x)], 1)), 2)
        mu = (alpha * x).sum(2, keepdim=True)
        sigma = (alpha * (x - mu) ** 2).sum(2, keepdim=True).clamp(min=1e-10).sqrt()
        return torch.cat([mu, sigma], 1).squeeze(2)


def titanet():
    """TitaNet (Koluguri et al., 2022): a prologue, three mega blocks, an epilogue, pooling and an embedding."""
    body = [Jasper(80, 32, 3, 1)] + [Jasper(32, 32, k, 3) for k in (7, 11, 15)] + [Jasper(32, 48, 1, 1)]
    return nn.Sequential(*body, AttentivePool(48), nn.BatchNorm1d(96), nn.Linear(96, 12)), (80, 160), 5


class MultiScale(nn.Module):
    """FullSubNet+'s attention (Chen et al., 2022): three depthwise convolutions of their own lengths, each pooled over
    time, joined channel by channel by a dense layer, then a bottleneck and a gate a band."""

    def __init__(self, bands, kernels=(3, 5, 10), reduction=2):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv1d(bands, bands, k, groups=bands), nn.AdaptiveAvgPool1d(1), nn.ReLU())
            for k in kernels
        )
        self.join = nn.Linear(3, 1)
        self.fc = nn.Sequential(
            nn.Linear(bands, bands // reduction),
            nn.ReLU(),
            nn.Linear(bands // reduction, bands),
            nn.Sigmoid(),
        )

    def forward(self, x):
        z = torch.cat([conv(x) for conv in self.convs], 2)
        return x * self.fc(self.join(z).squeeze(2))[:, :, None]


class OneScale(MultiScale):
    """Its plainer form (FullSubNet+'s ChannelSELayer): the mean over time, a bottleneck, a gate a band."""

    def forward(self, x):
        return x * self.fc(x.mean(2))[:, :, None]


def fullsubnet(attention):
    """FullSubNet+ up to its full-band LSTM: the attention over bands, and a convolution over time after it."""
    return nn.Sequential(nn.Conv1d(24, 24, 3, padding=1), attention(24), nn.Conv1d(24, 8, 1)), (24, 100)


class Squeezeformer(nn.Module):
    """A block of Squeezeformer (Kim et al., 2022): attention, feed-forward, convolution with SE, feed-forward."""

    def __init__(self, width=32):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.first, self.depth = nn.Conv1d(width, width, 1), separable(width, width, 15)
        self.se, self.last = Squeeze(width), nn.Conv1d(width, width, 1)

    def forward(self, x):
        y = x.transpose(1, 2)
        y = self.norms[0](y + self.attend(y, y, y, need_weights=False)[0])
        y = self.norms[1](y + self.feed(y)).transpose(1, 2)
        y = y + self.last(self.se(F.silu(self.depth(F.silu(self.first(y))))))
        return self.norms[2](y.transpose(1, 2)).transpose(1, 2)


def squeezeformer():
    """Two blocks behind a convolution."""
    return nn.Sequential(nn.Conv1d(80, 32, 3, 2, 1), Squeezeformer(), Squeezeformer()), (80, 160), 2


class CumulativePool(nn.Module):
    """MoViNet-pytorch's cumulative mean over frames, which goes on from call to call."""

    def __init__(self):
        super().__init__()
        self.total, self.count = None, 0

    def forward(self, x):
        sums = torch.cumsum(x, 2)
        sums = sums if self.total is None else sums + self.total
        steps = torch.arange(1, x.shape[2] + 1) + self.count
        self.total, self.count = sums[:, :, -1:].detach(), self.count + x.shape[2]
        return sums / steps[None, None, :, None, None]


class CausalSE(nn.Module):
    """MoViNet's causal SE (Kondratyuk et al., 2021): gates of each frame from its mean and that of those so far."""

    def __init__(self, channels, reduced):
        super().__init__()
        self.pool = CumulativePool()
        self.down, self.up = nn.Conv3d(2 * channels, reduced, 1), nn.Conv3d(reduced, channels, 1)

    def forward(self, x):
        frame = x.mean((3, 4), keepdim=True)
        z = torch.cat([self.pool(frame), frame], 1)
        return x * torch.sigmoid(self.up(F.hardswish(self.down(z))))
