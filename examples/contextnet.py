"""A small ContextNet: a network over time whose SE blocks pool the whole utterance, so that it cannot stream.

    tiledse find contextnet:small --input 40x256           (from this folder, or with it on PYTHONPATH)
    tiledse cost contextnet:small --input 40x256 --tile 8xT
    tiledse stream contextnet:small features.npy --input 40x256 --tile 1xT:running --any-height -o logits.npy

Blocks as in the paper, section 2.2: depthwise separable convolutions over time with batch normalisation and swish, then
squeeze-and-excite, then a pointwise residual. It is far smaller, and ends in the classes of CTC, frame by frame, in
place of a transducer. Sound lies as (N, mel bands, frames).

Source: Han et al., "ContextNet: Improving Convolutional Neural Networks for Automatic Speech Recognition with Global
Context", 2020, arXiv 2005.03191.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import tiledse as ts

BANDS = 40
CLASSES = 11  # blank and ten digits
Gate = Callable[[int], nn.Module]


class SqueezeExcite(nn.Module):
    """The SE of the paper: the mean over all frames, a bottleneck of an eighth, swish."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(channels // 8, 4)
        self.fc1, self.fc2 = nn.Conv1d(channels, reduced, 1), nn.Conv1d(reduced, channels, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T), each channel times its gate."""
        return x * torch.sigmoid(self.fc2(self.act(self.fc1(x.mean(2, keepdim=True)))))


def no_gate(channels: int) -> nn.Module:
    """A network without squeeze-and-excite."""
    return nn.Identity()


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution over frames, and a normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv1d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False),
            nn.Conv1d(inputs, outputs, 1, bias=False),
            nn.BatchNorm1d(outputs),
        )


class Block(nn.Module):
    """Convolutions, squeeze-and-excite, residual; the last convolution has the stride."""

    def __init__(self, inputs: int, outputs: int, layers: int, kernel: int, stride: int, gate: Gate) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for number in range(layers):
            last = number == layers - 1
            parts.append(Separable(inputs if not number else outputs, outputs, kernel, stride if last else 1))
            if not last:
                parts.append(nn.SiLU())
        self.convolutions = nn.Sequential(*parts)
        self.se = gate(outputs)
        self.residual = nn.Sequential(
            nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs)
        )
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, T) to (N, outputs, ceil(T / stride))."""
        return self.act(self.se(self.convolutions(x)) + self.residual(x))


class ContextNet(nn.Module):
    """A small ContextNet for CTC.

    Args:
        gate: Makes what follows the convolutions of a block, from the number of channels.

    Shape:
        (N, 40, T), log mel energies, to (N, 11, ceil(T / 4)), logits.
    """

    def __init__(self, gate: Gate = SqueezeExcite) -> None:
        super().__init__()
        self.first = nn.Sequential(Separable(BANDS, 48, 5), nn.SiLU())
        self.blocks = nn.Sequential(
            Block(48, 48, 2, 5, 2, gate),
            Block(48, 64, 2, 5, 1, gate),
            Block(64, 64, 2, 5, 2, gate),
            Block(64, 80, 2, 5, 1, gate),
        )
        self.last = nn.Sequential(Separable(80, 96, 5), nn.SiLU())
        self.classes = nn.Conv1d(96, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each frame."""
        return self.classes(self.last(self.blocks(self.first(x))))


def tiled(tile: str) -> nn.Module:
    """The network with one tile for all blocks, in training mode; its weights are those of the same seed without."""
    model = ContextNet()
    return ts.convert(model, ts.find(model, (BANDS, 256)).with_tile(tile))


def small() -> nn.Module:
    """The network with plain SE, for the command line."""
    return ContextNet().eval()
