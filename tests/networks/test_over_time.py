"""SE over time: found, converted and proved in every spelling, and held to plain numpy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tiledse as ts
from tests import reference
from tests.networks.over_time import ConvSE, build

SOUND = ["8xT", "8xT:running", "1xT:running+7", "1xT:window-6+6", "2xT:running-1", "8xT:middle", "99xT"]
VOLUMES = ["4xHxW", "1xHxW:running", "2xHxW:window-1+2", "DxHxW:two-step"]
CASES = [("ConvSE", tile) for tile in SOUND] + [("VolumeSE", tile) for tile in VOLUMES]
CASES += [(kind, "4xT:running+1") for kind in ("PoolSE", "LastSE")] + [("DenseVolumeSE", "4xHxW:running")]


def block_by_loops(block, x, tile):
    """The block with a tile, by loops: rows are the first axis, columns the others together."""
    size, colon, squeeze = tile.partition(":")
    rows = x.double().numpy().reshape(*x.shape[:3], -1)
    size = {"T": "HxW", "DxHxW": "HxW"}.get(size, size.replace("xHxW", "xW").replace("xT", "xW"))
    text = size + (colon + squeeze if squeeze != "two-step" else "")
    return reference.tiled_squeeze_excite(rows, text, reference.two_layers(*block.weights())).reshape(x.shape)


@pytest.mark.parametrize(("kind", "tile"), CASES)
def test_a_converted_block_is_the_loops(kind, tile):
    model, size = build(kind)
    plan = ts.find(model, size)
    assert [(b.name, b.sides) for b in plan.blocks] == [("se", size[1:])]
    made = ts.convert(model, plan.with_tile(tile))
    shape = (2, 8, *size[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + torch.arange(size[1]).view(
        -1, *[1] * (len(size) - 2)
    )
    last = kind == "LastSE"
    with torch.no_grad():
        got = made.se(x.transpose(1, 2)).transpose(1, 2) if last else made.se(x)
    np.testing.assert_allclose(got.numpy(), block_by_loops(model.se, x, tile), rtol=2e-4, atol=2e-5)
    again = ts.find(made, size)
    assert again == plan.with_tile(tile)
    # Of dense layers on three axes torch's counter takes biases or not, as they lie in memory.
    assert again.network.macs == plan.network.macs or kind == "PoolSE"


def test_the_network_is_what_it_was_with_one_tile_over_its_maps():
    model, size = build("ConvSE")
    made = ts.convert(model, ts.find(model, size).with_tile("99xT"))
    x = torch.randn(2, *size)
    torch.testing.assert_close(made(x), model(x))
    back = ts.convert(made, ts.find(made, size).with_tile("HxW"))
    assert type(back.se) is ConvSE
    assert torch.equal(back(x), model(x))


def test_three_axes_in_a_network_of_images_are_found():
    """A spectrogram (1, F, T) whose blocks pool (C, T): in silence missed before."""

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.se, self.plane = ConvSE(8, 4), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.se(self.plane(x).flatten(1, 2))

    plan = ts.find(Spectral(), (1, 8, 30))
    assert [(b.name, b.sides) for b in plan.blocks] == [("se", (30,))]
    made = ts.convert(Spectral(), plan.with_tile("4xT"))
    assert str(made.se.tile) == "4xT"


class OverTimeAlone(nn.Module):
    """Of a spectrogram (C, F, T): a gate for each channel and frequency, the mean over time."""

    def __init__(self, spelling):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.mean = {
            "mean": lambda x: x.mean(3, keepdim=True),
            "dropped": lambda x: torch.mean(x, dim=-1)[..., None],
            "pool": nn.AdaptiveAvgPool2d((None, 1)),
        }[spelling]

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(self.mean(x)))))


@pytest.mark.parametrize("spelling", ["mean", "dropped", "pool"])
def test_a_gate_for_each_frequency_is_a_near_miss(spelling):
    """It waits for the last step of time as SE does; in silence missed before."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), OverTimeAlone(spelling)).eval()
    plan = ts.find(model, (1, 10, 30))
    assert not len(plan)
    ((name, reason),) = [(miss.name, miss.reason) for miss in plan.near_misses]
    assert name == "1"
    assert "by means over axis 3 of 4 alone, more than one a channel" in reason


@pytest.mark.parametrize("tile", ["99xT", "40xT", "8xT"])
def test_a_pool_of_fixed_size_takes_one_tile_and_many(tile):
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.down, self.up = nn.AvgPool1d(40), nn.Conv1d(8, 4, 1), nn.Conv1d(4, 8, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.up(torch.relu(self.down(self.pool(x)))))

    model = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), Window()).eval()
    made = ts.convert(model, ts.find(model, (3, 40)).with_tile(tile))
    x = torch.randn(2, 3, 40)
    assert torch.allclose(made(x), model(x), atol=1e-5) == (tile != "8xT")


def test_a_mean_in_two_steps_is_one_over_all_axes():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x):
            z = x.mean(2).mean((2, 3))
            return x * torch.sigmoid(self.up(torch.relu(self.down(z))))[:, :, None, None, None]

    plan = ts.find(nn.Sequential(nn.Conv3d(2, 8, 1), Steps()).eval(), (2, 4, 5, 6))
    assert [b.sides for b in plan.blocks] == [(4, 5, 6)]
    assert plan.near_misses == ()


def test_the_size_is_known_from_an_example():
    model, size = build("VolumeSE")
    assert ts.find(model, example_inputs=torch.zeros(1, *size)).input_size == size
    with pytest.raises(
        ts.TiledSEError, match=r"expected an input size of \(C, H, W\).* or of \(C, T\), \(C, D, H, W\)"
    ):
        ts.find(model, (4,))


def test_half_a_map_trains():
    """Gradients of a converted block are those of the loops' formula: torch's own, through plain operators."""
    model, _ = build("ConvSE")
    made = ts.convert(model, ts.find(model, (4, 21)).with_tile("8xT")).train()
    x = torch.randn(2, 8, 21, requires_grad=True)
    made.se(x).square().sum().backward()
    y = x.detach().clone().requires_grad_()
    torch.cat([model.se(part) for part in y.split(8, 2)], 2).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
