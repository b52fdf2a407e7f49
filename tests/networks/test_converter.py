"""Convert: a network that goes on working in everything that networks are put into."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import tiledse as ts
from tests.networks import handwritten
from tests.networks.check import identity_difference

SIZE = (3, 64, 64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("tf_mobilenetv3_small_075", num_classes=10).eval()


@pytest.fixture
def tse(model):
    return ts.convert(model, ts.find(model, SIZE).with_tile("3xW"))


def test_the_copy_shares_nothing(model, tse):
    ours = {p.data_ptr() for p in model.parameters()}
    assert not ours & {p.data_ptr() for p in tse.parameters()}
    assert ts.find(model, SIZE).tiles[0].whole


def test_and_back(model, tse):
    back = ts.convert(tse, ts.find(model, SIZE))
    x = torch.randn(2, *SIZE)
    assert torch.equal(back(x), model(x))
    assert not torch.equal(tse(x), model(x))
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]


def test_mixed_tiles(model):
    plan = ts.find(model, SIZE)
    names = [b.name for b in plan.blocks]
    mixed = plan.with_tile("1xW", names[0]).with_tile("2x2", names[1]).with_tile("7xW:running", names[2])
    assert ts.find(ts.convert(model, mixed), SIZE) == mixed
    again = mixed.with_tile("Hx3", names[0])
    assert ts.find(ts.convert(ts.convert(model, mixed), again), SIZE) == again


def test_copies_and_pickles(tse):
    x = torch.randn(1, *SIZE)
    for twin in (copy.deepcopy(tse), pickle.loads(pickle.dumps(tse))):
        assert torch.equal(twin(x), tse(x))
        assert twin.state_dict().keys() == tse.state_dict().keys()


def test_modes_types_and_gradients(model, tse):
    tse.train()
    assert all(m.training for m in tse.modules())
    tse(torch.randn(2, *SIZE)).sum().backward()
    names = [name for name, p in model.named_parameters() if ".se." in name]
    assert names
    assert all(dict(tse.named_parameters())[name].grad is not None for name in names)
    tse.eval()
    assert not any(m.training for m in tse.modules())
    assert copy.deepcopy(tse).bfloat16()(torch.randn(1, *SIZE).bfloat16()).dtype == torch.bfloat16
    assert copy.deepcopy(tse).half()(torch.randn(1, *SIZE).half()).dtype == torch.float16
    assert copy.deepcopy(tse).double()(torch.randn(1, *SIZE).double()).dtype == torch.float64


def test_channels_last(tse):
    x = torch.randn(2, *SIZE)
    last = copy.deepcopy(tse).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), tse(x), rtol=1e-4, atol=1e-5)


def test_export_and_compile(tse):
    x = torch.randn(2, *SIZE)
    program = torch.export.export(tse, (x,))
    torch.testing.assert_close(program.module()(x), tse(x))
    compiled = torch.compile(tse, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), tse(x))


@pytest.mark.parametrize(
    "cls", [handwritten.LinearView, handwritten.ConvMean, handwritten.FlattenHardSigmoid]
)
def test_traced_blocks_export_and_compile(cls):
    model = handwritten.Net(cls()).eval()
    tse = ts.convert(model, ts.find(model, (3, 10, 10)).with_tile("3xW"))
    x = torch.randn(2, 3, 10, 10)
    torch.testing.assert_close(torch.export.export(tse, (x,)).module()(x), tse(x))
    torch.testing.assert_close(torch.compile(tse, fullgraph=True, backend="eager")(x), tse(x))


def test_averaged_weights(tse):
    from timm.utils import ModelEmaV3

    ema = ModelEmaV3(tse, decay=0.5)
    with torch.no_grad():
        next(tse.parameters()).add_(1)
    ema.update(tse)
    assert ts.find(ema.module, SIZE) == ts.find(tse, SIZE)
    assert ema.module(torch.randn(1, *SIZE)).shape == (1, 10)


def test_distributed_wrapper(tse, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(tse.train())
        wrapped(torch.randn(2, *SIZE)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_stay(model):
    calls = []
    name = ts.find(model, SIZE).blocks[0].name
    model.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    tse = ts.convert(model, ts.find(model, SIZE).with_tile("3xW"))
    calls.clear()  # find runs the network, and so its hooks
    tse(torch.randn(1, *SIZE))
    assert calls == [name]


def test_a_plan_for_another_network(model):
    other = ts.find(timm.create_model("test_byobnet"), SIZE).with_tile("7xW")
    with pytest.raises(ts.TiledSEError, match="the plan was made for another network: it names '"):
        ts.convert(model, other)


def test_a_plan_for_another_width(model):
    plan = ts.find(timm.create_model("regnety_002"), SIZE)
    with pytest.raises(ts.TiledSEError, match="another network: "):
        ts.convert(timm.create_model("regnety_004"), plan)
    wide = ts.Plan(
        (ts.SEBlock(plan.blocks[0].name, 99, 8, 16, 16, "timm.SEModule"), *plan.blocks[1:]), plan.tiles, SIZE
    )
    with pytest.raises(ts.TiledSEError, match=r"block 's1.b1.se' is 99x16x16"):
        ts.convert(timm.create_model("regnety_002"), wide)


def test_no_block_to_convert():
    model = timm.create_model("test_resnet")
    with pytest.raises(ts.TiledSEError, match="no SE block to convert"):
        ts.convert(model, ts.find(model, SIZE))


def test_the_real_network_gives_the_same_numbers_back(mobilenet):
    """Pretrained weights: one tile a map is SE, and 7xW on 224 x 224 is not."""
    plan = ts.find(mobilenet, (3, 224, 224))
    assert [(b.channels, b.height, b.reduced) for b in plan.blocks] == [
        (16, 56, 8),
        (96, 14, 24),
        (240, 14, 64),
        (240, 14, 64),
        (120, 14, 32),
        (144, 14, 40),
        (288, 7, 72),
        (576, 7, 144),
        (576, 7, 144),
    ]  # fmt: skip  (shared/models/README.md)
    torch.manual_seed(1)
    assert identity_difference(mobilenet, plan, torch.randn(1, 3, 224, 224)) <= 1e-6


def test_a_tile_is_no_plan(model):
    with pytest.raises(ts.TiledSEError, match=r"expected a plan, got str '7xW'; find\(model, input_size\)"):
        ts.convert(model, "7xW")
