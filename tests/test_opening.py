"""Networks of every kind by one name: what opens them, and that a verb looks for blocks once."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import tiledse as ts
from tests.choose.networks import SIZE, images, small
from tests.cli.running import assert_refused, tiledse
from tiledse import onnx as room
from tiledse import opening
from tiledse.data.images import Batch
from tiledse.errors import TiledSEError
from tiledse.evaluate.classification import Classification
from tiledse.networks import finder


class Given:
    """Images in memory, the first half of class 0."""

    classes = None

    def __init__(self, x):
        self.x = x

    def count(self, batch_size, part):
        return len(self.x)

    def batches(self, batch_size, workers=0, part=(0, 1), pin_memory=False):
        for start in range(0, len(self.x), batch_size):
            x = self.x[start : start + batch_size]
            numbers = torch.arange(start, start + len(x))
            names = [f"{n}.png" for n in numbers.tolist()]
            yield Batch(
                x, (numbers >= len(self.x) // 2).long(), names, torch.stack([0 * numbers, numbers], 1)
            )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = small()
    path = tmp_path_factory.mktemp("net") / "small.onnx"
    room.save(room.export_se(model, ts.find(model, SIZE)), path)
    return path


def test_every_kind_has_the_same_blocks(file):
    model = small()
    opened = [ts.open(model, SIZE), ts.open(str(file), SIZE), ts.open(room.load(file), SIZE)]
    assert [network.kind for network in opened] == ["PyTorch", "ONNX", "ONNX"]
    assert [network.name for network in opened[1:]] == ["small.onnx"] * 2
    shapes = [[(b.channels, b.height, b.width) for b in network.plan.blocks] for network in opened]
    assert shapes[0] == shapes[1] == shapes[2]
    assert len(shapes[0]) >= 2


def test_verbs_give_alike_for_each_kind(file):
    """A convolution here and there rounds in another way; what is lost and gained may not differ."""
    torch.manual_seed(0)
    task = Classification(Given(images(40)))
    found = []
    for source in (small(), str(file)):
        network = ts.open(source, SIZE)
        plan = network.se.with_tile("2xW")
        evaluation = ts.evaluate(network, plan, task)
        x = images(4)
        with torch.no_grad():
            output = network.tiled(plan)(x)
        found.append((ts.cost(network, plan).tse.buffer, evaluation.to_dict(), output))
        assert ts.verify(network, plan).refused == ()
        assert ts.open(network) is network
    (buffer, one, a), (other_buffer, other, b) = found
    assert buffer == other_buffer
    assert one == other
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_convert_gives_the_kind_that_it_got(file, tmp_path):
    model = small()
    plan = ts.find(model, SIZE).with_tile("2xW")
    assert isinstance(ts.convert(model, plan), torch.nn.Module)
    network = ts.convert(ts.open(model, SIZE), plan)
    assert network.plan == plan == ts.find(network.given, SIZE)
    other = ts.find(str(file), SIZE).with_tile("2xW")
    assert isinstance(ts.convert(room.load(file), other), room.OnnxModel)
    made = ts.convert(str(file), other)
    assert made.kind == "ONNX"
    assert ts.find(made) == ts.find(made.given, SIZE) == other
    written = ts.write(ts.open(model, SIZE), plan, tmp_path / "a.onnx")
    assert written.converted == len(plan)
    assert ts.find(tmp_path / "a.onnx", SIZE).tiles == plan.tiles
    assert ts.write(made, other, tmp_path / "b.onnx").to_dict()["refused"] == []


@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx"])
def test_a_file_that_is_there_is_kept(tmp_path, name):
    network, path = ts.open(small(), SIZE), tmp_path / name
    path.write_text("mine")
    plan = network.se.with_tile("2xW")
    with pytest.raises(TiledSEError, match=f"{name} exists"):
        ts.write(network, plan, path)
    assert path.read_text() == "mine"
    ts.write(network, plan, path, ts.Form(force=True))
    assert path.stat().st_size > 1000


def test_names_of_timm_open():
    network = ts.open("timm:lcnet_050")
    assert network.random
    assert network.config["mean"] == timm.create_model("lcnet_050").pretrained_cfg["mean"]
    assert ts.find(network) == network.plan == ts.find("timm:lcnet_050")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda file: ts.open(3), "expected a network"),
        (lambda file: ts.open("nothing"), "no model 'nothing'"),
        (lambda file: ts.open("absent.onnx"), "cannot read absent.onnx"),
        (lambda file: ts.open(str(file), pretrained=True), "holds its weights"),
        (lambda file: ts.open(str(file), SIZE, device="cuda"), "runs in ONNX Runtime on the CPU"),
        (lambda file: ts.open("timm:lcnet_050", image="x"), "--image goes with FILE.onnx"),
        (lambda file: ts.open(small(), SIZE, pretrained=True), "go with a network that is named"),
        (lambda file: ts.open(small(), SIZE, device="meta"), "device goes with a network that is named"),
        (lambda file: ts.open(ts.open(small(), SIZE), (3, 64, 64)), "is open already"),
        (lambda file: ts.open("timm:resnet10t").plan.check_blocks(), "no squeeze-and-excite block"),
        (lambda file: ts.open(str(file), SIZE).module("a figure"), "takes a network of PyTorch"),
        (lambda file: ts.convert(small(), "7xW"), "expected a plan, got str"),
        (
            lambda file: ts.write(ts.open(str(file), SIZE), ts.find(str(file), SIZE), "a.safetensors"),
            "ends in .onnx",
        ),
    ],
)
def test_wrong_use(file, call, said):
    with pytest.raises(TiledSEError, match=said):
        call(file)


def test_a_verb_looks_for_blocks_once(monkeypatch, tmp_path):
    """The network is run and read when it is opened, and never again, whatever is done with it."""
    looks, observe = [], finder.observe
    monkeypatch.setattr(finder, "observe", lambda *a: looks.append(a) or observe(*a))
    network = ts.open(small(), SIZE)
    assert len(looks) == 1
    plan = network.se.with_tile("2xW")
    task = Classification(Given(images(40)))
    ts.cost(network, plan)
    ts.evaluate(network, plan, task)
    ts.calibrate(network, plan, lambda: iter([images(40)]))
    ts.sensitivity(network, task, list(plan.tiles[:1]))
    ts.search(network, task, max_buffer=ts.cost(plan).tse.buffer, cache=tmp_path, tiles=["1xW", "2xW"])
    ts.convert(network, plan)
    ts.verify(network, plan)
    ts.write(network, plan, tmp_path / "a.safetensors")
    assert len(looks) == 1


def test_a_further_kind_is_a_room_and_a_line(monkeypatch, tmp_path):
    """What no verb knows of opens by its ending, in Python and on the command line."""
    monkeypatch.setitem(opening.KINDS, ".toy", "tests.toy_kind")
    path, data = tmp_path / "net.toy", tmp_path / "images"
    save_file(small().state_dict(), path)
    assert ts.open(path).kind == "toy"
    assert ts.find(path) == ts.find(small(), SIZE)
    found = json.loads(tiledse("cost", path, "--tile", "2xW", "--json").out)
    assert found["tse"]["buffer"] == ts.cost(ts.find(small(), SIZE).with_tile("2xW")).tse.buffer
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (24, 44), (60 * number, 0, 0)).save(data / f"{number}.png")
    (data / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n}\n" for n in range(4)))
    done = tiledse("eval", path, "--tile", "2xW", "--data", data, "--json")
    assert json.loads(done.out)["n"] == 4, done.err
    assert_refused(
        tiledse("convert", path, "--tile", "2xW", "-o", tmp_path / "a.onnx"), "is of toy", "ends in .toy"
    )
