"""What convert tries before it hands anything out: strangers' blocks come out right, or are refused with the reason."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import tiledse as ts
from tests.networks.test_strangers_convert import SIZE, Gate, assert_tiled, converted, net
from tests.reference import by_crops, tiled_squeeze_excite
from tiledse.networks.converter import convert_shared, convert_verified
from tiledse.networks.makes import make
from tiledse.networks.tilewise import by_tiles
from tiledse.tile import Tile

TILES = ["3xW", "Hx4", "3x4", "4xW:upper", "3xW:middle", "3xW:running", "1xW:running+2", "1xW:window-2+1"]
TILES += ["1xW:running-1", "20xW"]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("filled", [False, True])
def test_the_block_on_each_tile_alone_is_what_the_paper_writes(tile, filled):
    torch.manual_seed(0)
    gate = net(Gate())[1].double()
    x = torch.randn(2, 8, 10, 9, dtype=torch.float64)

    def excite(z):
        with torch.no_grad():
            return gate.f(torch.tensor(z).view(1, 8, 1, 1)).view(8).numpy()

    expected = tiled_squeeze_excite(x.numpy(), tile, excite)
    with torch.no_grad():
        found = by_tiles(gate, x, Tile.parse(tile), filled=filled)
    assert len(found) > 1 or Tile.parse(tile).tiles(10, 9) == 1
    for part, y in found:
        np.testing.assert_allclose(y.numpy(), part.of(torch.tensor(expected)).numpy(), rtol=1e-9, atol=1e-12)


def maximum():
    block = torchvision.ops.SqueezeExcitation(8, 4)
    block.avgpool = nn.AdaptiveMaxPool2d(1)
    return block


def hooked():
    block = torchvision.ops.SqueezeExcitation(8, 4)
    block.avgpool.register_forward_hook(lambda module, args, output: 2 * output)
    return block


class Accelerated(Gate):
    """A forward set on the instance that a copy takes with it, as accelerate's hooks set it."""

    def __init__(self):
        super().__init__()
        self._old_forward, self.forward = self.forward, self.new_forward

    def new_forward(self, x):
        return self._old_forward(x)


class Drops(Gate):
    def forward(self, x):
        return x * F.dropout(self.f(F.adaptive_avg_pool2d(x, 1)), 0.5, self.training)


class HalvesInTraining(Gate):
    def forward(self, x):
        gates = self.f(F.adaptive_avg_pool2d(x, 1))
        return x * (0.5 * gates if self.training else gates)


class Keeps(Gate):
    last = None

    def forward(self, x):
        self.last = self.f(F.adaptive_avg_pool2d(x, 1))
        return x * self.last


class Full(Gate):
    """Single precision under autocast."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            gates = self.f(F.adaptive_avg_pool2d(x.float(), 1))
        return x * gates


class Detached(Gate):
    def forward(self, x):
        with torch.no_grad():
            z = F.adaptive_avg_pool2d(x, 1)
        return x * self.f(z)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gate(nn.GroupNorm(2, 8, affine=False)),
        lambda: Gate(nn.LayerNorm([8, 1, 1])),
        lambda: Gate(nn.BatchNorm2d(8)),
        lambda: Gate(nn.Dropout(0.5)),
        lambda: Gate(nn.Dropout2d(0.5)),
        lambda: Gate(nn.PReLU(8)),
        maximum,
        hooked,
        Accelerated,
        Drops,
        HalvesInTraining,
        Keeps,
        Full,
        Detached,
    ],
    ids=lambda make: getattr(make, "__name__", "Gate"),
)
def test_right_in_eval_and_in_training_or_refused(make):
    model = net(make())
    plan = ts.find(model, SIZE)
    if not len(plan):
        assert any(miss.name == "1" and miss.reason for miss in plan.near_misses)
        return
    try:
        tse = ts.convert(model, plan.with_tile("3xW"))
    except ts.TiledSEError as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert "no block could be converted: '1': " in reason
        return
    assert_tiled(tse, model, "3xW")
    old, new = copy.deepcopy(model[1]).train(), tse[1].train()
    x = torch.randn(2, 8, 12, 10)
    folded = torch.stack(x.split(3, 2), 1).flatten(0, 1)
    torch.manual_seed(5)
    expected = old(folded).unflatten(0, (2, 4)).transpose(1, 2).flatten(2, 3)
    torch.manual_seed(5)
    torch.testing.assert_close(new(x), expected, rtol=1e-5, atol=1e-6)
    for (_, a), (_, b) in zip(old.named_buffers(), new.named_buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (maximum, "other numbers than its own forward on each tile"),
        (Accelerated, "set on the instance|reset|of its own"),
    ],
)
def test_the_reason_is_the_true_one(make, reason):
    model = net(make())
    plan = ts.find(model, SIZE)
    if not len(plan):
        return  # the finder says so itself
    with pytest.raises(ts.TiledSEError, match=f"no block could be converted: '1': .*({reason})"):
        ts.convert(model, plan.with_tile("3xW"))


class MaximumInTraining(Gate):
    """SE when it is evaluated, and something else in training."""

    def forward(self, x):
        z = x.amax((2, 3), keepdim=True) if self.training else x.mean((2, 3), keepdim=True)
        return x * self.f(z)


class InPlace(Gate):
    def forward(self, x):
        return x.mul_(self.f(F.adaptive_avg_pool2d(x, 1)))


class SecondReader(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.se = nn.Conv2d(3, 8, 3, padding=1), InPlace()

    def forward(self, x):
        y = self.stem(x)
        gated = self.se(y)
        return y + gated


def test_another_reader_of_the_map_sees_what_it_saw():
    torch.manual_seed(0)
    model = SecondReader().eval()
    tse = converted(model, "5xW")
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        gated = by_crops(model.se, model.stem(x), "5xW")
        torch.testing.assert_close(tse(x), gated + gated)
        y = model.stem(x)
        assert tse.se(y) is y
    # And where gradients are recorded, through a compiler, and on disk.
    torch.testing.assert_close(tse(x), gated + gated)
    tse(x).sum().backward()
    assert tse.se.f[0].weight.grad is not None
    compiled = torch.compile(tse, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), gated + gated)
    torch.testing.assert_close(torch.export.export(tse, (x,)).module()(x), gated + gated)


def test_refused_block_by_block():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Gate(), MaximumInTraining(), nn.Conv2d(8, 4, 1)
    ).eval()
    plan = ts.find(model, SIZE)
    why = "block '2' was left as it was: in training it gives other numbers .*of the largest"
    with pytest.warns(ts.TiledSEWarning, match=why):
        tse = ts.convert(model, plan.with_tile("3xW"))
    given = plan.with_tile("3xW", "1")
    assert ts.find(tse, SIZE) == given
    made = convert_verified(model, plan.with_tile("3xW"))
    assert made.plan == given
    assert [miss.name for miss in made.refused] == ["2"]
    with pytest.raises(ts.TiledSEError, match="block '2' cannot be converted: .*; give it the tile HxW"):
        convert_shared(model, plan.with_tile("3xW"))
    convert_shared(model, given)


def test_unverified():
    model = net(MaximumInTraining())
    plan = ts.find(model, SIZE).with_tile("3xW")
    with pytest.raises(ts.TiledSEError, match="no block could be converted: '1': in training"):
        ts.convert(model, plan)
    assert_tiled(ts.convert(model, plan, verify=False), model, "3xW")


def test_numbers_that_are_not_finite_prove_nothing():
    model = net(timm.layers.SEModule(8))
    plan = ts.find(model, SIZE).with_tile("3xW")
    with torch.no_grad():
        model[1].fc1.weight[0, 0] = float("nan")
    with pytest.raises(ts.TiledSEError, match="values that are not finite"):
        ts.convert(model, plan)


class Temperature(Gate):
    temperature = 1.0

    def forward(self, x):
        return x * (self.f(F.adaptive_avg_pool2d(x, 1)) * self.temperature)


def test_what_the_forward_reads_at_each_call_is_kept_or_told_of():
    model = net(Temperature())
    model[1].temperature = 2.0
    tse = converted(model, "3xW")
    assert_tiled(tse, model, "3xW")
    tse[1].temperature = model[1].temperature = 4.0
    x = torch.randn(2, 8, 12, 10)
    try:
        got = tse[1](x)
    except ts.TiledSEError as error:
        reason = str(error)
    else:
        reason = ""
        torch.testing.assert_close(got, by_crops(model[1], x, "3xW"))
    assert (
        not reason or "'temperature' of a converted block was 2.0 when it was converted and is 4.0" in reason
    )


def test_what_a_forward_caches_is_cached_at_the_size_of_the_user():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.se, self.pos = nn.Conv2d(3, 8, 4, 4), timm.layers.SEModule(8), None

        def forward(self, x):
            if self.pos is None:
                self.pos = torch.linspace(0, 1, x.shape[-1] // 4)
            return self.se(self.stem(x) + self.pos)

    model = Caches().eval()
    plan = ts.find(model, (3, 160, 160))
    model.pos = None
    tse = ts.convert(model, plan.with_tile("7xW"))
    assert model.pos is None
    assert tse.pos is None or tse.pos.shape == (40,)
    tse.pos = None
    assert tse(torch.randn(1, 3, 160, 160)).shape == (1, 8, 40, 40)


def test_nobody_elses_random_numbers_change():
    model = net(Gate(nn.Dropout(0.5)))
    plan = ts.find(model, SIZE).with_tile("3xW")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ts.convert(model, plan)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_a_traced_network_keeps_its_mode(mode):
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, timm.layers.SEModule) or super().is_leaf_module(m, name)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), timm.layers.SEModule(8)).train(mode)
    graph = torch.fx.GraphModule(model, Leaves().trace(model)).train(mode)
    tse = converted(graph, "3xW")
    assert isinstance(tse.get_submodule("1"), ts.TiledBlock)
    assert [m.training for m in tse.modules()] == [mode] * len(list(tse.modules()))


def test_a_network_that_cannot_be_copied():
    model = net(Gate())
    model.lock = __import__("threading").Lock()
    with pytest.raises(ts.TiledSEError, match=r"cannot be copied.*TypeError: cannot pickle '_thread.lock'"):
        ts.convert(model, ts.find(net(Gate()), SIZE).with_tile("3xW"))


def test_a_forward_that_calls_the_network_given():
    model = net(Gate())
    plan = ts.find(model, SIZE).with_tile("3xW")
    old = model.forward
    model.forward = lambda x: old(x)
    with pytest.raises(
        ts.TiledSEError, match="a function set on the instance, which would call the network given"
    ):
        ts.convert(model, plan)


def test_weights_without_numbers():
    with torch.device("meta"):
        model = net(Gate())
    plan = ts.find(model, SIZE)
    if not len(plan):
        pytest.skip("the finder does not take the meta device yet")
    assert isinstance(ts.convert(model, plan.with_tile("3xW"))[1], ts.TiledBlock)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    model = net(Gate()).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert converted(model, "3xW")[1].f[0].weight.dtype == dtype


class SingleMean(Gate):
    """A network in float64 that takes its means in float32."""

    def forward(self, x):
        return x * self.f(x.float().mean((2, 3), keepdim=True).to(x.dtype))


def test_rounding_is_that_of_the_lowest_precision_in_the_block():
    torch.manual_seed(0)
    model = net(SingleMean()).double()
    tse = converted(model, "3xW")
    x = torch.randn(2, 8, 12, 10, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tse[1](x), by_crops(model[1], x, "3xW"), rtol=1e-5, atol=1e-6)
    # What is off by as much in a block that is float64 throughout is no rounding.
    exact = net(OffByABit()).double()
    plan = ts.find(exact, SIZE).with_tile("3xW")
    with pytest.raises(ts.TiledSEError, match=r"in training it gives other numbers .*e-0[67] of the largest"):
        ts.convert(exact, plan)


class OffByABit(Gate):
    def forward(self, x):
        gates = self.f(x.mean((2, 3), keepdim=True))
        return x * (gates + 1e-6 * x.amax((2, 3), keepdim=True) if self.training else gates)


class WithFunction(Gate):
    """One class; what it does in training is a function that it is given."""

    def __init__(self, squeeze):
        super().__init__()
        self.squeeze = squeeze

    def forward(self, x):
        return x * self.f(self.squeeze(x, self.training))


def honest(x, training):
    return x.mean((2, 3), keepdim=True)


def maximum_in_training(x, training):
    return x.amax((2, 3), keepdim=True) if training else x.mean((2, 3), keepdim=True)


def test_training_is_tried_for_each_make_of_block():
    torch.manual_seed(0)
    squeezes = [honest, honest, maximum_in_training, honest]
    blocks = [WithFunction(squeeze) for squeeze in squeezes]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.Conv2d(8, 4, 1)).eval()
    assert make(blocks[0]) == make(blocks[1]) != make(blocks[2])
    made = convert_verified(model, ts.find(model, SIZE).with_tile("3xW"))
    assert [miss.name for miss in made.refused] == ["3"]
    assert make(nn.Sequential(nn.ReLU())) != make(nn.Sequential(nn.ReLU(inplace=True)))
    assert make(nn.Linear(2, 3)) != make(nn.Linear(3, 2))
