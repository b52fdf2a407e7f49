"""Convert: the blocks of people who never heard of it stay what they are to the code about them."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiledse as ts
from tests.reference import by_crops

SIZE = (3, 12, 10)


class Gate(nn.Module):
    """A plain gate; ``mid`` goes between the layers."""

    def __init__(self, mid=None):
        super().__init__()
        between = [mid] if mid is not None else []
        self.f = nn.Sequential(nn.Conv2d(8, 8, 1), *between, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.f(F.adaptive_avg_pool2d(x, 1))


def net(block):
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), block, nn.Conv2d(8, 8, 3, padding=1)).eval()


def converted(model, tile="5xW", **options):
    return ts.convert(model, ts.find(model, SIZE).with_tile(tile), **options)


def assert_tiled(tse, model, tile="5xW"):
    """The block equals the old one called on each tile alone."""
    x = torch.randn(2, 8, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(tse[1](x.clone()), by_crops(model[1], x, tile), rtol=1e-5, atol=1e-6)


class Feat(Gate):
    """Called by another name, with a method, a property, a class attribute and names that a TiledBlock has too."""

    kind = "feat"

    def __init__(self):
        super().__init__()
        self.excite, self.layers, self.tile = self.f[:2], self.f[2:], "mine"
        del self.f

    @property
    def width(self):
        return self.excite[0].out_channels

    def gates(self, z):
        return self.layers(self.excite(z))

    def forward(self, feat, scale: float = 1.0):
        return feat * self.gates(F.adaptive_avg_pool2d(feat, 1))


def test_it_is_an_instance_of_its_own_class_still():
    model = net(Feat())
    block = converted(model)[1]
    assert isinstance(block, Feat)
    assert isinstance(block, ts.TiledBlock)
    assert (block.kind, block.width, block.tile) == ("feat", 8, "mine")
    assert str(block.tiledse.tile) == "5xW"
    assert isinstance(block.layers, nn.Sequential)
    assert inspect.signature(block.forward) == inspect.signature(model[1].forward)
    assert type(block) is type(converted(model)[1])
    assert "TiledFeat" in repr(block)
    assert "tile=5xW" in repr(block)


def test_it_is_called_by_the_names_of_its_own_forward():
    model = net(Feat())
    tse = converted(model)
    x = torch.randn(2, 8, 12, 10)
    with torch.no_grad():
        for y in (tse[1](x), tse[1](feat=x), tse[1](x, 1.0), tse[1](x, scale=1.0)):
            torch.testing.assert_close(y, by_crops(model[1], x, "5xW"))
        with pytest.raises(ts.TiledSEError, match="called with 'scale'; leave this block"):
            tse[1](x, scale=2.0)
        with pytest.raises(TypeError, match=r"takes \(feat, scale\), got 0"):
            tse[1](x=x)


def test_it_is_the_object_that_others_hold():
    """A list names the block too; put in its place among the modules alone, the list would go on with plain SE."""

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.se = nn.Conv2d(3, 8, 3, padding=1), Gate()
            self.steps = [self.stem, self.se]

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    torch.manual_seed(0)
    model = Holds().eval()
    tse = converted(model)
    x = torch.randn(1, *SIZE)
    torch.testing.assert_close(tse(x), by_crops(model.se, model.stem(x), "5xW"))
    assert not torch.allclose(tse(x), model(x))


@pytest.mark.parametrize("make", [Gate, Feat])
def test_copies_pickles_and_restores(make):
    model = net(make())
    tse = converted(model)
    x = torch.randn(1, *SIZE)
    for twin in (copy.deepcopy(tse), pickle.loads(pickle.dumps(tse))):
        assert torch.equal(twin(x), tse(x))
        assert type(twin[1]) is type(tse[1])
        assert twin.state_dict().keys() == model.state_dict().keys()
    back = ts.convert(tse, ts.find(model, SIZE))
    assert type(back[1]) is make
    assert torch.equal(back(x), model(x))


def test_restore_shares_the_parameters():
    block = converted(net(Gate()))[1]
    plain = block.restore()
    assert type(plain) is Gate
    assert plain.f[0].weight is block.f[0].weight
    assert isinstance(block, ts.TiledBlock)


def test_a_register_of_subclasses_is_left_alone():
    known = []

    class Registered(Gate):
        def __init_subclass__(cls, key, **options):
            known.append(key)

    model = net(Registered())
    assert_tiled(converted(model), model)
    assert not known


def test_a_class_that_copies_itself_in_its_own_way():
    class Copies(Gate):
        def __deepcopy__(self, memo):
            twin = type(self)()
            twin.load_state_dict(self.state_dict())
            return twin.train(self.training)

    model = net(Copies())
    tse = converted(model)
    assert_tiled(copy.deepcopy(tse), model)
    assert isinstance(copy.deepcopy(tse)[1], Copies)
