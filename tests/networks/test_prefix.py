"""What came is not changed by what comes: the outputs for a prefix, when the future is appended to it."""

from __future__ import annotations

import pytest
import torch

import tiledse as ts
from tests.networks.over_time import contextnet, ecapa, movinet, x3d

CASES = {"contextnet": contextnet, "ecapa": ecapa, "x3d": x3d, "movinet": movinet}


def plan_blocks(model):
    return [module for module in model.modules() if hasattr(module, "down")]


def prepared(name):
    torch.manual_seed(0)
    model, size, ahead = CASES[name]()
    model.eval().double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # gates that matter
        for block in plan_blocks(model):
            block.down.bias.add_(2.0)  # and that no ReLU cuts off
    return model, ts.find(model, size), ahead


def changed(model, size, prefix):
    """Frames of the prefix, from its end back, whose outputs change when the future is appended."""
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, :, prefix:] += 3
    with torch.no_grad():
        whole, part = model(x)[:, :, :prefix], model(x[:, :, :prefix])
    differs = (
        (whole - part).abs().flatten(3).amax((0, 1)) if x.dim() > 3 else (whole - part).abs().amax((0, 1))
    )
    differs = differs.amax(-1) if differs.dim() > 1 else differs
    frames = (differs > 1e-12).nonzero().flatten()
    return 0 if not len(frames) else prefix - int(frames[0])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("look", [0, 2])
def test_a_prefix_keeps_its_outputs(name, look):
    model, plan, ahead = prepared(name)
    rest = "xT" if plan.blocks[0].axes == 1 else "xHxW"
    made = ts.convert(model, plan.with_tile(f"1{rest}:running" + (f"+{look}" if look else "")))
    frames = plan.input_size[1]
    # Each convolution and each block adds what it sees ahead; with no look-ahead, nothing but the convolutions.
    most = ahead + look * len(plan)
    for prefix in (frames // 2, frames - 5):
        assert changed(made, plan.input_size, prefix) == min(most, prefix)


@pytest.mark.parametrize("name", CASES)
def test_with_plain_se_every_frame_changes(name):
    model, plan, _ = prepared(name)
    assert changed(model, plan.input_size, plan.input_size[1] // 2) == plan.input_size[1] // 2


def test_strips_hold_back_a_strip():
    """``8xT``: of a prefix that ends in a strip, that strip changes, and with three blocks no more."""
    model, plan, _ = prepared("contextnet")
    made = ts.convert(model, plan.with_tile("8xT"))
    assert changed(made, plan.input_size, 24) == 0
    assert changed(made, plan.input_size, 28) == 4
