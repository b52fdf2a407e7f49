"""Tiled forms that share their prefix: to the bit what plain runs give, and less work."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tiledse.network import first_tiled
from tiledse.networks.network import TorchNetwork


def opened(name, side=64):
    torch.manual_seed(0)
    return TorchNetwork(timm.create_model(name).eval(), (3, side, side))


def single(network, tile="2xW"):
    return [network.se.with_tile(tile, block.name) for block in network.se.blocks]


class Convolutions(TorchDispatchMode):
    """Counts convolutions, and maps that the operator gates."""

    def __init__(self):
        super().__init__()
        self.count = self.gated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "convolution" in str(func)
        self.gated += "tiledse.forward" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "regnety_002", "seresnet50"])
def test_equal_to_plain_runs(name):
    """To the last digits: torch's own layers may differ in them, for maps that lie elsewhere in memory."""
    network = opened(name)
    alone = single(network)
    plans = [alone[0], alone[len(alone) // 2], alone[-1], network.se.with_tile("2xW"), network.se]
    branches, networks = network.branches(plans), [network.tiled(plan) for plan in plans]
    for images in (2, 3):  # a last batch is smaller
        x = torch.randn(images, 3, 64, 64)
        got = list(branches(x))
        with torch.no_grad():
            expected = [network(x) for network in (network.model, *networks)]
        assert branches.unshared == ()
        assert len(got) == len(expected)
        for a, b in zip(got, expected):
            assert float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


def test_the_prefix_runs_once():
    network = opened("tf_mobilenetv3_small_100")
    plans = single(network, "1xW")[-2:]
    branches = network.branches(plans)
    x = torch.randn(1, 3, 64, 64)
    list(branches(x))  # the first image is also run whole, to compare
    with Convolutions() as plain, torch.no_grad():
        network.model(x)
    with Convolutions() as shared:
        list(branches(x))
    # Behind the last two blocks of nine lie a few layers only.
    assert plain.count < shared.count < plain.count + 25
    # The last block but one alone, and the last one alone: by the operator, as in plain runs.
    assert (plain.gated, shared.gated) == (0, 2)


class Writes(nn.Module):
    """The block's input is written to after the block: what a form would share is not there any more."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.se = timm.layers.SEModule(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        gated = self.se(x)
        x.mul_(0.5)
        return self.head(gated + x).mean((2, 3))


class Chooses(nn.Module):
    """Takes another way for other batch sizes."""

    def __init__(self):
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.se = timm.layers.SEModule(8)

    def forward(self, x):
        x = self.stem(x) if len(x) < 2 else self.other(x).sigmoid()
        return self.se(x).mean((2, 3))


@pytest.mark.parametrize("network", [Writes, Chooses])
def test_what_cannot_be_shared_is_run_whole_and_told(network):
    torch.manual_seed(0)
    network = TorchNetwork(network().eval(), (3, 12, 12))
    plans = single(network)
    branches = network.branches(plans)
    x = torch.randn(4, 3, 12, 12)
    got = list(branches(x))
    with torch.no_grad():
        assert torch.equal(got[0], network.model(x))
        assert torch.equal(got[1], network.tiled(plans[0])(x))
    assert not torch.equal(got[0], got[1])
    assert branches.unshared == ("se",)


def test_a_tile_that_covers_the_map_does_not_run():
    network = opened("regnety_002")
    deep = network.se.with_tile("2xW", network.se.blocks[-1].name)
    assert network.se.blocks[-1].height == 2
    assert first_tiled(deep) is None
    se, tse = network.branches([deep])(torch.randn(1, 3, 64, 64))
    assert tse is se


def test_onnx_parts_give_what_whole_networks_give(shared):
    from tiledse import onnx
    from tiledse.onnx.network import OnnxNetwork

    model = onnx.load(shared / "models" / "selfie_segmentation.onnx")
    network = OnnxNetwork(model, (3, 256, 256), threads=1)
    plans = [*single(network, "3xW")[:3], network.se.with_tile("7xW"), network.se]
    photo = next((shared / "data" / "coco128" / "images" / "val2017").glob("*.jpg"))
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((256, 256)), np.float32) / 255
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    got = list(network.branches(plans)(x))
    expected = [network.tiled(plan)(x) for plan in [network.se, *plans]]
    for a, b in zip(got, expected):
        assert torch.allclose(a, b, atol=2e-4)
    assert (got[4] - got[0]).abs().max() > 0.01
    # Maps and excitations: scaling the map by the gate of the whole map is what the block itself does.
    seen = {}
    network.observe(x, lambda number, m: seen.setdefault(number, m))
    for number, block in enumerate(network.se.blocks):
        assert tuple(seen[number].shape) == (1, block.channels, block.height, block.width)
        gates = network.excite(number, seen[number].mean((2, 3), keepdim=True).repeat(1, 1, 5, 1))
        assert gates.shape == (1, block.channels, 5, 1)
        assert torch.allclose(gates[:, :, 0], gates[:, :, 4])
        assert 0 <= float(gates.min()) <= float(gates.max()) <= 1
