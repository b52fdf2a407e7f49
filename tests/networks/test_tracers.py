"""Converted networks in what traces networks: torch.jit.trace, torch.fx, and its quantisation."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
import torchvision
from torch import nn

import tiledse as ts
from tests.networks import handwritten

SIZE = (3, 12, 10)


def converted(block, tile):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), block, nn.Conv2d(12, 4, 1)).eval()
    return model, ts.convert(model, ts.find(model, SIZE).with_tile(tile))


@pytest.mark.parametrize("tile", ["4xW", "5xW", "5xW:running", "1xW:running+2"])
def test_fx(tile):
    _, tse = converted(torchvision.ops.SqueezeExcitation(12, 4), tile)
    graph = torch.fx.symbolic_trace(tse)
    names = [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["squeeze", "scale"]
    again = pickle.loads(pickle.dumps(graph))
    with torch.no_grad():
        for rows in (12, 17):
            x = torch.randn(2, 3, rows, 10)
            torch.testing.assert_close(graph(x), tse(x))
            torch.testing.assert_close(again(x), tse(x))


@pytest.mark.parametrize("block", [torchvision.ops.SqueezeExcitation(12, 4), handwritten.LinearView()])
@pytest.mark.parametrize("tile", ["4xW", "5xW", "5xW:running"])
def test_jit(block, tile):
    _, tse = converted(block, tile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself and about constants
        traced = torch.jit.trace(tse, torch.randn(2, *SIZE))
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(traced(x), tse(x))


def test_quantisation():
    model, tse = converted(torchvision.ops.SqueezeExcitation(12, 4), "4xW")
    with torch.no_grad():
        model[1].fc1.weight *= 30  # gates that differ from tile to tile by more than 8 bits round
        tse[1].fc1.weight *= 30
    x = torch.randn(8, *SIZE) + torch.randn(8, 3, 12, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that this is deprecated
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        prepared = prepare_fx(tse, get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        quantised = convert_fx(prepared)
    with torch.no_grad():
        expected, se, got = tse(x), model(x), quantised(x)
    largest = expected.abs().max()
    assert (got - expected).abs().max() < 0.1 * largest < (se - expected).abs().max()


def test_a_forward_that_fx_cannot_take_apart_says_so():
    _, tse = converted(handwritten.LinearView(), "4xW")
    try:
        graph = torch.fx.symbolic_trace(tse)
    except ts.TiledSEError as error:
        reason = str(error)
    else:
        reason = "torch.fx cannot trace"
        x = torch.randn(1, *SIZE)
        torch.testing.assert_close(graph(x), tse(x))
    assert "torch.fx cannot trace" in reason


def test_a_forward_with_inline_se_says_so():
    """Not that it "cannot be rewritten as it is called here"."""

    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

        def forward(self, x):
            x = self.conv(x)
            return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    torch.manual_seed(0)
    model = Inline().eval()
    tse = ts.convert(model, ts.find(model, SIZE).with_tile("4xW"))
    with pytest.raises(
        ts.TiledSEError, match=r"^torch.fx cannot trace the forward of 'Inline', which has SE inline"
    ):
        torch.fx.symbolic_trace(tse)
    x = torch.randn(1, *SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        torch.testing.assert_close(torch.jit.trace(tse, x)(x), tse(x))
    torch.testing.assert_close(torch.export.export(tse, (x,)).module()(x), tse(x))


@pytest.mark.parametrize("mode", [True, False])
def test_feature_extractor(mode):
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    model = create_feature_extractor(
        torchvision.models.mobilenet_v3_small(width_mult=0.25).train(mode), {"features.6": "map"}
    )
    plan = ts.find(model, (3, 64, 64))
    assert len(plan) == 4
    tse = ts.convert(model, plan.with_tile("2xW"))
    assert {m.training for m in tse.modules()} == {mode} == {m.training for m in model.modules()}
    assert ts.find(tse, (3, 64, 64)) == plan.with_tile("2xW")
    same = ts.convert(model, plan.with_tile("64xW")).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(same(x)["map"], model.eval()(x)["map"])
