"""Find on what other people write: right, or a near miss with the true reason."""

from __future__ import annotations

import copy
import functools
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiledse as ts
from tests.networks.strangers import FOUND, POOLS, C, Gate, Linears, gate
from tests.reference import by_crops
from tiledse.networks.dialects import known_dialect

SIZE = (3, 10, 9)


def net(*blocks):
    return nn.Sequential(nn.Conv2d(3, C, 3, padding=1), *blocks, nn.Conv2d(C, C, 3, padding=1)).eval()


def converted(model, size=SIZE, tile="3xW"):
    return ts.convert(model, ts.find(model, size).with_tile(tile))


@pytest.mark.parametrize("name", FOUND)
def test_found_and_right(name):
    torch.manual_seed(0)
    dtype = torch.float if name in ("float mean", "own pool", "pool deeper") else torch.double
    block = FOUND[name]().to(dtype)
    model = net(block).to(dtype)
    (found,) = ts.find(model, SIZE).blocks
    assert (found.name, found.channels, found.height, found.width) == ("1", C, 10, 9)
    x = torch.randn(2, C, 10, 9, dtype=dtype)
    for tile in ("3xW", "3x4"):
        tse = converted(model, tile=tile)
        torch.testing.assert_close(tse[1](x.clone()), by_crops(block, x.clone(), tile), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_whatever_pools_a_whole_map_is_told(name):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(C, 5)

        def forward(self, x):
            return self.fc(POOLS[name](x))

    model = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), Head()).eval()
    plan = ts.find(model, (3, 10, 10))
    assert [(miss.name, miss.reason) for miss in plan.near_misses] == [
        ("1", "what it pools is not multiplied back onto the map that was pooled")
    ]


@pytest.mark.parametrize(
    ("squeeze", "word"),
    [
        (lambda s, x: F.adaptive_max_pool2d(x, 1), "a maximum"),
        (lambda s, x: x.std((2, 3), keepdim=True), "a deviation|a variance"),
        (lambda s, x: x.mean((2, 3), True) + x.amax((2, 3), True), "a maximum"),
        (lambda s, x: x.pow(3).mean((2, 3), True), "not multiplied back"),
        (lambda s, x: x.mean((0, 2, 3), True), "other numbers"),
        (lambda s, x: F.adaptive_avg_pool2d(x, 2).amax((2, 3), True), "not multiplied back"),
    ],
)
def test_what_is_squeezed_is_no_mean(squeeze, word):
    model = net(type("Other", (Gate,), {"squeeze": squeeze})())
    plan = ts.find(model, (3, 10, 10))
    assert not plan.blocks
    assert any(part in plan.near_misses[0].reason for part in word.split("|")), plan.near_misses


def test_volumes_are_told():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv3d(1, C, 3, padding=1), nn.Linear(C, C)

        def forward(self, x):
            y = self.conv(x[:, None])
            return y * self.fc(y.mean((2, 3, 4))).sigmoid()[:, :, None, None, None]

    plan = ts.find(Volume().eval(), (4, 6, 6))
    assert not plan.blocks
    assert plan.near_misses


# What a forward stores.


class Caches(nn.Module):
    """Keeps a tensor on itself, in a module's table, on its class, in a list, behind a function, and counts."""

    table: ClassVar = {}
    rows: ClassVar = None
    log: ClassVar = []

    def __init__(self):
        super().__init__()
        self.c, self.pos, self.seen = nn.Conv2d(3, C, 1), None, []
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.block = Gate()

    def forward(self, x):
        if self.pos is None:
            self.pos = torch.linspace(0, 1, x.shape[-1])
        self.count += 1
        key = tuple(x.shape)
        if key not in Caches.table:
            Caches.table[key] = (torch.zeros_like(x[:, :1]), x.new_ones(1))
        if Caches.rows is None:
            Caches.rows = x.new_zeros(())
        y = (
            self.block(self.c(x) + self.pos + positions(x.shape[-2], x.device)[:, None])
            + Caches.table[key][1]
        )
        self.seen.append(y)
        Caches.log.append(y)
        return y + Caches.rows


@functools.lru_cache
def positions(rows, device):
    return torch.arange(rows, device=device) * torch.ones(rows)


def test_nothing_without_numbers_is_left_behind():
    from torch._subclasses.fake_tensor import FakeTensor

    model = Caches().train()
    before = {key: copy.copy(value) for key, value in vars(model).items()}
    plan = ts.find(model, SIZE)
    assert [b.name for b in plan.blocks] == ["block"]
    after = vars(model)
    assert before.keys() == after.keys()
    assert model.pos is None
    assert model.seen == []
    assert int(model.count) == 0
    assert model.training
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert Caches.rows is None
    assert Caches.log == []
    assert not Caches.table
    x = torch.randn(1, *SIZE)
    for network in (model, Caches()):
        out = network(x)
        assert not isinstance(out, FakeTensor)
        assert out.isfinite().all()
    Caches.table.clear()
    Caches.log.clear()
    Caches.rows = None


def test_levit_caches_the_biases_of_its_users_alone():
    import timm

    model = timm.create_model("levit_128s").eval()
    plan = ts.find(model, (3, 224, 224))
    assert not plan.blocks
    caches = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert caches
    assert not any(caches)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).isfinite().all()
    assert all(type(t) is torch.Tensor for cache in caches for t in cache.values())


def test_a_parameter_that_the_forward_writes_is_as_it_was():
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.block = nn.Parameter(torch.tensor([2.0])), Gate()
            self.c = nn.Conv2d(3, C, 1)

        def forward(self, x):
            self.w.data.clamp_(0, 1)
            return self.block(self.c(x)) * self.w

    model = Clamps()
    ts.find(model, SIZE)
    assert model.w.item() == 2


# What an object is, rather than what it is called.


def squeeze_excitation():
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(C, 4)


def test_a_forward_set_on_the_object():
    block = squeeze_excitation()
    own = block.forward
    block.forward = lambda x: own(x)
    plan = ts.find(net(block), SIZE)
    assert not plan.blocks
    assert "set on the object itself" in {m.name: m.reason for m in plan.near_misses}["1"]


def test_a_registered_class_with_another_pool():
    block = squeeze_excitation()
    block.avgpool = nn.AdaptiveMaxPool2d(1)
    assert known_dialect(block) is not None
    plan = ts.find(net(block), SIZE)
    assert not plan.blocks
    assert [m.name for m in plan.near_misses] == ["1"]


def test_a_registered_class_with_a_hook_in_it_is_read_as_it_is():
    torch.manual_seed(0)
    block = squeeze_excitation()
    block.avgpool.register_forward_hook(lambda module, args, out: out * 3)
    model = net(block)
    plan = ts.find(model, SIZE)
    assert [b.dialect for b in plan.blocks] == ["traced"]
    x = torch.randn(2, C, 10, 9)
    torch.testing.assert_close(converted(model)[1](x), by_crops(block, x, "3xW"), rtol=1e-5, atol=1e-6)


class Live(Gate):
    """Reads a temperature and a flag at each call, and stores what it saw."""

    def __init__(self):
        super().__init__()
        self.temperature, self.doubled, self.last = 1.0, False, None

    def forward(self, x):
        g = self.f(x.mean((2, 3), True)) / self.temperature
        if self.doubled:
            g = g * 2
        self.last = g
        return x * g


def test_attributes_are_read_at_each_call():
    torch.manual_seed(0)
    block = Live()
    tse = converted(net(block))
    x = torch.randn(2, C, 10, 9)
    for temperature, doubled in ((1.0, False), (3.0, False), (0.5, True)):
        for one in (block, tse[1]):
            one.temperature, one.doubled = temperature, doubled
        torch.testing.assert_close(tse[1](x), by_crops(block, x, "3xW"), rtol=1e-5, atol=1e-6)
    assert tse[1].last.shape == (2 * 4, C, 1, 1)


def test_torch_fx_says_what_it_cannot_follow():
    tse = converted(net(Gate()))
    with pytest.raises(ts.TiledSEError, match=r"^torch.fx cannot trace the own forward.*use torch.export"):
        torch.fx.symbolic_trace(tse)


# Whose pool it is.


def test_one_pool_for_several_blocks():
    pool = nn.AdaptiveAvgPool2d(1)

    class Shares(Gate):
        def __init__(self):
            super().__init__()
            self.pool = pool

        def forward(self, x):
            return x * self.f(self.pool(x))

    plan = ts.find(net(Shares(), Shares(), Shares()), SIZE)
    assert [b.name for b in plan.blocks] == ["1", "2", "3"]
    assert not plan.near_misses


def test_another_pool_in_the_module_around_hides_no_block():
    class Routed(nn.Module):
        """CondConv (Yang et al., 2019): the pool of a block's input weighs its kernels; its SE comes after."""

        def __init__(self, other):
            super().__init__()
            self.other, self.route, self.se = other, nn.Linear(C, 2), Gate()
            self.kernels = nn.Parameter(torch.randn(2, C, C, 1, 1))

        def forward(self, x):
            weights = self.route(x.mean((2, 3))).sigmoid()
            kernel = (weights[0, :, None, None, None, None] * self.kernels).sum(0)
            y = F.conv2d(x, kernel)
            if self.other:
                y = y * F.adaptive_max_pool2d(y, 1).sigmoid()
            return self.se(y)

    plan = ts.find(net(Routed(False), Routed(True)), SIZE)
    assert [block.name for block in plan.blocks] == ["1.se", "2.se"]
    reasons = {miss.name: miss.reason for miss in plan.near_misses}
    assert "not multiplied back" in reasons["1"]
    assert "maximum" in reasons["2"] or "larger forward" in reasons["2"]


def test_a_block_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.se = nn.Conv2d(3, C, 1), Gate()

        def forward(self, x):
            return self.se(self.se(self.c(x)))

    model = Twice().eval()
    plan = ts.find(model, SIZE)
    (block,) = plan.blocks
    assert block.calls == 2
    tiled = plan.with_tile("3xW")
    cost = ts.cost(tiled)
    assert cost.se.buffer == 2 * C * 10 * 9
    assert cost.tse.buffer == 2 * C * 3 * 9
    excite = C * 4 + 4 + 4 * C + C
    assert cost.se.macs == C * 3 * 90 + C * 90 + 2 * excite
    assert cost.tse.macs == cost.se.macs + 2 * 3 * excite
    again = ts.find(ts.convert(model, tiled), SIZE)
    assert again == tiled
    assert ts.cost(again) == cost
    assert ts.Plan.from_dict(tiled.to_dict()) == tiled


def test_a_block_that_is_the_model():
    plan = ts.find(Gate().eval(), (C, 10, 9))
    assert [(b.name, b.channels) for b in plan.blocks] == [("", C)]


# Where it runs.


def test_weights_on_meta():
    with torch.device("meta"):
        model = net(Gate(), Linears(), squeeze_excitation())
    plan = ts.find(model, SIZE)
    assert [b.name for b in plan.blocks] == ["1", "2", "3"]
    assert all(p.is_meta for p in model.parameters())
    assert plan.network == ts.find(net(Gate(), Linears(), squeeze_excitation()), SIZE).network


def test_weights_that_are_fake_and_on_a_gpu():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cuda"):
        model = net(Gate(), Linears(), squeeze_excitation())
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert [b.name for b in ts.find(model, SIZE).blocks] == ["1", "2", "3"]


# What it takes.


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.block = nn.Conv2d(3, C, 1), Gate()

    def forward(self, image, scale, *, extra=None):
        y = self.block(self.c(image) * scale["by"])
        return y if extra is None else y + extra


def test_example_inputs():
    model = TwoInputs().eval()
    image, by = torch.randn(1, *SIZE), {"by": torch.ones(1)}
    for example in ((image, by), [image, by], {"image": image, "scale": by, "extra": torch.ones(1)}):
        plan = ts.find(model, example_inputs=example)
        assert [(b.name, b.height, b.width) for b in plan.blocks] == [("block", 10, 9)]
        assert plan.input_size == SIZE
    tse = ts.convert(model, plan.with_tile("3xW"), example_inputs=(image, by))
    inside = model.c(image)
    torch.testing.assert_close(tse(image, by), by_crops(model.block, inside, "3xW"), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ts.TiledSEError, match=r"forward takes \(image, scale, \*, extra=None\): .*example_inputs"
    ):
        ts.find(model, SIZE)
    with pytest.raises(ts.TiledSEError, match="hold no image"):
        ts.find(model, example_inputs={"image": torch.ones(3), "scale": by})
    with pytest.raises(ts.TiledSEError, match="give one of them"):
        ts.find(model, (3, 4, 4), example_inputs=(image, by))


@pytest.mark.filterwarnings("ignore")
def test_kinds_of_network_that_cannot_be_read():
    model, x = net(Gate()), torch.randn(1, *SIZE)
    with pytest.raises(ts.TiledSEError, match="this is TorchScript"):
        ts.find(torch.jit.trace(model, x), SIZE)
    with pytest.raises(ts.TiledSEError, match="this is an ExportedProgram"):
        ts.find(torch.export.export(model, (x,)), SIZE)
    with pytest.raises(ts.TiledSEError, match=r"expected a network \(torch.nn.Module\), got Tensor"):
        ts.find(x, SIZE)
    quantised = nn.Sequential(model, torch.ao.nn.quantized.Conv2d(C, C, 1))
    with pytest.raises(ts.TiledSEError, match="'1' is a quantised Conv2d"):
        ts.find(quantised, SIZE)


def test_an_error_of_its_own_is_not_one_of_the_size():
    class Broken(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.c, self.error = nn.Conv2d(3, C, 1), error

        def forward(self, x):
            raise self.error

    for error, advised in (
        (KeyError("bias"), False),
        (RuntimeError("no such file"), False),
        (RuntimeError("The size of tensor a (4) must match"), True),
        (AssertionError("Input height (10) doesn't match model (224)."), True),
    ):
        with pytest.raises(ts.TiledSEError, match="the network fails on an input of 3x10x9") as raised:
            ts.find(Broken(error).eval(), SIZE)
        assert ("give the CxHxW that it takes" in str(raised.value)) is advised


def test_a_final_pool_is_no_larger_forward():
    class Head(nn.Module):
        """A block, then a pool and a classifier, in one forward."""

        def __init__(self):
            super().__init__()
            self.c, self.block, self.fc = nn.Conv2d(3, C, 1), Gate(), nn.Linear(C, 5)

        def forward(self, x):
            y = self.block(self.c(x))
            return self.fc(y.mean((2, 3))) * 2

    plan = ts.find(Head().eval(), SIZE)
    assert len(plan) == 1
    assert [miss.reason for miss in plan.near_misses] == [
        "what it pools is not multiplied back onto the map that was pooled"
    ]


def test_einops():
    einops = pytest.importorskip("einops")

    class Einops(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = gate()

        def forward(self, x):
            z = einops.reduce(x, "n c h w -> n c", "mean")
            return x * self.f(einops.rearrange(z, "n c -> n c 1 1"))

    torch.manual_seed(0)
    block, x = Einops(), torch.randn(2, C, 10, 9)
    torch.testing.assert_close(converted(net(block))[1](x), by_crops(block, x, "3xW"), rtol=1e-5, atol=1e-6)


def test_gate_and_bias_are_refused_with_the_reason():
    class GateAndBias(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(8, 16)

        def forward(self, x):
            gate, bias = self.f(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
            return x * gate.sigmoid() + bias

    model = nn.Sequential(nn.Conv2d(3, 8, 1), GateAndBias())
    plan = ts.find(model, (3, 12, 10))
    assert not len(plan)
    (miss,) = plan.near_misses
    assert miss.name == "1"
    assert "what it computes for the gate (chunk) is used by 'getitem_2' as well" in miss.reason
