"""The pipeline's buffer of one plan after another, against the simulator that traces each plan anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tiledse as ts
from tests.stream.networks import Small, build
from tiledse.choose.budget import Order, shares
from tiledse.choose.search import options_of
from tiledse.errors import TiledSEError
from tiledse.stream.minimum import PipelineBuffer
from tiledse.tile import Tile

pytestmark = pytest.mark.slow  # most of a minute: `make test-slow`

TILES = [
    Tile.parse(t) for t in ("1xW", "2xW", "3xW", "5xW:running", "7xW", "1xW:running+2", "2xW:window-3+4")
]


@pytest.mark.parametrize(
    ("name", "size", "additive"),
    [
        ("timm:tf_mobilenetv3_small_100", 128, True),
        ("timm:regnety_002", 128, True),
        # Its shortcuts pass a whole stage.
        pytest.param("timm:cs3se_edgenet_x", 64, False, marks=pytest.mark.slow),
    ],
)
def test_every_plan_holds_what_the_simulator_counts(name, size, additive):
    pytest.importorskip("timm")
    model = build(name, (size, size))
    plan = ts.find(model, (3, size, size))
    order = Order("pipeline", PipelineBuffer(model, plan))
    options = options_of(plan, TILES)
    rest, table = shares(plan, options, order)
    rng = np.random.default_rng(0)
    apart = []
    for number in range(6):
        chosen = [int(rng.integers(len(own))) for own in options]
        mixed = replace(plan, tiles=tuple(own[o] for own, o in zip(options, chosen, strict=True)))
        if number < 1:
            assert order.of(mixed) == ts.simulate(model, mixed, fifos="minimum").fifo
        apart.append(rest + sum(own[o] for own, o in zip(table, chosen, strict=True)) - order.of(mixed))
    # One shortcut past one block: sums of shares are what is held. Past several: they are more.
    assert min(apart) >= 0
    assert (max(apart) == 0) == additive


def test_excitations_with_kernels_and_whole_maps():
    model = Small().double().eval()
    plan = ts.find(model, (3, 45, 20))
    elements = PipelineBuffer(model, plan)
    for first, second in (
        ("1xW", "HxW"),
        ("4xW:running", "2xW"),
        ("HxW", "HxW"),
        ("100xW", "3xW"),
        ("1xW:running+3", "2xW:running-1"),
        ("1xW:window-4+2", "1xW:running+90"),
    ):
        mixed = replace(plan, tiles=(Tile.parse(first), Tile.parse(second)))
        assert elements(mixed) == ts.simulate(model, mixed, fifos="minimum").fifo
    for tile in ("Hx4", "2x2", "7xW:upper"):
        with pytest.raises(TiledSEError, match="is counted for strips of rows"):
            elements(plan.with_tile(tile))
