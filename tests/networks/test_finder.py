"""Find: by structure what nobody registered, and a reason for each near miss."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import tiledse as ts
from tests.networks import handwritten
from tests.reference import by_crops
from tiledse.networks import dialects

SIZE = (3, 10, 10)


@pytest.mark.parametrize("cls", handwritten.SE)
@pytest.mark.parametrize("tile", ["3xW", "Hx4", "3x4", "1x1"])
def test_a_handwritten_block_is_found_and_tiled(cls, tile):
    torch.manual_seed(0)
    model = handwritten.Net(cls()).eval()
    plan = ts.find(model, SIZE)
    (block,) = plan.blocks
    assert (block.name, block.channels, block.height, block.width) == ("block", 12, 10, 10)
    assert block.reduced == handwritten.REDUCED.get(cls, 3)
    assert block.dialect == "traced"
    wanted = plan.with_tile(tile)
    tse = ts.convert(model, wanted)
    assert ts.find(tse, SIZE) == wanted
    x = torch.randn(2, 12, 10, 10)
    reference = (
        by_whole_map(model.block, x, tile)
        if cls is handwritten.FixedWindow
        else by_crops(model.block, x, tile)
    )
    torch.testing.assert_close(tse.block(x), reference, rtol=1e-5, atol=1e-6)
    assert list(tse.state_dict()) == list(model.state_dict())


def by_whole_map(block, x, tile):
    """For a block that takes maps of one size only: its own gate on a map filled with the tile's mean."""
    out = torch.empty_like(x)
    tall, wide = tile.split("x")
    h, w = (10 if tall == "H" else int(tall)), (10 if wide == "W" else int(wide))
    for top in range(0, 10, h):
        for left in range(0, 10, w):
            part = (..., slice(top, top + h), slice(left, left + w))
            filled = x[part].mean((2, 3), keepdim=True).expand(-1, -1, 10, 10)
            gate = (block(filled) / filled)[:, :, :1, :1]
            out[part] = x[part] * gate
    return out


def test_a_block_in_nhwc():
    torch.manual_seed(0)
    model = handwritten.NhwcNet(handwritten.ChannelsLast()).eval()
    plan = ts.find(model, (3, 10, 9))
    (block,) = plan.blocks
    assert (block.channels, block.height, block.width, block.reduced) == (12, 10, 9, 3)
    tse = ts.convert(model, plan.with_tile("3xW"))
    x = torch.randn(2, 10, 9, 12)
    torch.testing.assert_close(tse.block(x), by_crops(model.block, x, "3xW", nhwc=True))
    assert tse.block(x).is_contiguous()


@pytest.mark.parametrize("cls", handwritten.NOT_SE)
def test_a_near_miss_is_told_with_its_reason(cls):
    model = handwritten.Net(cls()).eval()
    plan = ts.find(model, SIZE)
    assert not plan.blocks
    reasons = {miss.name: miss.reason for miss in plan.near_misses}
    assert "block" in reasons, reasons
    assert any(part in reasons["block"] for part in cls.reason.split("|")), reasons["block"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnest14d", "not multiplied back"),
        ("skresnet18", "not multiplied back"),
        ("convnextv2_atto", ""),
        ("resnet18", "not multiplied back"),
    ],
)
def test_other_attentions_are_no_se(name, reason):
    plan = ts.find(timm.create_model(name), (3, 64, 64))
    assert not plan.blocks
    assert plan.near_misses
    assert reason in plan.near_misses[0].reason


def test_timms_eca_is_found_as_what_people_write_by_hand_is():
    plan = ts.find(timm.create_model("ecaresnet26t"), (3, 64, 64))
    assert [(b.name, b.channels, b.dialect) for b in plan.blocks][:2] == [
        ("layer1.0.se", 256, "traced"),
        ("layer1.1.se", 256, "traced"),
    ]
    assert len(plan) == 8


def test_torchvision():
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    model = mobilenet_v3_small().eval()
    plan = ts.find(model, (3, 96, 96))
    assert len(plan) == 9
    assert {block.dialect for block in plan.blocks} == {"torchvision.SqueezeExcitation"}
    name = plan.blocks[0].name
    tse = ts.convert(model, plan.with_tile("7xW"))
    x = torch.randn(2, plan.blocks[0].channels, 24, 20)
    block = model.get_submodule(name)
    torch.testing.assert_close(tse.get_submodule(name)(x), by_crops(block, x, "7xW"))


def test_effdet():
    effdet = pytest.importorskip("effdet")
    config = effdet.get_efficientdet_config("efficientdet_d0")
    plan = ts.find(effdet.EfficientDet(config, pretrained_backbone=False), (3, 512, 512))
    assert len(plan) == 16
    assert plan.network.params == 3_877_763  # checked.md


def test_timm_squeeze_excite_cl():
    from timm.layers.squeeze_excite import SqueezeExciteCl

    torch.manual_seed(0)
    model = handwritten.NhwcNet(SqueezeExciteCl(12, rd_channels=3)).eval()
    plan = ts.find(model, SIZE)
    assert [(b.dialect, b.channels, b.reduced) for b in plan.blocks] == [("timm.SqueezeExciteCl", 12, 3)]
    x = torch.randn(2, 10, 9, 12)
    tse = ts.convert(model, plan.with_tile("4xW"))
    torch.testing.assert_close(tse.block(x), by_crops(model.block, x, "4xW", nhwc=True))


@pytest.mark.parametrize("kind", ["SEModule", "EffectiveSEModule"])
def test_add_maxpool_is_tiled_too(kind):
    import timm.layers.squeeze_excite as layers

    torch.manual_seed(0)
    model = handwritten.Net(getattr(layers, kind)(12, add_maxpool=True)).eval()
    plan = ts.find(model, SIZE)
    tse = ts.convert(model, plan.with_tile("3x4"))
    x = torch.randn(2, 12, 10, 10)
    torch.testing.assert_close(tse.block(x), by_crops(model.block, x, "3x4"))
    with pytest.raises(ts.TiledSEError, match="squeezes a maximum as well"):
        ts.convert(model, plan.with_tile("3xW:running"))


def test_a_third_party_registers_its_dialect():
    """What tracing cannot see becomes known in a few lines."""

    class Odd(handwritten.Branches):
        def gates(self, z):
            return self.b(self.a(z).relu()).sigmoid()

        def forward(self, x):
            z = x.mean((2, 3), keepdim=True)
            if z.sum() > 1e9:
                raise ValueError("bright")
            return x * self.gates(z)

    torch.manual_seed(0)
    model = handwritten.Net(Odd()).eval()
    assert "register a dialect" in ts.find(model, SIZE).near_misses[0].reason
    dialect = ts.register_dialect("test.Odd", Odd, Odd.gates)
    try:
        plan = ts.find(model, SIZE)
        assert [(b.dialect, b.reduced) for b in plan.blocks] == [("test.Odd", 3)]
        x = torch.randn(2, 12, 10, 10)
        tse = ts.convert(model, plan.with_tile("3xW"))
        torch.testing.assert_close(tse.block(x), by_crops(model.block, x, "3xW"))
        with pytest.raises(ts.TiledSEError, match="has a dialect already: 'test.Odd'"):
            ts.register_dialect("again", Odd, Odd.gates)
    finally:
        del dialects._TABLE[dialect.cls]


def test_a_subclass_counts_where_it_inherits_the_forward():
    class Mine(timm.layers.SEModule):
        pass

    class Other(timm.layers.SEModule):
        def forward(self, x):
            return x + self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))

    assert len(ts.find(handwritten.Net(Mine(12)), SIZE)) == 1
    plan = ts.find(handwritten.Net(Other(12)), SIZE)
    assert not plan.blocks
    assert "not multiplied back" in plan.near_misses[0].reason


def test_a_block_that_is_never_called():
    model = handwritten.Net(handwritten.ConvMean())
    model.spare = timm.layers.SEModule(8)
    plan = ts.find(model, SIZE)
    assert [b.name for b in plan.blocks] == ["block"]
    assert {m.name: m.reason for m in plan.near_misses}[
        "spare"
    ] == "it is an SE block, but forward never calls it"


def test_a_block_on_maps_of_different_sizes():
    class Twice(handwritten.Net):
        def forward(self, x):
            y = self.block(self.stem(x))
            return self.head(self.block(y[:, :, ::2]).mean((2, 3)))

    plan = ts.find(Twice(timm.layers.SEModule(12)), SIZE)
    assert not plan.blocks
    assert "called 2 times, on maps of different sizes" in plan.near_misses[0].reason


def test_one_block_under_two_names_is_replaced_at_both():
    model = handwritten.Net(timm.layers.SEModule(12))
    model.alias = model.block
    tse = ts.convert(model, ts.find(model, SIZE).with_tile("3xW"))
    assert tse.alias is tse.block
    assert isinstance(tse.alias, ts.TiledBlock)


def test_the_network_is_left_as_it_was():
    model = handwritten.Net(timm.layers.SEModule(12))
    model.train()
    model.head.eval()
    before = {name: (type(m), m.training) for name, m in model.named_modules()}
    ts.convert(model, ts.find(model, SIZE).with_tile("3xW"))
    assert {name: (type(m), m.training) for name, m in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_block_alone_is_a_network_too():
    block = timm.layers.SEModule(12)
    plan = ts.find(block, (12, 9, 9))
    assert [b.name for b in plan.blocks] == [""]
    assert isinstance(ts.convert(block, plan.with_tile("3xW")), ts.TiledBlock)


def test_built_from_scratch_and_changed():
    model = handwritten.Net(ts.TiledSqueezeExcite(12, 3, "1xW", kernel_size=(3, 1)))
    plan = ts.find(model, SIZE)
    assert [(b.dialect, b.reduced, str(t)) for b, t in plan] == [("tiledse", 3, "1xW")]
    other = ts.convert(model, plan.with_tile("5xW"))
    assert str(other.block.tile) == "5xW"
    assert str(model.block.tile) == "1xW"


def test_no_memory_of_the_image():
    """20000 x 1024 is found in shapes alone: on a real image the first map has 160 million elements."""
    plan = ts.find(timm.create_model("mobilenetv3_large_100"), (3, 20000, 1024))
    assert plan.blocks[0].height == 2500


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (None, "does not say which input it takes"),
        ((3,), r"expected an input size of \(C, H, W\)"),
        ((3, 0, 10), r"expected an input size of \(C, H, W\)"),
        ((4, 10, 10), "the network fails on an input of 4x10x10"),
    ],
)
def test_an_input_that_the_network_refuses(size, message):
    with pytest.raises(ts.TiledSEError, match=message):
        ts.find(handwritten.Net(handwritten.ConvMean()), size)


def test_a_network_that_looks_at_values():
    class Looks(handwritten.Net):
        def forward(self, x):
            y = self.block(self.stem(x))
            return self.head(y.mean((2, 3))) if float(y.sum()) > -1e9 else None

    assert len(ts.find(Looks(timm.layers.SEModule(12)), SIZE)) == 1


@pytest.mark.parametrize("cls", [handwritten.LinearView, handwritten.ConvMean])
def test_a_traced_block_pickles_and_copies(cls):
    model = handwritten.Net(cls()).eval()
    tse = ts.convert(model, ts.find(model, SIZE).with_tile("3xW"))
    x = torch.randn(1, *SIZE)
    for twin in (copy.deepcopy(tse), pickle.loads(pickle.dumps(tse))):
        assert torch.equal(twin(x), tse(x))
    nn.Module.half(copy.deepcopy(tse))
