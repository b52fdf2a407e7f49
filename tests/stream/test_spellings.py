"""A gate is local in rows however it is written: one row graph for all spellings, at heights known and unknown."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.networks import handwritten
from tests.reference import by_crops
from tests.stream.networks import difference

pytestmark = pytest.mark.slow  # most of a minute: `make test-slow`

# 23 rows and 13 columns: a prime each, which no tile divides.
HEIGHT, WIDTH, CHANNELS = 23, 13, 12
SPELLINGS = [cls for cls in (*handwritten.SE, handwritten.ChannelsLast) if cls is not handwritten.FixedWindow]


class Maps(nn.Module):
    """A convolution, the block, a convolution: rows go in and rows come out."""

    def __init__(self, cls: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.block = cls()
        self.tail = nn.Conv2d(CHANNELS, 2, 3, padding=1)
        self.nhwc = cls is handwritten.ChannelsLast

    def forward(self, x):
        x = self.stem(x)
        return self.tail(
            self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.nhwc else self.block(x)
        )


def expected(model: Maps, x: torch.Tensor, tile: str) -> torch.Tensor:
    """The stem, each tile by the block itself, the tail."""
    with torch.no_grad():
        y = model.stem(x)
        if model.nhwc:
            y = by_crops(model.block, y.permute(0, 2, 3, 1), tile, nhwc=True).permute(0, 3, 1, 2)
        else:
            y = by_crops(model.block, y, tile)
        return model.tail(y)


@pytest.mark.parametrize(
    ("cls", "tile", "rows"),
    [
        *((cls, "3xW", 3) for cls in SPELLINGS),
        *((handwritten.LinearView, *case) for case in (("HxW", None), ("1xW", 1), ("5x4", 5))),
    ],
)
def test_each_spelling_holds_its_tile_and_gives_rows_as_they_come(cls, tile, rows):
    model = Maps(cls).double().eval()
    plan = ts.find(model, (3, HEIGHT, WIDTH)).with_tile(tile)
    free = ts.stream(model, plan, height=None, batch=2, rows=8)
    assert free.whole == {}
    for height in (HEIGHT, 41):
        x = torch.randn(2, 3, height, WIDTH, dtype=torch.float64)
        assert difference(free(x, chunk=5), expected(model, x, tile)) < 1e-12
    stream = ts.stream(model, plan, height=41, rows=1)
    assert difference(stream(x[:1], chunk=5), expected(model, x[:1], tile)) < 1e-12
    # Output row 0 needs block row 1, which waits for the first tiles, and the stem one row more.
    wait = 41 if rows is None else min(41, max(2, rows * -(-2 // rows)) + 1)
    given = [stream.push(torch.zeros(1, 3, 1, WIDTH, dtype=torch.float64)) for _ in range(wait)]
    assert [i for i, out in enumerate(given) if out is not None] == [wait - 1]
    holds = (41 if rows is None else rows) * WIDTH * CHANNELS
    assert [h.elements for h in stream.held() if h.kind == "gate"] == [holds]
    assert ts.cost(stream.plan).tse.buffer_row_order == holds


@pytest.mark.parametrize("tile", ["3xW", "2xW:running"])
def test_the_pipeline_does_not_depend_on_the_spelling(tile):
    def stages(cls):
        model = Maps(cls).eval()
        plan = ts.find(model, (3, HEIGHT, WIDTH)).with_tile(tile)
        run = ts.simulate(model, plan, fifos="minimum", height=41)
        assert run.buffer == ts.cost(ts.stream(model, plan, height=41).plan).tse.buffer_row_order
        return [(s.kind, s.rows, s.fifo_rows, s.peak) for s in run.stages]

    runs = {cls.__name__: stages(cls) for cls in SPELLINGS if cls is not handwritten.ChannelsLast}
    assert set(map(tuple, runs.values())) == {tuple(runs["LinearView"])}
    # Axes that are turned before and after are rows on their way, and nothing else.
    turned = [s for s in stages(handwritten.ChannelsLast) if s[0] != "row"]
    assert turned == [s for s in runs["LinearView"] if s[0] != "row"]


def test_a_window_of_the_size_of_the_map():
    """Old code pools by a window as large as the map; it has one size only."""
    model = Maps(handwritten.FixedWindow).double().eval()
    stream = ts.stream(model, ts.find(model, (3, 10, 10)).with_tile("3xW"), rows=4)
    assert stream.whole == {}
    assert [h.rows for h in stream.held() if h.kind == "gate"] == [3]
    x = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        assert difference(stream(x), ts.convert(model, stream.plan)(x)) < 1e-12


def test_the_multiplications_of_each_spelling_are_counted():
    for cls in SPELLINGS:
        model = Maps(cls).eval()
        plan = ts.find(model, (3, HEIGHT, WIDTH)).with_tile("3x5")
        nodes = ts.stream(model, plan).graph.nodes
        assert sum(node.macs for node in nodes) == ts.cost(plan).tse.macs
        layers = [m for m in model.block.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        a_gate = sum(m.weight.numel() + (m.bias is not None and m.bias.numel()) for m in layers)
        if a_gate:  # else its weights are no layers
            assert [n.macs for n in nodes if n.kind == "excite"] == [8 * 3 * a_gate]


class Mixing(nn.Module):
    """Positions in one axis, as attention has them: no rows are left, and the size is among the arguments."""

    def __init__(self, channels=CHANNELS):
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.se = handwritten.ConvMean(channels)

    def forward(self, x):
        y = self.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.se(y.reshape(x.shape))


def test_a_block_after_a_layer_without_rows():
    model = Maps(Mixing).double().eval()
    plan = ts.find(model, (3, HEIGHT, WIDTH)).with_tile("3xW")
    stream = ts.stream(model, plan, batch=2, rows=8)
    assert list(stream.whole.values()) == [CHANNELS * HEIGHT * WIDTH]
    x = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        assert difference(stream(x), ts.convert(model, plan)(x)) < 1e-12
    with pytest.raises(
        ts.TiledSEError, match="the height must be known: layer 'block.linear' takes the whole"
    ):
        ts.stream(model, plan, height=None)


class Inline(handwritten.ConvMean):
    """SE within more: the excitation has no module of its own, and so no dtype of its own."""

    def forward(self, x):
        y = super().forward(x)
        return y + 0.1 * y.abs()


def test_a_block_written_inline_in_float64():
    model = Maps(Inline).double().eval()
    plan = ts.find(model, (3, HEIGHT, WIDTH)).with_tile("3xW")
    stream = ts.stream(model, plan, rows=8)
    assert [h.rows for h in stream.held() if h.kind == "gate"] == [3]
    x = torch.randn(1, 3, HEIGHT, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        assert difference(stream(x), ts.convert(model, plan)(x)) < 1e-12
