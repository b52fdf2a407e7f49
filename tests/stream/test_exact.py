"""Streamed = whole image: all networks, odd heights, chunks of any size, batches, tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiledse as ts
from tests.stream.networks import Small, build, difference, whole

# What float64 arithmetic in another order may move. An input moved by one ulp moves these outputs by as much.
TOLERANCE = 1e-12

# One for each family; the first few run always.
QUICK = ("timm:tf_mobilenetv3_small_075",)
MORE = (
    "timm:regnety_002",
    "timm:lcnet_050",
    "timm:mobilenetv3_small_050",
    "timm:efficientnet_b0",
    "timm:tf_efficientnet_b0",
    "timm:mobilenetv3_large_100",
    "timm:mixnet_s",
    "timm:seresnet18",
    "timm:seresnext50_32x4d",
    "timm:fbnetv3_b",
    "timm:rexnet_100",
    "timm:ghostnet_100",
    "timm:hardcorenas_a",
    "timm:nf_regnet_b0",
    "timm:ese_vovnet19b_dw",
    "timm:repvit_m0_9",
    "timm:hgnet_tiny",
    "timm:legacy_seresnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:deeplabv3_mobilenet_v3_large",
    "effdet:efficientdet_d0",
)


def check(name: str) -> None:
    size = (128, 128) if name.startswith("effdet") else (131, 96)
    model = build(name, size)
    plan = ts.find(model, (3, *size)).with_tile("7xW")
    torch.manual_seed(1)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = whole(model, plan, x)
    moved = difference(whole(model, plan, x * (1 + 2**-52)), expected)
    stream = ts.stream(model, plan, batch=2, rows=200)
    for chunk in (1, 13, size[0]):
        assert difference(stream(x, chunk), expected) <= max(1e-9, 10 * moved)
    gates = {held.name: held.elements for held in stream.held() if held.kind == "gate"}
    assert gates == {block.name: block.buffer_row_order for block in ts.cost(plan).blocks}
    assert sum(node.macs for node in stream.graph.nodes) == ts.cost(plan).tse.macs
    assert stream.whole == {}


@pytest.mark.parametrize("name", QUICK)
def test_network(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_networks(name):
    check(name)


def small(height: int, width: int = 19, tile: str = "3xW", padded: bool = True) -> tuple[Small, ts.Plan]:
    torch.manual_seed(0)
    model = Small(padded).double().eval()
    return model, ts.find(model, (3, height, width)).with_tile(tile)


SLIDING = (
    "1xW:running+6",
    "2xW:running+3",
    "1xW:running-1",
    "3xW:running-1",
    "1xW:window-6+6",
    "3xW:window-4-3",
)


@pytest.mark.parametrize("tile", SLIDING)
def test_sliding_strips(tile):
    """At every way to cut the image, known heights and unknown; what is held is what the formula says."""
    height = 43
    model, plan = small(height, tile=tile)
    x = torch.randn(2, 3, height, 19, dtype=torch.float64)
    stream, expected = ts.stream(model, plan, batch=2, rows=16), whole(model, plan, x)
    for chunk in (1, 2, 5, 16, height):
        assert difference(stream(x, chunk), expected) < TOLERANCE
    gates = {held.name: held.elements for held in stream.held() if held.kind == "gate"}
    assert gates == {block.name: block.buffer_row_order for block in ts.cost(plan).blocks}
    assert sum(node.macs for node in stream.graph.nodes) == ts.cost(plan).tse.macs


@pytest.mark.parametrize(
    "tile",
    [pytest.param(t, marks=() if t == "3xW:window-4-3" else pytest.mark.slow) for t in SLIDING],
)
def test_sliding_strips_of_unknown_height(tile):
    model = build("timm:lcnet_050")
    plan = ts.find(model, (3, 64, 64)).with_tile(tile)
    stream = ts.stream(model, plan, height=None, rows=16)
    for height in (91, 33):
        x = torch.randn(1, 3, height, 64, dtype=torch.float64)
        at_height = ts.find(model, (3, height, 64)).with_tile(tile)
        assert difference(stream(x, 7), whole(model, at_height, x)) < TOLERANCE


def test_a_long_stream_does_not_drift():
    """Running sums of float32 maps are kept in float64: after 20,000 rows they are the mean of the whole map."""
    from tiledse.stream.gates import _RowMeans

    torch.manual_seed(0)
    rows = torch.randn(1, 4, 20_000, 3) + 50
    for text in ("1xW:running+2", "1xW:window-9+2"):
        tile, state, parts = ts.Tile.parse(text), None, []
        run = _RowMeans(tile)
        for top in range(0, 20_000, 50):
            low, high = run.map.end(top), min(run.map.end(top + 50), 20_000)
            _, part, state = run(rows[:, :, low:high], top, top + 50, state)
            parts.append(part)
        means = rows.double().mean(3, keepdim=True)
        ends = tile.bounds(20_000)[-3:].tolist()
        expected = torch.cat([means[:, :, a:b].mean(2, keepdim=True) for a, b in ends], 2)
        torch.testing.assert_close(torch.cat(parts, 2)[:, :, -3:].double(), expected, rtol=1e-7, atol=0)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    height=st.integers(23, 67),
    chunk=st.integers(1, 70),
    rows=st.integers(1, 70),
    batch=st.integers(1, 3),
    tile=st.sampled_from(
        (
            "1xW",
            "3xW",
            "7xW",
            "5x3",
            "Hx4",
            "HxW",
            "100xW",
            "3xW:upper",
            "3xW:middle",
            "2xW:running",
            *SLIDING,
        )
    ),
    padded=st.booleans(),
)
def test_any_height_chunk_batch_and_tile(height, chunk, rows, batch, tile, padded):
    model, plan = small(height, tile=tile, padded=padded)
    x = torch.randn(batch, 3, height, 19, dtype=torch.float64)
    stream = ts.stream(model, plan, batch=batch, rows=rows)
    assert difference(stream(x, chunk), whole(model, plan, x)) < TOLERANCE
    gates = {held.name: held.elements for held in stream.held() if held.kind == "gate"}
    assert gates == {block.name: block.buffer_row_order for block in ts.cost(plan).blocks}


def test_every_chunk_size():
    model, plan = small(29)
    x = torch.randn(1, 3, 29, 19, dtype=torch.float64)
    stream, expected = ts.stream(model, plan, rows=64), whole(model, plan, x)
    for chunk in range(1, 30):
        assert difference(stream(x, chunk), expected) < TOLERANCE


def test_float32_is_as_close_as_float32_rounding():
    model = build("timm:lcnet_050").float()
    plan = ts.find(model, (3, 131, 96)).with_tile("7xW")
    x = torch.randn(1, 3, 131, 96)
    expected = whole(model.double(), plan, x.double())
    model.float()
    rounding = difference(whole(model, plan, x).double(), expected)
    assert difference(ts.stream(model, plan, rows=32)(x).double(), expected) < max(2e-5, 3 * rounding)


def test_rows_come_as_soon_as_they_can():
    model, plan = small(41, tile="HxW")
    early, late = (ts.stream(model, p, rows=1) for p in (plan.with_tile("1xW"), plan))
    first = []
    for stream in (early, late):
        rows = 0
        while stream.push(torch.zeros(1, 3, 1, 19, dtype=torch.float64))["maps"][0] is None:
            rows += 1
        first.append(rows)
    assert first[0] < first[1] == 40


def test_an_unknown_height_shows_at_the_end():
    model = build("timm:lcnet_050")
    plan = ts.find(model, (3, 64, 64)).with_tile("3xW")
    stream = ts.stream(model, plan, height=None, rows=16)
    for height in (91, 33):
        x = torch.randn(1, 3, height, 64, dtype=torch.float64)
        at_height = ts.find(model, (3, height, 64)).with_tile("3xW")
        assert difference(stream(x), whole(model, at_height, x)) < TOLERANCE


def test_a_layer_that_is_not_local_in_rows_waits_and_is_named():
    class Normed(Small):
        def forward(self, x):
            return nn_group_norm(self.se(self.stem(x)))

    def nn_group_norm(x):
        return torch.nn.functional.group_norm(x, 2)

    torch.manual_seed(0)
    model = Normed().double().eval()
    plan = ts.find(model, (3, 40, 19)).with_tile("3xW")
    stream = ts.stream(model, plan, rows=8)
    x = torch.randn(1, 3, 40, 19, dtype=torch.float64)
    assert difference(stream(x), whole(model, plan, x)) < TOLERANCE
    assert list(stream.whole.values()) == [8 * 20 * 10]


def test_real_network_on_a_real_image(shared, mobilenet):
    import numpy as np
    from PIL import Image

    file = sorted((shared / "data" / "imagenet_val1300" / "images").iterdir())[0]
    pixels = np.asarray(Image.open(file).convert("RGB").crop((1, 1, 225, 225)), np.float32)
    x = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
    plan = ts.find(mobilenet, (3, 224, 224)).with_tile("7xW")
    got, expected = ts.stream(mobilenet, plan, rows=32)(x), whole(mobilenet, plan, x)
    assert difference(got, expected) < 1e-5
    assert got.argmax() == expected.argmax()
