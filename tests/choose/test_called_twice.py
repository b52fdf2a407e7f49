"""A block that an image meets twice: its maps are both held, both seen, and both corrected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.layers import SEModule
from torch import Tensor, nn

import tiledse as ts
from tests.choose.networks import images, in_batches
from tiledse.choose.budget import GATES, gate_buffer, shares
from tiledse.choose.calibration import calibrate, calibrate_alone, fit_means
from tiledse.networks.network import TorchNetwork
from tiledse.tile import Tile

SIZE = (3, 22, 12)
TEXTS = ["HxW", "3xW", "4xW:running", "1xW:running+2", "2xW:window-3+3", "Hx5", "4x4", "3xW:upper"]


class Twice(nn.Module):
    """The first block is met again after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shared, self.own = SEModule(8, rd_channels=4), SEModule(8, rd_channels=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.shared(self.stem(x).relu()))
        return self.shared(self.body(x).relu())


@pytest.fixture(scope="module")
def network() -> TorchNetwork:
    torch.manual_seed(0)
    model = Twice().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return TorchNetwork(model, SIZE)


@pytest.mark.parametrize("text", TEXTS)
def test_what_gates_hold(network, text):
    plan = network.plan.with_tile(text)
    assert [block.calls for block in plan.blocks] == [2, 1]
    rows, columns = {"H": (22, 5), "4x4": (4, 4), "3": (3, 12), "4": (4, 12), "1": (3, 12), "2": (5, 12)}[
        "4x4" if text == "4x4" else text[0]
    ]
    columns = 12 if text == "HxW" else columns
    assert gate_buffer(plan) == ts.cost(plan).tse.buffer == 3 * 8 * rows * columns


def test_shares_add_up_to_what_is_held(network):
    options = [[Tile.parse(t) for t in ("1xW", "3xW", "7xW:running", "HxW")]] * 2
    rest, found = shares(network.plan, options, GATES)
    for first in range(4):
        for second in range(4):
            plan = network.plan.with_tile(options[0][first], "shared").with_tile(options[1][second], "own")
            assert rest + found[0][first] + found[1][second] == ts.cost(plan).tse.buffer


def test_streamed_and_simulated_they_hold_as_much(network):
    plan = network.plan.with_tile("1xW:running+2")
    s = ts.stream(network.model, plan)
    x = images(1, SIZE)
    list(s.run(x.split(2, 2)))
    held = sum(item.elements for item in s.held() if item.kind == "gate")
    assert held == ts.cost(plan).tse.buffer_row_order == gate_buffer(plan)


def seen_by(model: nn.Module, x: Tensor) -> dict[str, list[np.ndarray]]:
    """The maps that come to each block, (N, C, H, W), call by call."""
    maps: dict[str, list[np.ndarray]] = {"shared": [], "own": []}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda module, args, name=name: maps[name].append(args[0].double().numpy())
        )
        for name in maps
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return maps


def fitted(maps: np.ndarray):
    """The fit of 1xW:running+2 from maps: each row knows itself and two below, and all down to there."""
    rows = maps.mean(3)
    own = np.stack([rows[:, :, i : i + 3].mean(2) for i in range(22)], 2)
    known = np.stack([rows[:, :, : i + 3].mean(2) for i in range(22)], 2)
    return fit_means(own, known, rows.mean(2), 300.0)


def test_a_correction_is_fitted_on_the_maps_of_both_calls(network):
    text, x = "1xW:running+2", images(40, SIZE)
    plan = network.plan.with_tile(text)
    found = calibrate(network, plan, lambda: in_batches(x, 16))
    maps = seen_by(network.tiled(plan), x)
    expected = fitted(np.concatenate(maps["shared"]))
    np.testing.assert_allclose(found.corrections[0].own, expected.own, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(found.corrections[0].offset, expected.offset, rtol=2e-3, atol=1e-3)


def test_blocks_alone_get_their_own_maps(network):
    """Not those of the block that was met again before."""
    text, x = "1xW:running+2", images(40, SIZE)
    found = calibrate_alone(network, [[Tile.parse(text)]] * 2, lambda: in_batches(x, 16))
    maps = seen_by(network.model, x)
    for (correction,), name in zip(found, ("shared", "own"), strict=True):
        expected = fitted(np.concatenate(maps[name]))
        np.testing.assert_allclose(correction.own, expected.own, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(correction.running, expected.running, rtol=2e-3, atol=1e-4)


def test_images_are_counted_not_maps(network):
    x = images(20, SIZE)
    with pytest.raises(ts.TiledSEError, match="20 images are too few"):
        calibrate(network, network.plan.with_tile("1xW:running"), lambda: in_batches(x))
