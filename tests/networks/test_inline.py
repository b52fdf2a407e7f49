"""SE that is written inline in a larger forward: found, converted and proved like a block of its own."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiledse as ts
from tests.reference import tiled_squeeze_excite
from tiledse.networks.building import with_excitation, without_attention
from tiledse.networks.converter import convert_shared
from tiledse.networks.network import TorchNetwork

SIZE = (3, 20, 16)


class MBConv(nn.Module):
    """As written by hand, and in efficientnet_pytorch, smp and MONAI: flags, an argument, another path in training."""

    def __init__(self, channels=6, wide=12, stride=1, has_se=True):
        super().__init__()
        self.stride, self.has_se = stride, has_se
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(wide), nn.BatchNorm2d(wide), nn.BatchNorm2d(channels)
        if has_se:
            self.reduce, self.widen = nn.Conv2d(wide, 3, 1), nn.Conv2d(3, wide, 1)
        self.project = nn.Conv2d(wide, channels, 1, bias=False)

    def forward(self, inputs, drop_connect_rate=None):
        x = F.silu(self.bn0(self.expand(inputs)))
        x = F.silu(self.bn1(self.depthwise(x)))
        if self.has_se:
            z = F.adaptive_avg_pool2d(x, 1)
            z = self.widen(F.silu(self.reduce(z)))
            x = torch.sigmoid(z) * x
        x = self.bn2(self.project(x))
        if self.stride == 1:
            if drop_connect_rate and self.training:
                kept = torch.floor(1 - drop_connect_rate + torch.rand([x.shape[0], 1, 1, 1], device=x.device))
                x = x / (1 - drop_connect_rate) * kept
            x = x + inputs
        return x


class Net(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(blocks or (MBConv(), MBConv(stride=2), MBConv(has_se=False), MBConv()))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = (
                block(x, drop_connect_rate=0.4 * i / len(self.blocks))
                if isinstance(block, MBConv)
                else block(x)
            )
        return self.head(x.mean((2, 3)))


def trained(model):
    """A network whose numbers are as large at its end as at its start."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.fixture
def model():
    return trained(Net())


@pytest.fixture
def plan(model):
    return ts.find(model, SIZE).with_tile("3xW")


def test_names_and_shapes_are_those_of_the_inner_map(model):
    plan = ts.find(model, SIZE)
    assert [(b.name, b.channels, b.reduced, b.height, b.width) for b in plan.blocks] == [
        ("blocks.0.inline_se", 12, 3, 20, 16),
        ("blocks.1.inline_se", 12, 3, 10, 8),
        ("blocks.3.inline_se", 12, 3, 10, 8),
    ]
    assert plan.blocks[0].excite_macs == 2 * 12 * 3 + 3 + 12
    assert [m.name for m in plan.near_misses] == ["(the network)"]  # the head's pool
    assert list(plan.stages) == ["blocks.0", "blocks.1", "blocks.3"]


def test_the_tiled_network_is_the_formula(model, plan):
    """One block by the four loops of the reference, inside the forward written out once more."""
    block, tse = model.blocks[1], ts.convert(model, plan).blocks[1]
    x = torch.randn(2, 6, 20, 16)
    with torch.no_grad():
        y = F.silu(block.bn1(block.depthwise(F.silu(block.bn0(block.expand(x))))))

        def excite(z):
            z = torch.tensor(z, dtype=torch.float32)[None, :, None, None]
            return block.widen(F.silu(block.reduce(z))).sigmoid().flatten().numpy()

        tiled = torch.tensor(tiled_squeeze_excite(y.numpy(), "3xW", excite), dtype=torch.float32)
        expected = block.bn2(block.project(tiled))
        assert torch.allclose(tse(x), expected, atol=1e-5)
        assert not torch.allclose(block(x), expected, atol=1e-3)


def test_the_network_stays_what_it_is(model, plan):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    tse = ts.convert(model, plan)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(tse.state_dict()) == list(before)
    assert len(list(tse.parameters())) == len(list(model.parameters()))
    tse.load_state_dict(model.state_dict(), strict=True)
    assert isinstance(tse.blocks[0], MBConv)
    assert tse.blocks[0].stride == 1
    assert type(tse.blocks[2]) is MBConv  # it has no SE


@pytest.mark.slow
def test_found_again_and_back(model, plan, tmp_path):
    tse = ts.convert(model, plan)
    assert ts.find(tse, SIZE) == plan
    mixed = plan.with_tile("HxW", "blocks.3.*").with_tile("2x2", "blocks.1.*")
    assert ts.find(ts.convert(tse, mixed), SIZE) == mixed
    plan.save(tmp_path / "plan.json")
    assert ts.Plan.load(tmp_path / "plan.json") == plan
    whole = plan.with_tile("HxW")
    back = ts.convert(tse, whole)
    x = torch.randn(2, *SIZE)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert [vars(m).keys() for m in back.modules()] == [vars(m).keys() for m in model.modules()]
    assert torch.equal(back(x), model(x))
    # Copies for measuring keep the blocks as modules.
    assert ts.find(convert_shared(tse, whole), SIZE) == whole


@pytest.mark.parametrize("training", [False, True])
def test_one_tile_is_the_network_in_either_mode(model, plan, training):
    tse = ts.convert(model, plan.with_tile(ts.Tile(10**9, 10**9))).train(training)
    model.train(training)
    x = torch.randn(4, *SIZE)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    got = tse(x)
    assert torch.allclose(got, expected, atol=1e-5)
    got.sum().backward()
    expected.sum().backward()
    for p, q in zip(model.parameters(), tse.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-3, rtol=1e-3)


def test_another_argument_is_another_trace(model, plan):
    block = ts.convert(model, plan.with_tile(ts.Tile(10**9, 10**9))).blocks[0].train()
    own = model.blocks[0].train()
    x = torch.randn(8, 6, 12, 12)
    for arguments in (
        {},
        {"drop_connect_rate": 0.3},
        {"drop_connect_rate": 0.6},
        {"drop_connect_rate": None},
    ):
        torch.manual_seed(1)
        expected = own(x, **arguments)
        torch.manual_seed(1)
        assert torch.allclose(block(x, **arguments), expected, atol=1e-5)


def test_an_attribute_that_changes_is_another_trace(model, plan):
    block, own = ts.convert(model, plan.with_tile(ts.Tile(10**9, 10**9))).blocks[0], model.blocks[0]
    x = torch.randn(2, 6, 12, 12)
    assert torch.allclose(block(x), own(x), atol=1e-5)
    block.stride = own.stride = 7  # no residual any more
    assert torch.allclose(block(x), own(x), atol=1e-5)
    block.has_se = False
    with pytest.raises(ts.TiledSEError, match="computes other SE than when it was found"):
        block(x)


@pytest.mark.slow
def test_copies_and_pickles(model, plan):
    tse = ts.convert(model, plan)
    x = torch.randn(1, *SIZE)
    for twin in (copy.deepcopy(tse), pickle.loads(pickle.dumps(tse))):
        assert torch.equal(twin(x), tse(x))
        twin.blocks[0].reduce.weight.data.zero_()  # its own layers, not those that it was copied from
        assert not torch.equal(twin(x), tse(x))
        assert ts.find(twin, SIZE) == plan


def test_dtype_moves_with_the_network(model, plan):
    tse = ts.convert(model, plan).double()
    assert tse(torch.randn(1, *SIZE).double()).dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("way", ["export", "compile"])
def test_tools_that_trace(model, plan, way):
    tse = ts.convert(model, plan)
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        expected = tse(x)
        if way == "export":
            made = torch.export.export(tse, (x,), strict=False).module()
        else:
            made = torch.compile(tse, backend="eager")
        assert torch.allclose(made(x), expected, atol=1e-6)


def test_blocks_from_scratch_are_refused(model, plan):
    for build in (lambda: without_attention(model, plan), lambda: with_excitation(model, "3xW", SIZE)):
        with pytest.raises(ts.TiledSEError, match="'blocks.0.inline_se' is written inline"):
            build()


class Twice(nn.Module):
    """Two blocks in one forward, the first in a Sequential, with the batch size of another map; in place."""

    def __init__(self):
        super().__init__()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid()
        )
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x):
        n, c, _, _ = x.size()
        x = x * self.se(x) + x
        y = self.conv(x)
        z = self.fc2(F.relu(self.fc1(y.mean((2, 3))))).sigmoid()
        y.mul_(z.view(n, c, 1, 1))
        return x + y


def test_several_in_one_forward(tmp_path):
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 1), Twice(), nn.Conv2d(6, 2, 1)))
    plan = ts.find(model, SIZE)
    assert [(b.name, b.reduced) for b in plan.blocks] == [("1.inline_se", 2), ("1.inline_se_2", 4)]
    tiles = plan.with_tile("3xW", "1.inline_se").with_tile("4x4", "*_2")
    tse = ts.convert(model, tiles)
    assert ts.find(tse, SIZE) == tiles
    x, own = torch.randn(2, *SIZE), model[1]
    with torch.no_grad():
        a = model[0](x)
        b = torch.cat([q * own.se(q) for q in a.split(3, 2)], 2) + a
        c = own.conv(b)
        rows = []
        for row in c.split(4, 2):
            gates = [
                own.fc2(F.relu(own.fc1(q.mean((2, 3))))).sigmoid()[:, :, None, None] for q in row.split(4, 3)
            ]
            rows.append(torch.cat([q * g for q, g in zip(row.split(4, 3), gates)], 3))
        assert torch.allclose(tse(x), model[2](b + torch.cat(rows, 2)), atol=1e-5)


class Root(nn.Module):
    """The whole network is one forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.inline_se = 3  # the name is taken
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x.mean((2, 3)))


def test_at_the_root():
    model = trained(Root())
    plan = ts.find(model, SIZE).with_tile("4xW")
    assert [(b.name, b.height) for b in plan.blocks] == [("inline_se_2", 10)]
    tse = ts.convert(model, plan)
    assert ts.find(tse, SIZE) == plan
    assert isinstance(tse, Root)
    x = torch.randn(1, *SIZE)
    a = model.stem(x)
    tiled = [q * model.b(model.a(q.mean((2, 3), keepdim=True)).relu()).sigmoid() for q in a.split(4, 2)]
    assert torch.allclose(tse(x), model.head(torch.cat(tiled, 2).mean((2, 3))), atol=1e-5)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)

    def gate(self, x):
        return self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class GateUsedTwice(Base):
    reason = "is used by 'add' as well"

    def forward(self, x):
        x = self.conv(x)
        g = self.gate(x)
        return x * g + (g + 1)


class OtherInput(Base):
    reason = "which does not come from the map that it gates"

    def forward(self, x):
        y = self.conv(x)
        return y * (self.gate(y) * self.a(x).mean()) + x


class InAutocast(Base):
    reason = "runs in a context of its own"

    def forward(self, x):
        y = self.conv(x)
        with torch.autocast("cpu", enabled=True):
            y = y * self.gate(y)
        return x + y


class Stores(Base):
    reason = "stores 'seen' on itself"

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen = self.seen + 1
        y = self.conv(x)
        return x + y * self.gate(y)


class Hooked(Twice):
    reason = "has hooks, which would be passed over"

    def __init__(self):
        super().__init__()
        self.se.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "block", [GateUsedTwice, OtherInput, InAutocast, Stores, Hooked], ids=lambda c: c.__name__
)
def test_refused_with_the_true_reason(block):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), block()).eval()
    plan = ts.find(model, SIZE)
    assert not len(plan)
    assert any(block.reason in miss.reason for miss in plan.near_misses), plan.near_misses


class AsksWhoRuns(Base):
    """Another forward for exporters: the trace that was made for eager runs is none for them."""

    def forward(self, x):
        y = self.conv(x)
        y = y * self.gate(y)
        return y if torch.compiler.is_exporting() else x + y


def test_a_forward_that_asks_who_runs_it_is_asked_again():
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 1), AsksWhoRuns()))
    tse = ts.convert(model, ts.find(model, SIZE).with_tile(ts.Tile(10**9, 10**9)))
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        assert torch.allclose(tse(x), model(x), atol=1e-5)
        own, ours = (torch.export.export(m, (x,), strict=False).module()(x) for m in (model, tse))
        assert torch.allclose(ours, own, atol=1e-5)
        assert not torch.allclose(ours, tse(x), atol=1e-2)


class GivesNothingBack(Net):
    """``train`` gives nothing back, and so ``eval``: mmpretrain's networks are so."""

    def train(self, mode=True):
        super().train(mode)


def test_a_network_whose_train_gives_nothing_back():
    model = GivesNothingBack()
    model.eval()
    network = TorchNetwork(model, SIZE)
    assert len(network.se) == 3
    assert network.tiled(network.se.with_tile("3xW"))(torch.randn(1, *SIZE)).shape == (1, 5)
    assert TorchNetwork(model, SIZE).tiled(network.se)(torch.randn(1, *SIZE)).shape == (1, 5)


class PythonRandom(Base):
    """Stochastic depth drawn in Python: right in eval mode, and told in training mode."""

    def forward(self, x):
        if self.training and random.random() < 0.5:
            return x
        y = self.conv(x)
        return x + y * self.gate(y)


def test_what_cannot_be_rewritten_in_training_says_so_there():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), PythonRandom()).eval()
    plan = ts.find(model, SIZE).with_tile("3xW")
    assert len(plan) == 1
    tse = ts.convert(model, plan)
    assert tse(torch.randn(1, *SIZE)).isfinite().all()
    with pytest.raises(ts.TiledSEError, match="draws random numbers"):
        tse.train()(torch.randn(1, *SIZE))


class DropsInExcitation(Base):
    """Another excitation in training mode."""

    def forward(self, x):
        y = self.conv(x)
        z = F.dropout(self.a(y.mean((2, 3), keepdim=True)).relu(), 0.5, self.training)
        return x + y * self.b(z).sigmoid()


def test_dropout_in_the_excitation_is_kept():
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 1), DropsInExcitation()))
    tse = ts.convert(model, ts.find(model, SIZE).with_tile(ts.Tile(10**9, 10**9)))
    x = torch.randn(3, *SIZE)
    for training in (False, True):
        torch.manual_seed(0)
        expected = model.train(training)(x)
        torch.manual_seed(0)
        assert torch.allclose(tse.train(training)(x), expected, atol=1e-5)
