"""Networks whose train() and eval() give nothing back, as mmpretrain's backbones do, go through every verb."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.cli.known import Net
from tests.cli.running import tiledse
from tests.reference import by_crops


class Backbone(Net):
    """It gives nothing back, and so does its block; it freezes its stem."""

    def __init__(self) -> None:
        super().__init__()
        self.se.__class__ = SilentGate

    def train(self, mode=True):  # type: ignore[override]
        super().train(mode)
        self.stem.eval()


class SilentGate(type(Net().se)):  # type: ignore[misc]
    def train(self, mode=True):  # type: ignore[override]
        super().train(mode)


def test_python():
    model = Backbone()
    plan = ts.find(model, (3, 22, 13)).with_tile("3xW")
    assert [block.name for block in plan.blocks] == ["se"]
    model.eval()
    x = torch.randn(1, 3, 22, 13)
    with torch.no_grad():
        expected = model.tail(by_crops(model.se, model.stem(x), "3xW"))
        torch.testing.assert_close(ts.convert(model, plan)(x), expected)
    torch.testing.assert_close(ts.stream(model, plan, rows=5)(x), expected)
    assert ts.simulate(model, plan, fifos="minimum").buffer == 3 * 13 * 16


def backbone() -> nn.Module:
    return Backbone()


@pytest.mark.parametrize(
    "arguments",
    [
        ("find",),
        ("cost", "--tile", "3xW"),
        ("convert", "--tile", "3xW", "-o", "tse.safetensors"),
        ("convert", "--tile", "3xW", "-o", "tse.onnx"),
        ("stream", "--tile", "3xW"),
    ],
)
def test_verbs(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb, *rest = arguments
    done = tiledse(verb, "tests.networks.test_modes:backbone", "--input", "3x22x13", *rest, "--json")
    assert done.code == 0, done.err


def test_a_network_that_is_measured_and_calibrated():
    from tiledse.networks.network import TorchNetwork

    model = Backbone()
    model.eval()
    network = TorchNetwork(model, (3, 22, 13))
    x = torch.randn(1, 3, 22, 13)
    tiled = network.se.with_tile("3xW")
    with torch.no_grad():
        torch.testing.assert_close(network.tiled(tiled)(x), ts.convert(model, tiled)(x))
    assert network.rows(tiled, [0])(x)[0].shape == (1, tiled.blocks[0].channels, tiled.blocks[0].height)
