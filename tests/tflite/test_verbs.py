"""FILE.tflite through every verb, in Python and on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import tiledse as ts
from tests.cli.running import assert_refused, tiledse

from .graphs import Net, quantised


@pytest.fixture
def file(tmp_path):
    net = Net(height=24, width=20)
    net.builder.graph.outputs = net.builder.graph.outputs[1:]  # the logits alone
    return net.write(tmp_path / "net.tflite")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(44):
        array = random.integers(0, 255, (24, 20, 3)) * np.linspace(0.2, 1, 24)[:, None, None]
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n % 6}\n" for n in range(44)))
    return folder


def test_on_the_command_line(file, pictures, tmp_path):
    found = json.loads(tiledse("find", file, "--json").out)
    assert found["blocks"] == [
        {
            "name": "pooled",
            "channels": 6,
            "reduced": 4,
            "height": 24,
            "width": 20,
            "dialect": "tflite.SE",
            "tile": "HxW",
        }
    ]
    cost = json.loads(tiledse("cost", file, "--tile", "4xW", "--json").out)
    assert cost["tse"]["buffer"] == 4 * 20 * 6
    # stem, two layers of SE, each with its bias
    assert cost["se"]["params"] == 6 * 3 + 6 + 2 * 6 * 4 + 4 + 6
    assert cost["se"]["macs"] == 24 * 20 * 6 * (3 + 1) + 2 * 6 * 4 + 4 + 6
    out = tmp_path / "tse.tflite"
    done = tiledse("convert", file, "--tile", "5xW", "-o", out)
    assert "1 of 1 SE blocks have tiles now" in done.out
    assert "with one strip over each map, to the network as it was: 0.0e+00" in done.out
    assert json.loads(tiledse("find", out, "--json").out)["blocks"][0]["tile"] == "5xW"
    data = ("--data", pictures, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    evaluated = json.loads(tiledse("eval", file, "--tile", "5xW", *data, "--json").out)
    assert evaluated["n"] == 44
    plan = tmp_path / "plan.json"
    done = tiledse("calibrate", file, "--tile", "5xW", *data, "-o", plan)
    assert done.code == 0, done.err
    again = tiledse("convert", file, "--plan", plan, "-o", tmp_path / "calibrated.tflite", "--json")
    assert json.loads(again.out)["refused"] == []
    assert ts.find(tmp_path / "calibrated.tflite") == ts.Plan.load(plan)
    assert_refused(tiledse("convert", file, "--tile", "4xW", "-o", tmp_path / "a.onnx"), "ends in .tflite")
    assert_refused(
        tiledse("convert", file, "--tile", "4xW", "-o", tmp_path / "b.tflite", "--batch", "1"),
        "goes with ONNX",
    )


def test_the_same_by_every_way(tmp_path):
    """Branches, maps, rows, squeeze and excite agree with the network run as it is."""
    net = Net(height=24, width=20)
    network = ts.open(net.write(tmp_path / "net.tflite"))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 24, 20)).astype("f4"))
    plans = [network.se.with_tile("5xW"), network.se, network.se.with_tile("1xW:running+2")]
    forms = [network.se, *plans]
    for form, got in zip(forms, network.branches(plans)(x), strict=True):
        for a, b in zip(network.tiled(form)(x), got, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    maps = {}
    network.observe(x, maps.__setitem__)
    np.testing.assert_allclose(maps[0], np.einsum("nchw,oc->nohw", x.numpy(), net.stem), atol=1e-4)
    (rows,) = network.rows(network.se, [0])(x)
    np.testing.assert_allclose(rows, maps[0].mean(3), atol=1e-5)
    tile = ts.Tile.parse("5xW")
    z = network.squeeze(0, maps[0], tile)
    gates = network.excite(0, z)
    for n in range(3):
        for row in range(5):
            np.testing.assert_allclose(gates[n, :, row, 0], net.excite(z[n, :, row, 0].numpy()), atol=1e-5)


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("tile", ["5xW", "1xW:running+2"])
def test_a_calibration_goes_into_the_file(tmp_path, kind, tile):
    path = tmp_path / "net.tflite"
    path.write_bytes(Net(height=24).builder.bytes() if kind == "float" else quantised(height=24).bytes())
    network = ts.open(path)
    size = network.plan.input_size
    random = np.random.default_rng(1)
    x = torch.from_numpy(random.standard_normal((48, *size)).astype("f4"))
    x = x + torch.linspace(-1, 1, size[1])[None, None, :, None]
    plan = ts.calibrate(network, network.se.with_tile(tile), lambda: iter([x]))
    plan = getattr(plan, "plan", plan)
    assert plan.calibrated
    made = network.convert(plan)
    assert made.plan == plan
    assert network.verify(plan).refused == ()
    first = network.tiled(plan)(x[:1])
    uncorrected = network.tiled(plan.uncalibrated)(x[:1])
    a, b = (r[0] if isinstance(r, tuple) else r for r in (first, uncorrected))
    assert not torch.equal(a, b)


def test_an_image_as_whole_numbers(tmp_path):
    """A network of uint8 takes real images: it quantises them, and gives real numbers."""
    path = tmp_path / "net.tflite"
    path.write_bytes(quantised("u1").bytes())
    network = ts.open(path)
    x = torch.full((1, 6, 12, 5), 1.02)
    maps = {}
    network.observe(x, maps.__setitem__)
    torch.testing.assert_close(maps[0], torch.full_like(x, 1.0))  # 20 steps of 0.05


def test_a_sound_is_a_map_of_one_row(tmp_path):
    net = Net(height=1, width=40, image=1)
    b = net.builder
    b.graph.tensors[0].shape = [1, 40]
    to = b.constant("to", np.array([1, 1, 40, 1], "i4"))
    wide = b.op("RESHAPE", [0, to], b.tensor("wide", (1, 1, 40, 1)))
    b.graph.operators.insert(0, b.graph.operators.pop())
    b.graph.operators[1].inputs[0] = wide
    network = ts.open(net.write(tmp_path / "net.tflite"))
    assert network.plan.input_size == (1, 1, 40)
    made = network.convert(network.se.with_tile("Hx8"))
    x = torch.randn(2, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    assert made.tiled(made.plan)(x)[0].shape == (2, 6, 1, 40)
