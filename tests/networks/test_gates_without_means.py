"""A channel that is gated by the whole map in another way than by its mean is told too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.networks.strangers import C, Gate

SIZE = (3, 10, 9)
REASON = "by no mean that can be followed"


class Codewords(nn.Module):
    """A context encoding (Zhang et al., 2018): what is left of each pixel by each codeword, summed over the map."""

    def __init__(self):
        super().__init__()
        self.words, self.scale = nn.Parameter(torch.randn(5, C)), nn.Parameter(torch.randn(5))
        self.fc = nn.Linear(C, C)

    def forward(self, x):
        left = x.flatten(2).transpose(1, 2)[:, :, None] - self.words
        weights = (self.scale * left.pow(2).sum(3)).softmax(2)
        encoded = (weights[..., None] * left).sum(1).relu().mean(1)
        return x * self.fc(encoded).sigmoid()[:, :, None, None]


class LargeConvolution(nn.Module):
    """Gather-excite with parameters (Hu et al., 2018): a convolution as large as the map."""

    def __init__(self):
        super().__init__()
        self.gather = nn.Conv2d(C, C, SIZE[1:], groups=C)

    def forward(self, x):
        return x.mul(self.gather(x).sigmoid().expand_as(x))


class ChannelsLast(LargeConvolution):
    def forward(self, x):
        gate = self.gather(x).sigmoid().permute(0, 2, 3, 1)
        return (x.permute(0, 2, 3, 1) * gate).permute(0, 3, 1, 2)


class Corner(nn.Module):
    """The gate is made of one pixel."""

    def forward(self, x):
        return x * x[:, :, :1, :1].sigmoid()


@pytest.mark.parametrize("block", [Codewords, LargeConvolution, ChannelsLast, Corner])
def test_a_gate_by_other_sums_is_told(block):
    model = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), Gate(), nn.Sequential(block())).eval()
    plan = ts.find(model, SIZE)
    assert [b.name for b in plan.blocks] == ["1"]
    (miss,) = plan.near_misses
    assert miss.name.startswith("2")
    assert REASON in miss.reason


@pytest.mark.filterwarnings("ignore")  # torch says that its older exporter will go
@pytest.mark.parametrize("block", [Codewords, LargeConvolution, ChannelsLast, Corner])
def test_it_is_told_of_onnx_files(block, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), Gate(), nn.Sequential(block())).eval()
    file = tmp_path / "gate.onnx"
    torch.onnx.export(model, (torch.randn(1, *SIZE),), file, dynamo=False)
    plan = ts.find(file)
    assert len(plan) == 1
    (miss,) = plan.near_misses
    assert "which is not read as a mean over rows and columns" in miss.reason


def test_a_gate_of_no_map_is_not_told():
    class Modulated(nn.Module):
        """Each channel times a number of the step in time (a vector), and a parameter: nothing waits for the map."""

        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, C, 3, padding=1), nn.Linear(4, C)
            self.scale = nn.Parameter(torch.ones(1, C, 1, 1))

        def forward(self, x, time):
            return self.conv(x) * (1 + self.fc(time)[:, :, None, None]) * self.scale

    inputs = (torch.randn(1, *SIZE), torch.randn(1, 4))
    plan = ts.find(Modulated().eval(), example_inputs=inputs)
    assert not plan.blocks
    assert not plan.near_misses


def test_weights_of_pixels_are_not_told():
    class Spatial(nn.Module):
        """One number a pixel, not one a channel."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x):
            return x * self.conv(x).sigmoid()

    assert not ts.find(Spatial().eval(), SIZE).near_misses


def test_a_parameter_may_be_handed_from_module_to_module():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.se = nn.Parameter(torch.ones(1, C, 1, 1)), Gate()
            self.conv, self.add = nn.Conv2d(3, C, 1), Add()

        def forward(self, x):
            return self.se(self.add(self.conv(x), self.token.expand(len(x), -1, -1, -1)))

    class Add(nn.Module):
        def forward(self, x, token):
            return x + token

    assert [b.name for b in ts.find(Token().eval(), SIZE).blocks] == ["se"]
