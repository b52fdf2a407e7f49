"""Spellings of SE that were met in other people's code, and ways to pool a whole map that are no SE."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

C, R = 8, 4


def gate(*layers, channels=C):
    """The usual layers of an excitation, as convolutions; others go between them."""
    return nn.Sequential(
        nn.Conv2d(channels, R, 1), *layers, nn.ReLU(), nn.Conv2d(R, channels, 1), nn.Sigmoid()
    )


class Gate(nn.Module):
    """SE by a gate of 1x1 convolutions; ``layers`` stand between them."""

    def __init__(self, *layers):
        super().__init__()
        self.f = gate(*layers)

    def squeeze(self, x):
        return F.adaptive_avg_pool2d(x, 1)

    def forward(self, x):
        return x * self.f(self.squeeze(x))


class Linears(nn.Module):
    """SE by Linear layers on vectors."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C), nn.Sigmoid())

    def squeeze(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        return x * self.fc(self.squeeze(x))[:, :, None, None]


def spelled(base, squeeze=None, forward=None, name=None):
    """A subclass with another squeeze or forward."""
    body = {}
    if squeeze is not None:
        body["squeeze"] = squeeze
    if forward is not None:
        body["forward"] = forward
    return type(name or base.__name__, (base,), body)


class MeanPool(nn.Module):
    def forward(self, x):
        return x.float().mean((-1, -2), keepdim=True).to(x.dtype)


class OwnPool(Gate):
    def __init__(self):
        super().__init__()
        self.pool = MeanPool()

    def forward(self, x):
        return x * self.f(self.pool(x))


class Nested(Gate):
    """The pool lies several modules deep."""

    def __init__(self):
        super().__init__()
        pool = nn.Sequential(nn.Sequential(nn.Sequential(MeanPool())))
        self.f = nn.Sequential(nn.Sequential(pool, gate()))

    def forward(self, x):
        return x * self.f(x)


class TwoHalves(nn.Module):
    """Two gates by chunk, of which the second one is a bias of the first."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(C, 2 * C)

    def forward(self, x):
        a, b = self.fc(x.mean((2, 3))).chunk(2, 1)
        return x * (a.sigmoid() + b.tanh())[:, :, None, None]


class FloatFunctionalMul(Gate):
    """torchvision.quantization's."""

    def __init__(self):
        super().__init__()
        self.skip_mul = nn.quantized.FloatFunctional()

    def forward(self, x):
        return self.skip_mul.mul(self.f(F.adaptive_avg_pool2d(x, 1)), x)


class AlongChannels(nn.Module):
    """As ECA: a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * self.conv(y).transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)


class Vectors(nn.Module):
    """Conv1d(k=1) on (N, C, 1)."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Conv1d(C, R, 1), nn.PReLU(), nn.Conv1d(R, C, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.f(x.flatten(2).mean(2, keepdim=True)).unsqueeze(3)


class Grouped(Gate):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(C, R, 1, groups=2), nn.GroupNorm(2, R), nn.ReLU(), nn.Conv2d(R, C, 1), nn.Sigmoid()
        )


class Normed(Gate):
    """What mixes the channels of a descriptor, which must not mix the tiles."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        z = F.adaptive_avg_pool2d(x, 1)
        z = (
            z / z.flatten(1).norm(dim=1)[:, None, None, None]
            if self.way == "norm"
            else z - z.mean((1, 2, 3))[:, None, None, None]
        )
        return x * self.f(z)


class Float32Inside(Gate):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            g = self.f(x.mean((2, 3), keepdim=True))
        return x * g


class MatVec(Gate):
    def forward(self, x):
        n, c, h, w = x.shape
        ones = x.new_ones(h * w, 1) / (h * w)
        return x * self.f(torch.matmul(x.reshape(n, c, h * w), ones).view(n, c, 1, 1))


FOUND = {
    "plain": Gate,
    "view and mean": spelled(Linears, lambda s, x: x.view(*x.shape[:2], -1).mean(2)),
    "sum of sums": spelled(Linears, lambda s, x: x.sum(3).sum(2) / (x.shape[2] * x.shape[3])),
    "sum over both": spelled(Linears, lambda s, x: x.sum((2, 3)) / (x.size(2) * x.size(3))),
    "flatten, transpose, mean": spelled(Linears, lambda s, x: x.flatten(2).transpose(1, 2).mean(1)),
    "float mean": spelled(Linears, lambda s, x: x.float().mean((2, 3)).to(x.dtype)),
    "index of a pool": spelled(Linears, lambda s, x: F.adaptive_avg_pool2d(x, 1)[..., 0, 0]),
    "x + x * g": spelled(Gate, forward=lambda s, x: x + x * s.f(x.mean((2, 3), True))),
    "1 + g": spelled(Gate, forward=lambda s, x: x * (1 + s.f(x.mean((2, 3), True)))),
    "in place": spelled(Gate, forward=lambda s, x: x.mul_(s.f(x.mean((2, 3), True)))),
    "operator in place": spelled(Gate, forward=lambda s, x: x.__imul__(s.f(x.mean((2, 3), True)))),
    "on a flat map": spelled(
        Linears, forward=lambda s, x: (x.flatten(2) * s.fc(x.mean((2, 3)))[..., None]).view(x.shape)
    ),
    "quotient": spelled(Gate, forward=lambda s, x: x / (1 + s.f(x.mean((2, 3), True)))),
    "keyword": spelled(Gate, forward=lambda s, feat: torch.mul(s.f(feat.mean((2, 3), True)), feat)),
    "own pool": OwnPool,
    "pool deeper": Nested,
    "chunk": TwoHalves,
    "FloatFunctional": FloatFunctionalMul,
    "along the channels": AlongChannels,
    "Conv1d of one": Vectors,
    "grouped": Grouped,
    "PReLU": lambda: Gate(nn.PReLU()),
    "PReLU per channel": lambda: Gate(nn.PReLU(R)),
    "BatchNorm": lambda: Gate(nn.BatchNorm2d(R)),
    "GroupNorm": lambda: Gate(nn.GroupNorm(2, R, affine=False)),
    "LayerNorm": lambda: Gate(nn.LayerNorm([R, 1, 1])),
    "z / norm": lambda: Normed("norm"),
    "z - mean": lambda: Normed("mean"),
    "no autocast": Float32Inside,
    "product with a vector": MatVec,
}

# Ways to pool a whole map; as a squeeze of SE they are a near miss, or SE where they are a mean.
POOLS = {
    "view and mean": lambda x: x.view(*x.shape[:2], -1).mean(2),
    "two sums": lambda x: x.sum(3).sum(2) / 100,
    "sum, then mean": lambda x: x.sum(3, keepdim=True).mean(2, keepdim=True).flatten(1),
    "flatten and transpose": lambda x: x.flatten(2).transpose(1, 2).mean(1),
    "permute and reshape": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]).mean(1),
    "maximum": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
    "two maxima": lambda x: x.max(3)[0].max(2)[0],
    "max_pool2d": lambda x: F.max_pool2d(x, x.shape[2:]).flatten(1),
    "deviation": lambda x: x.std((2, 3)),
    "variance of a view": lambda x: x.flatten(2).var(2),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "product with a vector": lambda x: (x.flatten(2) @ x.new_full((x.shape[2] * x.shape[3], 1), 0.01))[
        ..., 0
    ],
    "einsum": lambda x: torch.einsum("nchw,hw->nc", x, x.new_full(x.shape[2:], 0.01)),
    "AdaptiveAvgPool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1)[..., 0],
    "of a sum of splits": lambda x: torch.stack((x, x), 1).sum(1).mean((2, 3)),
    "over the batch": lambda x: x.mean((0, 2, 3))[None],
}
