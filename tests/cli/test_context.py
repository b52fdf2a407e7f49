"""`tiledse correlate`, `sensitivity`, `sweep` and `eval --task`: what they print and write, and wrong use."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiledse
from tests.cli.running import assert_refused
from tests.cli.running import tiledse as call
from tiledse.context.sweep_file import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
MODEL = "timm:tf_mobilenetv3_small_100"


@pytest.fixture
def real(shared, tmp_path):
    """MODEL with its real weights and a few real images."""
    source = shared / "data" / "imagenet_val1300"
    rows = (source / "labels.csv").read_text().splitlines()[1:9]
    text = "".join(
        f"{source}/{row.rpartition(',')[0].rpartition(',')[0]},{row.split(',')[1]}\n" for row in rows
    )
    (tmp_path / "labels.csv").write_text("file,label\n" + text)
    weights = str(shared / "models" / "tf_mobilenetv3_small_100.safetensors")
    return [MODEL, "--weights", weights, "--data", str(tmp_path), "--preprocess", "crop"]


def is_picture(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # Letters and axes in black, and something in colour.
    return pixels.max(axis=2).min() < 50 and np.ptp(pixels, axis=2).max() > 100


def test_correlate(real, tmp_path):
    channels, figure = tmp_path / "channels.csv", tmp_path / "figure.png"
    done = call("correlate", *real, "--tiles", "3xW,7xW", "--json", "--channels", channels, "--plot", figure)
    assert done.code == 0, done.err
    got = json.loads(done.out)
    assert got["n"] == 8
    assert len(got["blocks"]) == 18
    for entry in got["blocks"]:
        assert {"name", "tile", "squeeze", "excite"} <= entry.keys()
        assert -1 <= entry["squeeze"] <= 1
        assert len(entry["squeeze_tiles"]) == entry["tiles"]
    deep = {e["tile"]: e for e in got["blocks"] if e["name"] == "blocks.4.2.se"}
    assert deep["7xW"]["squeeze"] == pytest.approx(1)
    assert deep["3xW"]["squeeze"] < 0.95
    assert is_picture(figure)
    with channels.open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == 2 * (16 + 96 + 240 + 240 + 120 + 144 + 288 + 576 + 576)
    again = call("correlate", *real, "--tiles", "3xW", "--plot", figure)
    assert_refused(again, "give --force to replace it")


def test_correlate_and_sensitivity_without_labels(shared, tmp_path):
    Image.effect_noise((230, 230), 60).convert("RGB").save(tmp_path / "noise.png")
    weights = str(shared / "models" / "tf_mobilenetv3_small_100.safetensors")
    options = [MODEL, "--weights", weights, "--data", str(tmp_path)]
    done = call("sensitivity", *options, "--tiles", "3xW", "--json")
    assert done.code == 0, done.err
    got = json.loads(done.out)
    assert got["task"] == "compare"
    assert got["blocks"][-1]["drop"] is None
    assert got["blocks"][-1]["divergence"] > got["blocks"][0]["divergence"] >= 0
    assert_refused(call("eval", *options, "--tile", "3xW"), "no labelled images")


def test_sensitivity_prints_what_it_says_as_json(real, tmp_path):
    figure = tmp_path / "figure.png"
    done = call("sensitivity", *real, "--tiles", "3xW", "--plot", figure)
    assert done.code == 0, done.err
    assert "stage blocks.4" in done.out
    assert "drops of single blocks sum to" in done.out
    assert is_picture(figure)


def test_a_sweep_goes_on_where_it_was(real, tmp_path, monkeypatch):
    output, figure = tmp_path / "sweep.csv", tmp_path / "figure.png"
    from tiledse.context import sweep as room

    passes = []
    plain = room.run

    def counting(task, branches, who, **options):
        passes.append(who[0])
        if len(passes) == 3:
            raise KeyboardInterrupt
        return plain(task, branches, who, **options)

    monkeypatch.setattr(room, "run", counting)
    options = ["--tiles", "7xW,3xW,Hx3,HxW", "-o", output]
    broken = call("sweep", *real, *options)
    assert broken.code == 130
    first = output.read_text()
    assert passes == ["SE", "7xW", "3xW"]
    assert len(first.splitlines()) == 2
    passes.clear()
    passes += ["-"] * 3  # no interruption now
    done = call("sweep", *real, *options, "--plot", figure, "--json")
    assert done.code == 0, done.err
    assert passes[3:] == ["SE", "3xW", "Hx3"]  # HxW is SE
    assert "3 new rows" in done.err
    assert output.read_text().startswith(first)
    rows = json.loads(done.out)["rows"]
    assert tuple(rows[0]) == COLUMNS
    assert [row["tile"] for row in rows] == ["7xW", "3xW", "Hx3", "HxW"]
    assert float(rows[3]["drop"]) == 0
    assert int(rows[0]["buffer"]) < int(rows[0]["se_buffer"])
    assert is_picture(figure)
    passes.clear()
    assert call("sweep", *real, *options).code == 0
    assert passes == []


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        ("correlate", {}, "give the tiles with --tiles T,T,..., --tile T or --plan FILE, one of them"),
        ("correlate", {"--tiles": "3xW", "--tile": "7xW"}, "one of them"),
        (
            "correlate",
            {"--tiles": "3xW", "--plot": "figure.gif"},
            "expected --plot with a name that ends in .png, .pdf or .svg",
        ),
        ("sensitivity", {}, "give the tiles with --tiles"),
        ("sensitivity", {"--tiles": "3xZ"}, "no tile: '3xZ'"),
        ("sweep", {"--tiles": "3xW", "-o": "none/sweep.csv"}, "there is no folder none"),
        (
            "sweep",
            {"--tiles": "3xW", "-o": "labels.csv"},
            "would replace what is read",
        ),
        ("eval", {"--tile": "3xW", "--task": "detect"}, "go with --task classify"),
        ("eval", {"--tile": "3xW", "--adapter": "a:b"}, "go with --task detect or segment; leave them out"),
    ],
)
def test_wrong_use(real, tmp_path, monkeypatch, verb, changes, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = call(verb, *real, *(text for pair in changes.items() for text in pair))
    assert_refused(done, message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "detect"], "does not say how its outputs become boxes; give --adapter"),
        (["--task", "segment"], "does not say what its outputs mean; give --adapter"),
        (["--task", "detect", "--adapter", "nowhere:adapter"], "cannot import the adapter 'nowhere:adapter'"),
        (["--task", "detect", "--adapter", "examples.selfie:adapter"], "gave a Segmenter; expected"),
        (["--task", "segment", "--adapter", "examples.selfie:PERSON"], "failed: TypeError"),
    ],
)
def test_wrong_adapters(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(ROOT)
    done = call("eval", "timm:regnety_002", "--tile", "7xW", "--data", tmp_path, *options)
    assert_refused(done, message)


def test_lraspp_on_index_masks(tmp_path):
    """torchvision's segmentation network needs no adapter."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(2):
        noise = rng.integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(rng.choice([0, 3, 255], (40, 50)).astype(np.uint8)).save(
            tmp_path / "masks" / f"{number}.png"
        )
    options = ["--task", "segment", "--input", "3x64x64", "--tile", "1xW", "--json"]
    done = call("eval", "torchvision:lraspp_mobilenet_v3_large", *options, "--data", tmp_path)
    assert done.code == 0, done.err
    got = json.loads(done.out)
    assert got["task"] == "segment"
    assert got["n"] == 2
    assert list(got["paired"]) == ["agree", "lost", "gained", "p_value"]
    assert {"mIoU", "mIoU_image"} <= got["tse"].keys()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_in_segmentation(shared, tmp_path):
    from tests.evaluate.test_tasks import example

    example("selfie").main(str(shared / "data" / "coco128"), str(tmp_path / "people.csv"))
    lines = (tmp_path / "people.csv").read_text().splitlines()[:12]
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    model = str(shared / "models" / "selfie_segmentation.onnx")
    arguments = [
        "eval",
        model,
        "--input",
        "3x256x256",
        "--task",
        "segment",
        "--adapter",
        "examples.selfie:adapter",
    ]
    arguments += ["--data", str(tmp_path / "people.csv"), "--tile", "3xW", "--batch-size", "4", "--json"]
    source = str(Path(tiledse.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    run = {"env": env, "capture_output": True, "text": True, "timeout": 240, "cwd": ROOT}
    alone = subprocess.run([sys.executable, "-m", "tiledse", *arguments], **run)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run([*start, "-m", "tiledse", *arguments], **run)
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    assert both.stdout == alone.stdout
    assert json.loads(alone.stdout)["n"] == 11
