"""Exact SE whose mean is taken in two steps: the same numbers in every verb, and a form of its own when exported."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiledse as ts


def network():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model("lcnet_050", num_classes=7).eval()


def test_two_steps_give_the_numbers_of_plain_se():
    model, x = network(), torch.randn(2, 3, 70, 64)
    plan = ts.find(model, (3, 70, 64)).with_tile("HxW:two-step")
    made = ts.convert(model, plan)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), atol=1e-5, rtol=1e-5)
    assert ts.find(made, (3, 70, 64)) == plan
    assert ts.convert(made, plan.with_tile("HxW")).state_dict().keys() == model.state_dict().keys()
    se, tse = ts.cost(plan).se, ts.cost(plan).tse
    assert (se.params, se.macs, se.buffer) == (tse.params, tse.macs, tse.buffer)
    assert ts.Plan.from_dict(plan.to_dict(), "here") == plan


def test_exported_it_is_two_means():
    block = ts.TiledSqueezeExcite(6, 4, "HxW:two-step").eval()
    x = torch.randn(1, 6, 9, 5)
    program = torch.export.export(nn.Sequential(nn.Conv2d(6, 6, 1), block), (x,), strict=False)
    means = [node for node in program.graph.nodes if "mean" in str(node.target)]
    assert len(means) == 2
    torch.testing.assert_close(block(x), ts.tiled_squeeze_excite(x, block.excite, ts.Tile.parse("HxW")))


def test_streams_are_those_of_plain_se():
    model = network()
    plan = ts.find(model, (3, 64, 64)).with_tile("HxW:two-step")
    ours, plain = (ts.simulate(model, p) for p in (plan, plan.with_tile("HxW")))
    assert ours.cycles == plain.cycles


def test_it_is_a_form_of_the_whole_map_only():
    for text in ("7xW:two-step", "Hx7:two-step"):
        with pytest.raises(ts.TiledSEError, match="write HxW:two-step"):
            ts.Tile.parse(text)
