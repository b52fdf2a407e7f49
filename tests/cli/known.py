"""Networks small enough that every figure of them can be worked out by hand: MODEL is tests.cli.known:small."""

from __future__ import annotations

import torch
from torch import nn


class Gate(nn.Module):
    """SE with 16 channels and 4 between: 68 and 80 parameters, which are the multiply-adds of a gate as well."""

    def __init__(self, channels: int = 16, reduced: int = 4) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Net(nn.Module):
    """3 to 16 channels by 3x3 (448 parameters), the gate (148), 16 to 2 channels by 3x3 (290)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.se = Gate()
        self.tail = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x):
        return self.tail(self.se(self.stem(x)))


def small() -> nn.Module:
    """Net."""
    return Net()


def constant() -> nn.Module:
    """Net, whose outputs are 3 and -2 whatever the image is."""
    net = Net()
    with torch.no_grad():
        net.tail.weight.zero_()
        net.tail.bias.copy_(torch.tensor([3.0, -2.0]))
    return net


def line() -> nn.Module:
    """One channel: a 3x3 convolution (10 multiply-adds an element) and a gate of two layers (2 each)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Gate(1, 1))


class Classifier(nn.Module):
    """Net's first half, the mean of what it gives, and three classes; far from plain SE with strips."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.se = Gate()
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.se.up.weight.mul_(8)
            self.head.weight.mul_(20)

    def forward(self, x):
        return self.head(self.se(self.stem(x).relu()).mean((2, 3)))


def classifier() -> nn.Module:
    """Classifier."""
    return Classifier()
