"""What is written is checked before the work: no two outputs are one file, and none is what is read."""

from __future__ import annotations

import os
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image
from torch import nn
from torchvision.ops import SqueezeExcitation

import onnx
from tests.cli.running import assert_refused, tiledse
from tests.onnx.graphs import se_net
from tests.train.sets import RECIPE
from tiledse.errors import TiledSEError
from tiledse.files import written_whole
from tiledse.networks.zoo import entries

# A network that is never opened: the outputs are looked at before.
NET = "timm:no_such_network"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "labels.csv").write_text("file,label\na.png,0\n")
    return folder


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(se_net(), path)
    return path


def test_two_outputs_on_one_path(tmp_path, data, net):
    same = tmp_path / "same.onnx"
    assert_refused(
        tiledse("convert", net, "--tile", "3xW", "-o", same, "--alls", same), "are one file", "--alls"
    )
    for verb, first, second in (("simulate", "--plot", "--trace"), ("stream", "-o", "--plot")):
        picture = tmp_path / "q.png"
        done = tiledse(verb, NET, "--tile", "3xW", first, picture, second, picture)
        assert_refused(done, f"{first} {picture}" if verb == "stream" else picture.name, "are one file")
    done = tiledse("correlate", NET, "--data", data, "--tile", "3xW", "--channels", tmp_path / "a.svg", "--plot",
                   tmp_path / "data" / ".." / "a.svg")  # fmt: skip
    assert_refused(done, "are one file")
    done = tiledse(
        "sweep", NET, "--data", data, "--tiles", "3xW", "-o", tmp_path / "s.png", "--plot", tmp_path / "s.png"
    )
    assert_refused(done, "are one file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "net.onnx"]


def test_outputs_that_are_one_file_by_a_link(tmp_path, net):
    (tmp_path / "real.txt").write_text("x")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real.txt")
    (tmp_path / "hard.onnx").hardlink_to(tmp_path / "real.txt")
    for name in ("link.onnx", "hard.onnx"):
        done = tiledse(
            "convert", net, "--tile", "3xW", "--force", "-o", tmp_path / name, "--alls", tmp_path / "real.txt"
        )
        assert_refused(done, "are one file")


def test_an_output_on_an_input(tmp_path, data, net):
    before = net.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(net)
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    for out in (net, link, tmp_path / "data" / ".." / "net.onnx"):
        done = tiledse("convert", net, "--tile", "3xW", "--force", "-o", out)
        assert_refused(done, "would replace what is read")
    done = tiledse("convert", NET, "--plan", plan, "--force", "-o", tmp_path / "x.onnx", "--alls", plan)
    assert_refused(done, "--alls", "would replace what is read")
    done = tiledse("convert", NET, "--weights", net, "--tile", "3xW", "--force", "-o", net)
    assert_refused(done, "would replace what is read")
    done = tiledse("eval", NET, "--data", data, "--tile", "3xW", "--force", "--images", data / "labels.csv")
    assert_refused(done, "would replace what is read")
    done = tiledse("stream", NET, data / "a.png", "--tile", "3xW", "--force", "--plot", data / "a.png")
    assert_refused(done, "would replace what is read")
    done = tiledse("simulate", NET, "--hardware", plan, "--tile", "3xW", "--force", "--trace", plan)
    assert_refused(done, "would replace what is read")
    done = tiledse(
        "search", NET, "--data", data, "--max-buffer", 9, "--force", "-o", plan, "--plot", data / "a.png"
    )
    assert_refused(done, "would replace what is read")
    done = tiledse("sweep", NET, "--data", data / "labels.csv", "--tiles", "3xW", "-o", data / "labels.csv")
    assert_refused(done, "would replace what is read")
    done = tiledse(
        "eval",
        NET,
        "--data",
        f"{tmp_path}/val-{{0..1}}.tar",
        "--tile",
        "3xW",
        "--images",
        tmp_path / "val-0.tar",
    )
    assert done.code == 2
    assert (net.read_bytes(), plan.read_text()) == (before, "{}")


def test_an_output_on_one_of_the_shards(tmp_path):
    shard = tmp_path / "val-0.tar"
    shard.write_bytes(b"")
    done = tiledse(
        "eval", NET, "--data", f"{tmp_path}/val-*.tar", "--tile", "3xW", "--force", "--images", shard
    )
    assert_refused(done, "would replace what is read")


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        (["simulate", NET, "--tile", "3xW", "--plot", "x.txt"], ".png, .pdf or .svg"),
        (["stream", NET, "--tile", "3xW", "--plot", "x"], ".png, .pdf or .svg"),
        (["correlate", NET, "--data", ".", "--tile", "3xW", "--plot", "x.jpeg"], ".png, .pdf or .svg"),
        (["sensitivity", NET, "--data", ".", "--tiles", "3xW", "--plot", "x.txt"], ".png, .pdf or .svg"),
        (
            ["sweep", NET, "--data", ".", "--tiles", "3xW", "-o", "s.csv", "--plot", "x.txt"],
            ".png, .pdf or .svg",
        ),
        (
            ["search", NET, "--data", ".", "--max-buffer", "9", "-o", "p.json", "--plot", "x.txt"],
            ".png, .pdf or .svg",
        ),
        (["search", NET, "--data", ".", "--max-buffer", "9", "-o", "p.safetensors"], "ends in .json"),
        (["plan", NET, "-o", "p.safetensors"], "ends in .json"),
        (["convert", NET, "--tile", "3xW", "-o", "x.pt"], ".onnx, .tflite or .safetensors"),
        (
            ["calibrate", NET, "--data", ".", "--tile", "3xW", "-o", "x.txt"],
            ".json, .onnx, .tflite or .safetensors",
        ),
        (["zoo", "camvid-se", "-o", "x.pt"], "ends in .safetensors"),
    ],
)
def test_endings_are_known_before_anything_is_opened(tmp_path, monkeypatch, arguments, ending):
    monkeypatch.chdir(tmp_path)
    assert_refused(tiledse(*arguments), ending)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    assert_refused(tiledse("plan", NET, "--force", "-o", pipe), "no regular file")
    with pytest.raises(TiledSEError, match="no regular file"), written_whole(pipe):
        pass
    assert pipe.is_fifo()


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_refused(tiledse("plan", NET, "-o", tmp_path / "p.json"), "may not write to the folder")
    done = tiledse("train", tmp_path / "r.toml", "--data", tmp_path, "-o", tmp_path / "a" / "b")
    assert done.code == 2


def test_weights_beside_an_onnx_file_are_read_too(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(se_net(), path, save_as_external_data=True, location="w.txt", size_threshold=0)
    before = (tmp_path / "w.txt").read_bytes()
    done = tiledse(
        "convert", path, "--tile", "3xW", "--force", "-o", tmp_path / "o.onnx", "--alls", tmp_path / "w.txt"
    )
    assert_refused(done, "would replace what is read")
    assert (tmp_path / "w.txt").read_bytes() == before


@pytest.mark.parametrize("option", ["-o", "--plot"])
@pytest.mark.parametrize("given", ["image", "weights", "plan", "link"])
def test_what_stream_writes_is_none_of_what_it_reads(tmp_path, option, given):
    files = {name: tmp_path / f"{name}.png" for name in ("image", "weights", "plan")}
    for path in files.values():
        path.write_bytes(b"kept")
    link = tmp_path / "link.png"
    link.symlink_to(files["image"])
    done = tiledse(
        "stream", NET, files["image"], "--weights", files["weights"], "--plan", files["plan"], "--force", option,
        link if given == "link" else files[given],
    )  # fmt: skip
    assert_refused(done, f"{option} ", "would replace what is read")
    assert {path.read_bytes() for path in files.values()} == {b"kept"}


def two_outputs():
    """A network of two maps, whose outputs go into two files."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.se, self.b = nn.Conv2d(3, 8, 1), SqueezeExcitation(8, 4), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.se(self.a(x))
            return x, self.b(x)

    return Two()


@pytest.mark.parametrize(
    ("out", "plot", "image", "message"),
    [
        ("o.npy", None, "o.1.npy", r"-o .*o\.1\.npy would replace what is read"),
        ("o.npy", None, "o.0.npy", r"-o .*o\.0\.npy would replace what is read"),
        ("q.png", "q.1.png", None, r"-o .*q\.1\.png and --plot .*q\.1\.png are one file"),
    ],
)
def test_the_files_of_two_outputs(tmp_path, monkeypatch, out, plot, image, message):
    monkeypatch.setitem(sys.modules, "twonets", types.SimpleNamespace(net=two_outputs))
    words = ["--tile", "2xW", "--input", "3x8x8", "--force", "-o", tmp_path / out]
    if image:
        np.save(tmp_path / image, np.zeros((8, 8, 3), np.float32))
    before = (tmp_path / image).read_bytes() if image else None
    words += [] if plot is None else ["--plot", tmp_path / plot]
    done = tiledse("stream", "twonets:net", *([tmp_path / image] if image else []), *words)
    assert done.code == 2
    assert re.search(message, done.err)
    assert before is None or (tmp_path / image).read_bytes() == before


@pytest.mark.parametrize("name", ["best.safetensors", "checkpoint.pt", "link.pt", "hard.pt"])
def test_training_does_not_begin_with_what_it_writes(tmp_path, name):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace('name = "se"', 'name = "se"\nstart = "weights"'))
    run = tmp_path / "runs" / "test_efficientnet" / "se" / "seed0"
    run.mkdir(parents=True)
    for file in ("best.safetensors", "checkpoint.pt"):
        (run / file).write_bytes(b"kept")
    (run / "link.pt").symlink_to(run / "checkpoint.pt")
    (run / "hard.pt").hardlink_to(run / "checkpoint.pt")
    words = ["--data", tmp_path, "-o", tmp_path / "runs", "--weights", run / name]
    assert_refused(tiledse("train", recipe, *words), "would replace what is read", name)
    # Of another row of the recipe they are as good as any: then only the data is missing.
    done = tiledse("train", recipe, *words, "--variant", "1xW")
    assert done.code == 2
    assert "would replace" not in done.err
    done = tiledse("train", run / "link.pt", *words[:4])
    assert done.code == 2
    assert (run / name).read_bytes() == b"kept"


def test_finetuning_does_not_begin_with_what_it_writes(tmp_path):
    run = tmp_path / "runs" / "test_efficientnet" / "3xW-running" / "seed0"
    run.mkdir(parents=True)
    (run / "best.safetensors").write_bytes(b"kept")
    done = tiledse("finetune", "timm:test_efficientnet", "--tile", "3xW:running", "--data", tmp_path, "-o",
                   tmp_path / "runs", "--weights", run / "best.safetensors")  # fmt: skip
    assert_refused(done, "best.safetensors would replace what is read")


def test_the_zoo_is_not_written_over():
    path = entries()[0].path
    before = path.read_bytes()
    assert_refused(tiledse("zoo", entries()[0].name, "--force", "-o", path), "would replace what is read")
    assert path.read_bytes() == before
