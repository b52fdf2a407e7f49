"""Tiles in TensorFlow Lite files: right by the numpy loops, read back as they were given, and taken out again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.reference import tiled_squeeze_excite
from tiledse.errors import TiledSEError
from tiledse.tflite.model import load, save

from .graphs import Net, quantised

TILES = [
    "4xW", "5xW", "Hx2", "5x3", "12x2", "1x1", "1xW", "5xW:upper", "5xW:middle", "5xW:running", "1xW:running+2",
    "2xW:running-1", "1xW:window-2+2", "3xW:window-1+4",
]  # fmt: skip


def run(network, plan, x):
    return network.tiled(plan)(torch.from_numpy(x))


def reference(net, x, tile):
    maps = np.einsum("nchw,oc->nohw", x, net.stem)
    return tiled_squeeze_excite(maps, tile, net.excite)


@pytest.mark.parametrize(
    "spelling",
    [
        {"pool": "pool", "dense": "conv", "gate": "hard"},
        {"pool": "keras", "dense": "conv", "free": "batch"},
        {"pool": "mean", "dense": "fc", "half": True},
    ],
    ids=["pool", "keras", "fc"],
)
def test_float(tmp_path, spelling):
    net = Net(**spelling)
    network = ts.open(net.write(tmp_path / "net.tflite"))
    (block,) = network.plan.blocks
    assert (block.name, block.channels, block.reduced, block.height, block.width) == ("pooled", 6, 4, 12, 5)
    if spelling.get("half"):  # weights of the stem were rounded on the way into the file
        net.stem = net.stem.astype("f2").astype("f4")
    x = np.random.default_rng(1).standard_normal((2, 3, 12, 5)).astype("f4")
    plain = run(network, network.plan, x)
    for tile in TILES if spelling["pool"] == "pool" else TILES[::2]:
        plan = network.se.with_tile(tile)
        made = network.convert(plan)
        save(made.given, tmp_path / "tse.tflite", force=True)
        read = ts.find(tmp_path / "tse.tflite")
        assert read == made.plan == plan
        assert read.network == network.plan.network
        assert made.weights == network.weights
        expected = reference(net, x, tile)
        y, pooled = run(made, plan, x)
        np.testing.assert_allclose(y.numpy(), expected, atol=2e-5 * abs(expected).max())
        np.testing.assert_allclose(pooled.numpy(), expected.mean((2, 3)), atol=1e-4)
        # Plain SE comes back, to the last digit.
        back = made.convert(made.se)
        assert back.plan == network.plan
        for a, b in zip(run(back, back.plan, x), plain):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["i1", "u1"])
def test_whole_numbers_within_a_step(tmp_path, dtype):
    """Each gate is the one that the network as it was gives for a map that is everywhere this tile's mean."""
    (tmp_path / "net.tflite").write_bytes(quantised(dtype).bytes())
    network = ts.open(tmp_path / "net.tflite")
    x = np.round(np.random.default_rng(2).normal(0, 40, (1, 6, 12, 5)).clip(-120, 120)) * 0.05
    x = x.astype("f4")

    def excite(z):
        # Half away from zero as stored, which is how the pool rounds; uint8 stores 128 more.
        q = z / 0.05 + (128 if dtype == "u1" else 0)
        q = np.trunc(q + np.copysign(0.5001, q)) - (128 if dtype == "u1" else 0)
        flat = np.broadcast_to((q * 0.05)[None, :, None, None], (1, 6, 1, 1)).astype("f4")
        return network.excite(0, torch.from_numpy(flat.copy())).numpy().reshape(-1)

    for tile in TILES if dtype == "i1" else TILES[1::2]:
        plan = network.se.with_tile(tile)
        made = network.convert(plan)
        assert made.plan == plan
        made.__dict__["_exact"] = True  # XNNPACK rounds a mean half-way between two steps to the even one
        off = np.abs(tiled_squeeze_excite(x, tile, excite) - run(made, plan, x).numpy())
        # A step of the product; a sliding mean may be a step of the map's scale off as well, which moves gates.
        slides = "running" in tile or "window" in tile
        assert off.max() <= 0.0501 * (5 if slides else 1), tile
        assert (off <= 0.0501).mean() > 0.9, tile


@pytest.mark.parametrize("dtype", ["i1", "u1"])
def test_a_mean_with_a_scale_of_its_own(tmp_path, dtype):
    """Strips leave the range of means over whole maps: their descriptors take the map's scale, the biases go along."""
    path = tmp_path / "net.tflite"
    path.write_bytes(quantised(dtype, mean_scale=0.01).bytes())
    network = ts.open(path)
    made = network.convert(network.se.with_tile("4xW"))
    x = np.zeros((1, 6, 12, 5), "f4")
    x[:, :, :4] = 4.0  # far out of what 0.01 * 127 holds
    z = torch.full((1, 6, 1, 1), 4.0)
    w1, w2 = (_weights(network, name) for name in ("hidden", "logits"))
    hidden = np.clip(w1[0] @ z.numpy().reshape(-1) + w1[1], 0, 255 * 0.02)
    gates = 1 / (1 + np.exp(-np.clip(w2[0] @ hidden + w2[1], -128 * 0.05, 127 * 0.05)))
    got = run(made, made.plan, x).numpy()[0, :, 0, 0]
    np.testing.assert_allclose(got, 4.0 * gates, atol=0.15)
    back = made.convert(made.se)
    random = np.random.default_rng(0).normal(0, 1, (1, 6, 12, 5)).astype("f4")
    assert torch.equal(run(back, back.plan, random), run(network, network.plan, random))


def _weights(network, name):
    graph = network._se.graph
    numbers = {graph.name(i): i for i in range(len(graph.tensors))}
    w, b = (graph.constant(numbers[f"{name}/{part}"]) for part in "wb")
    zero = graph.quantised(numbers[f"{name}/w"]).zero[0]
    scale = graph.quantised(numbers[f"{name}/b"]).scale[0]
    return (w[:, 0, 0].astype(float) - zero) * 0.02, b * scale


def test_what_the_file_says_is_not_believed(tmp_path):
    """A file that states another tile than its operators have is a near miss, and one that states none is read."""
    network = ts.open(Net().write(tmp_path / "net.tflite"))
    made = network.convert(network.se.with_tile("4xW"))
    lying = made.given.clone()
    for entry in lying.tree.metadata:
        old = bytes(lying.tree.buffers[entry.buffer].data)
        lying.tree.buffers[entry.buffer].data = np.frombuffer(old.replace(b"4xW", b"3xW"), np.uint8)
    save(lying, tmp_path / "lying.tflite")
    found = ts.find(tmp_path / "lying.tflite")
    assert not found.blocks
    assert "says that it has the tile 3xW" in str([m.reason for m in found.near_misses])


def test_a_plan_of_many_tiles_goes_in_twice(tmp_path):
    network = ts.open(Net(height=14).write(tmp_path / "net.tflite"))
    first = network.convert(network.se.with_tile("5xW"))
    second = first.convert(first.plan.with_tile("1xW:running+1"))
    x = np.random.default_rng(3).standard_normal((1, 3, 14, 5)).astype("f4")
    direct = network.convert(network.se.with_tile("1xW:running+1"))
    for a, b in zip(run(second, second.plan, x), run(direct, direct.plan, x)):
        assert torch.equal(a, b)


def test_a_size_that_is_left_open(tmp_path):
    path = Net(free="size").write(tmp_path / "net.tflite")
    with pytest.raises(TiledSEError, match="size of its input open"):
        ts.open(path)


def test_a_batch_of_several(tmp_path):
    net = Net(batch=2)
    network = ts.open(net.write(tmp_path / "net.tflite"))
    plan = network.se.with_tile("5x3")
    x = np.random.default_rng(4).standard_normal((4, 3, 12, 5)).astype("f4")
    y, _ = run(network.convert(plan), plan, x)
    np.testing.assert_allclose(y.numpy(), reference(net, x, "5x3"), atol=1e-4)
    with pytest.raises(TiledSEError, match="batches of 2"):
        run(network, network.plan, x[:3])


def test_the_file_that_is_there_is_kept(tmp_path):
    path = Net().write(tmp_path / "net.tflite")
    network, before = ts.open(path), path.read_bytes()
    with pytest.raises(TiledSEError, match="exists"):
        ts.write(network, network.se.with_tile("4xW"), path)
    assert path.read_bytes() == before
    assert load(path).tree.version == 3
