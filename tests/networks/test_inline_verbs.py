"""Every verb on SE written inline, beside the same network with SE as a module of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiledse as ts
from tests.stream.networks import difference
from tiledse.choose.calibration import calibrate
from tiledse.networks.network import TorchNetwork
from tiledse.stream.simulator import simulate

SIZE = (3, 23, 13)

pytestmark = pytest.mark.slow  # half a minute: `make test-slow`


class SE(nn.Module):
    def __init__(self, reduce, widen):
        super().__init__()
        self.reduce, self.widen = reduce, widen

    def forward(self, x):
        return torch.sigmoid(self.widen(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))) * x


class Inline(nn.Module):
    """A block with SE inline; ``modular`` gives it a module."""

    def __init__(self, modular):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.reduce, self.widen = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project = nn.Conv2d(8, 6, 1)
        self.se = SE(self.reduce, self.widen) if modular else None

    def forward(self, inputs):
        x = F.silu(self.depthwise(F.silu(self.expand(inputs))))
        if self.se is None:
            z = self.widen(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
            x = torch.sigmoid(z) * x
        else:
            x = self.se(x)
        return self.project(x) + inputs


def network(modular):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), *(Inline(modular) for _ in range(2)), nn.Conv2d(6, 4, 1)
    ).eval()


@pytest.fixture(scope="module")
def pair():
    return network(False), network(True)


def plans(pair, tile):
    return tuple(ts.find(model, SIZE).with_tile(tile) for model in pair)


def test_cost(pair):
    inline, modular = (ts.cost(plan) for plan in plans(pair, "3xW"))
    assert inline.tse == modular.tse
    assert inline.se == modular.se


@pytest.mark.parametrize("tile", ["3xW", "4x5", "2xW:running"])
def test_stream_and_simulate(pair, tile):
    inline, modular = plans(pair, tile)
    streams = [
        ts.stream(model, plan, height=None) for model, plan in zip(pair, (inline, modular), strict=True)
    ]
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        assert difference(streams[0](x, chunk=5), ts.convert(pair[0], inline)(x)) < 1e-5
    assert streams[0].whole == {}
    held = [[(h.kind, h.elements) for h in stream.held()] for stream in streams]
    assert held[0] == held[1]
    assert sum(n for kind, n in held[0] if kind == "gate") == ts.cost(inline).tse.buffer_row_order
    runs = [simulate(model, plan) for model, plan in zip(pair, (inline, modular), strict=True)]
    assert [(s.kind, s.rows, s.peak) for s in runs[0].stages] == [
        (s.kind, s.rows, s.peak) for s in runs[1].stages
    ]


def test_calibrate(pair):
    x = torch.randn(40, *SIZE)
    fitted = []
    for model in pair:
        judge = TorchNetwork(model, SIZE)
        fitted.append(calibrate(judge, judge.se.with_tile("5xW"), lambda: iter(x.split(20))))
    for a, b in zip(fitted[0].corrections, fitted[1].corrections, strict=True):
        assert np.allclose(a.own, b.own, atol=1e-5)
        assert np.allclose(a.offset, b.offset, atol=1e-5)
    tse = ts.convert(pair[0], fitted[0])
    assert ts.find(tse, SIZE) == fitted[0]
    assert list(tse.state_dict()) == list(pair[0].state_dict())
    y = torch.randn(2, *SIZE)
    assert torch.allclose(tse(y), ts.convert(pair[1], fitted[1])(y), atol=1e-5)


def test_what_the_measures_see(pair):
    seen = []
    x = torch.randn(2, *SIZE)
    for model in pair:
        network, maps = TorchNetwork(model, SIZE), {}
        network.observe(x, maps.__setitem__)
        seen.append([network.excite(i, network.squeeze(i, maps[i], ts.Tile.parse("3xW"))) for i in maps])
        outputs = list(network.branches([network.se.with_tile("3xW", "2.*")])(x))
        seen[-1] += outputs
    assert len(seen[0]) == 4
    for a, b in zip(*seen, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
