"""Correlation of tiles with whole maps: against numpy over everything at once."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import rows_seen
from tiledse import Tile, TiledSEError
from tiledse.context.correlation import correlate
from tiledse.context.moments import Moments
from tiledse.context.tile_grid import centre_tiles
from tiledse.data.images import ImageSet, Sample, stack
from tiledse.networks.network import TorchNetwork

TILES = [
    Tile.parse(text)
    for text in (
        *("1xW", "3xW", "Hx3", "3x3", "3xW:running", "3xW:middle", "HxW"),
        *("1xW:running+2", "2xW:window-3+1", "1xW:running-1"),
    )
]


def reference_squeeze(x, tile):
    """Means of tiles by slicing, (N, C, rows, cols)."""
    size, _, kind = str(tile).partition(":")
    tall, wide = size.split("x")
    height, width = x.shape[2:]
    h = height if tall == "H" else int(tall)
    w = width if wide == "W" else int(wide)
    if kind == "middle":
        start = (height - min(h, height)) // 2
        return x[:, :, start : start + h].mean((2, 3), keepdims=True)
    if kind:
        if set(rows_seen(x[0], 0, h, kind)[0, :, 0]) == set(
            x[0, 0, :, 0]
        ):  # the first strip sees all: so do others
            h = height
        strips = [
            np.stack([rows_seen(image, top, int(tall), kind).mean((1, 2)) for image in x])
            for top in range(0, height, h)
        ]
        return np.stack(strips, -1)[..., None]
    rows = [
        [x[:, :, top : top + h, left : left + w].mean((2, 3)) for left in range(0, width, w)]
        for top in range(0, height, h)
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def pearson(a, b):
    """numpy's, or not-a-number where one does not vary."""
    a, b = a.ravel(), b.ravel()
    return np.corrcoef(a, b)[0, 1] if min(a.std(), b.std()) > 1e-9 else np.nan


class Given(ImageSet):
    """Tensors as images."""

    def __init__(self, tensors):
        self.tensors = tensors

    def count(self, batch_size, part=(0, 1)):
        return len(self.tensors)

    def dataset(self, batch_size, part):
        rows = [Sample(x, 0, f"{i}.png", (0, i)) for i, x in enumerate(self.tensors)]
        return [stack(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), big=st.booleans()
)
def test_moments_in_batches_are_those_of_all(seed, sizes, big):
    rng = np.random.default_rng(seed)
    offset = 1e6 if big else 0.0  # sums of squares would lose everything here
    x = rng.normal(size=(sum(sizes), 3, 4)) + offset
    y = 0.5 * x + rng.normal(size=x.shape)
    cuts = np.cumsum(sizes)[:-1]
    parts = [Moments.of(a, b) for a, b in zip(np.split(x, cuts), np.split(y, cuts))]
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    assert np.allclose(whole.xy, ((x - x.mean(0)) * (y - y.mean(0))).sum(0), rtol=1e-6, atol=1e-6)
    pooled = whole.pooled((0, 1))
    assert pooled.n == x.size
    assert float(pooled.correlation()) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("tile", "side", "centre"),
    [
        ("1xW", 4, [1, 2]),
        ("1xW", 5, [1, 2, 3]),
        ("7xW", 14, [0, 1]),
        ("Hx2", 8, [1, 2]),
        ("2x2", 8, [5, 6, 9, 10]),
        ("7xW:upper", 56, [0]),
    ],
)
def test_the_centre_half(tile, side, centre):
    got = np.flatnonzero(centre_tiles(Tile.parse(tile), side, side)).tolist()
    if tile == "2x2":  # the rest of the 16 lie equally far away
        assert set(centre) <= set(got)
    else:
        assert got == centre


@pytest.mark.parametrize("tile", ["1xW", "3xW", "Hx3", "3x4", "20x20"])
def test_every_element_is_in_one_tile(tile):
    assert Tile.parse(tile).elements(10, 7).sum() == 70


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model("regnety_002").eval()
    for block in range(1, 4):
        setattr(model, f"s{block + 1}", torch.nn.Identity())
    model.head = torch.nn.Identity()
    return TorchNetwork(model, (3, 80, 64))


def test_against_numpy_over_all_images_at_once(network):
    torch.manual_seed(1)
    images = torch.randn(7, 3, 80, 64) * torch.linspace(0.5, 2, 7)[:, None, None, None]
    tiles = [TILES] * len(network.plan)
    found = correlate(network, Given(list(images)), tiles, batch_size=3)
    assert found.n == 7
    maps = {}
    network.observe(images, maps.__setitem__)
    for number, block in enumerate(network.plan.blocks[:4]):
        x = maps[number]
        first = x.double().mean((2, 3)).numpy()
        gate = network.excite(number, x.mean((2, 3), keepdim=True)).double().flatten(1).numpy()
        for entry in (e for e in found.blocks if e.block == block):
            z = reference_squeeze(x.numpy(), entry.tile)
            tiled = z.reshape(*z.shape[:2], -1)
            gates = network.excite(number, torch.from_numpy(z).float()).double().flatten(2).numpy()
            for agreement, a, b in ((entry.squeeze, first, tiled), (entry.excite, gate, gates)):
                whole = np.broadcast_to(a[:, :, None], b.shape)
                middle = entry.centre
                assert agreement.all == pytest.approx(pearson(whole, b), abs=1e-4)
                r = pearson(whole[:, :, middle], b[:, :, middle])
                assert agreement.centre == pytest.approx(r, abs=1e-4)
                r = [pearson(whole[:, c], b[:, c]) for c in range(block.channels)]
                assert np.allclose(agreement.channels, r, atol=1e-3, equal_nan=True)
                r = [pearson(whole[..., j], b[..., j]) for j in range(b.shape[2])]
                assert np.allclose(agreement.tiles, r, atol=1e-3, equal_nan=True)
            delta = np.sqrt(((tiled - first[:, :, None]) ** 2).mean())
            assert entry.delta == pytest.approx(delta, rel=1e-4, abs=1e-6)


def test_independent_elements_fall_as_section_3_3_says():
    """White noise straight into the block: delta is sqrt(sigma^2/n), corrected for the finite map."""

    class Only(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.se = timm.layers.SEModule(32)

        def forward(self, x):
            return self.se(x).mean((2, 3))

    torch.manual_seed(0)
    network = TorchNetwork(Only().eval(), (32, 48, 40))
    tiles = [[Tile.parse(text) for text in ("1xW", "5xW", "Hx7", "3x3", "12xW", "24x20")]]
    found = correlate(network, Given(list(torch.randn(24, 32, 48, 40))), tiles, batch_size=8)
    for entry in found.blocks:
        assert entry.ratio == pytest.approx(1, abs=0.05), entry.tile
    assert found.exponents()["se"] == pytest.approx(0.5, abs=0.02)


def test_a_gate_that_never_moves_has_no_correlation(mobilenet):
    """blocks.0.0 of the real network: its gate is 1 throughout (models/README.md)."""
    network = TorchNetwork(mobilenet, (3, 224, 224))
    x = list(torch.randn(2, 3, 224, 224) * 0.3)
    found = correlate(network, Given(x), [[Tile.parse("7xW")]] * 9)
    first = found.to_dict()["blocks"][0]
    assert first["name"] == "blocks.0.0.se"
    assert first["excite"] is None
    assert first["constant_gates"] == 16
    assert first["squeeze"] < 1


def test_pairs_are_few_and_those_of_the_same_images_for_any_batch_size(network, tmp_path):
    images = Given(list(torch.randn(6, 3, 80, 64)))
    tiles = [[Tile.parse("3xW")]] * len(network.plan)
    one, two = (correlate(network, images, tiles, batch_size=size) for size in (1, 4))
    for a, b in zip(one.blocks, two.blocks):
        assert a.pairs.shape == (6 * 8, 5)
        assert np.allclose(np.sort(a.pairs, 0), np.sort(b.pairs, 0), atol=1e-5)
        assert a.squeeze.all == pytest.approx(b.squeeze.all, abs=1e-6)
    one.save_channels(tmp_path / "channels.csv")
    with (tmp_path / "channels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(block.channels for block in network.plan.blocks)


def test_maps_that_are_not_finite_name_the_image(network):
    images = [torch.zeros(3, 80, 64), torch.full((3, 80, 64), float("nan"))]
    with pytest.raises(TiledSEError, match=r"image 1\.png: the SE network's outputs are not finite"):
        correlate(network, Given(images), [[Tile.parse("3xW")]] * len(network.plan))


def test_an_empty_set(network):
    with pytest.raises(TiledSEError, match="the set is empty"):
        correlate(network, Given([]), [[Tile.parse("3xW")]] * len(network.plan))
