"""The count of SE products, which judges what `find` finds in other libraries, on networks with known answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.reference import tiled_squeeze_excite
from tests.third_party.products import products


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def gate(self, z):
        return self.b(self.a(z).relu()).sigmoid()

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True))


class Flat(Gate):
    def forward(self, x):
        z = x.flatten(2).mean(2)[:, :, None, None]
        return x * self.gate(z)


class OneAxisAtATime(Gate):
    def forward(self, x):
        return x.mul_(self.gate(x.sum(3, keepdim=True).sum(2, keepdim=True) / (x.shape[2] * x.shape[3])))


class Expands(Gate):
    def forward(self, x):
        return x * self.gate(F.adaptive_avg_pool2d(x, 1)).expand_as(x)


class AnotherMap(Gate):
    def forward(self, x):
        return x * self.gate(x.relu().mean((2, 3), keepdim=True))


class Spatial(Gate):
    def forward(self, x):
        return x * x.mean(1, keepdim=True).sigmoid()


class Pools(Gate):
    def forward(self, x):
        return x + self.gate(x.mean((2, 3), keepdim=True))


def network(block):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), block(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.mark.parametrize("block", [Gate, Flat, OneAxisAtATime, Expands], ids=lambda c: c.__name__)
def test_se_is_counted(block):
    found = products(network(block), torch.randn(1, 3, 14, 11))
    assert [(p.owner, tuple(p.x.shape)) for p in found] == [("1", (1, 8, 12, 9))]


@pytest.mark.parametrize("block", [AnotherMap, Spatial, Pools], ids=lambda c: c.__name__)
def test_what_is_no_se_is_not_counted(block):
    assert not products(network(block), torch.randn(1, 3, 14, 11))


@pytest.mark.parametrize("block", [Gate, Flat])
def test_the_recorded_steps_on_each_tile_are_the_formula(block):
    model = network(block)
    (product,) = products(model, torch.randn(1, 3, 14, 11))
    with torch.no_grad():

        def excite(z):
            return model[1].gate(torch.tensor(z, dtype=torch.float32)[None, :, None, None]).flatten().numpy()

        expected = torch.tensor(tiled_squeeze_excite(product.x.numpy(), "5xW", excite), dtype=torch.float32)
        got = torch.cat([product.replay(part) for part in product.x.split(5, 2)], 2)
    assert torch.allclose(got, expected, atol=1e-5)
