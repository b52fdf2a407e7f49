"""Streaming calibrated plans: the same outputs as the whole image, and the same buffers as without numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.choose.networks import SIZE, images, small
from tests.stream.networks import build, difference, whole
from tiledse.correction import Correction
from tiledse.errors import TiledSEError
from tiledse.networks.converter import fingerprint

TOLERANCE = 1e-12


def corrected(model: torch.nn.Module, plan: ts.Plan, seed: int = 0) -> ts.Plan:
    """Numbers that differ from channel to channel and from strip to strip."""
    rng = np.random.default_rng(seed)
    weights, corrections = fingerprint(model), []
    for block, tile in plan:
        strips = tile.tiles(block.height, block.width)
        own, running, offset = (rng.uniform(0.2, 1, (block.channels, strips)) for _ in range(3))
        seen = running if tile.slides else None
        corrections.append(
            None if strips == 1 else Correction(own, seen, 0.1 * offset, block.height, weights, tile)
        )
    return replace(plan, corrections=tuple(corrections))


@pytest.mark.parametrize(
    "tile", ["1xW:running+3", "2xW:running-1", "2xW:running-2", "1xW:window-4+2", "2xW:window-3-2"]
)
def test_sliding_strips(tile):
    """Both means that a strip knows, that of its own rows and that of all it sees, cut in every way."""
    model = small().double()
    plan = ts.find(model, SIZE).with_tile(tile)
    calibrated = corrected(model, plan)
    x = images(2).double()
    expected = whole(model, calibrated, x)
    assert difference(expected, whole(model, plan, x)) > 1e-4
    for chunk in (1, 5, SIZE[1]):
        assert difference(ts.stream(model, calibrated, batch=2, rows=8)(x, chunk), expected) <= TOLERANCE
    assert ts.stream(model, calibrated).held() == ts.stream(model, plan).held()


@pytest.mark.parametrize("name", ["timm:regnety_002", "timm:tf_mobilenetv3_small_075"])
@pytest.mark.slow  # small networks of every tile are streamed by default
def test_streamed_is_the_whole_image(name):
    pytest.importorskip("timm")
    size = (131, 96)
    model = build(name, size)
    plan = ts.find(model, (3, *size)).with_tile("3xW:running").with_tile("2xW", "*1.*")
    calibrated = corrected(model, plan)
    torch.manual_seed(1)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = whole(model, calibrated, x)
    assert difference(expected, whole(model, plan, x)) > 1e-4  # the numbers matter
    moved = difference(whole(model, calibrated, x * (1 + 2**-52)), expected)
    stream = ts.stream(model, calibrated, batch=2, rows=200)
    for chunk in (1, 13, size[0]):
        assert difference(stream(x, chunk), expected) <= max(TOLERANCE, 10 * moved)
    # Numbers change what is computed, not what waits for what.
    assert stream.held() == ts.stream(model, plan, batch=2).held()
    with_numbers, without = (ts.simulate(model, p, fifos="minimum") for p in (calibrated, plan))
    assert with_numbers.to_dict() == without.to_dict()


def test_a_converted_network_and_a_saved_state(tmp_path):
    model = small().double()
    calibrated = corrected(model, ts.find(model, SIZE).with_tile("4xW:running"))
    tse = ts.convert(model, calibrated)
    x = images(1).double()
    first, again = (ts.stream(tse, ts.find(tse, SIZE)) for _ in range(2))
    first.push(x[:, :, :17])
    first.save(tmp_path / "state.safetensors")
    again.load(tmp_path / "state.safetensors")
    out = again.push(x[:, :, 17:])
    assert difference(out, whole(model, calibrated, x)) <= TOLERANCE
    # Without the numbers it is another network.
    plain = ts.stream(model, calibrated.uncalibrated)
    with pytest.raises(TiledSEError, match="another network"):
        plain.load(tmp_path / "state.safetensors")


def test_wrong_use():
    model = small().double()
    calibrated = corrected(model, ts.find(model, SIZE).with_tile("4xW:running"))
    with pytest.raises(
        TiledSEError,
        match="the height must be known: block 'se1' is calibrated, and its numbers belong to strips",
    ):
        ts.stream(model, calibrated, height=None)
    with pytest.raises(
        TiledSEError, match="'se1' is calibrated for maps of 22 rows, but its map has 40 rows"
    ):
        ts.stream(model, calibrated, height=80)
    with pytest.raises(
        TiledSEError, match="'se1' is calibrated for maps of 22 rows, but its map has 24 rows"
    ):
        ts.simulate(model, calibrated, height=48)
    other = small().double()
    with torch.no_grad():
        other.head.weight.add_(1)
    with pytest.raises(TiledSEError, match="the plan's calibration belongs to other weights"):
        ts.stream(other, calibrated)
