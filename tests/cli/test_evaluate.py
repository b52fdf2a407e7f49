"""`tiledse eval`: what it prints, alone and under torchrun, and its one line on wrong use."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import tiledse
from tiledse.cli import main
from tiledse.measure.processes import own_device

MODEL = "timm:tf_mobilenetv3_small_100"
COUNT = 90


@pytest.fixture(scope="session")
def photos(shared, tmp_path_factory):
    """The first images of the real set, as a list of absolute paths."""
    source = shared / "data" / "imagenet_val1300"
    with (source / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:COUNT]
    folder = tmp_path_factory.mktemp("photos")
    with (folder / "labels.csv").open("w") as file:
        file.writelines(["file,label\n", *(f"{source / row['file']},{row['label']}\n" for row in rows)])
    return folder


@pytest.fixture
def arguments(shared, photos):
    weights = shared / "models" / "tf_mobilenetv3_small_100.safetensors"
    return ["eval", MODEL, "--weights", str(weights), "--data", str(photos), "--preprocess", "crop"]


def run(capsys, *arguments):
    code = main(list(arguments))
    return code, *capsys.readouterr()


def torchrun(*arguments):
    """Two processes; the environment's tiledse is the one under test."""
    source = str(Path(tiledse.__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "tiledse", *arguments],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_text_and_json_say_the_same(capsys, arguments, tmp_path):
    code, text, _ = run(capsys, *arguments, "--tile", "3xW")
    assert code == 0
    images = tmp_path / "images.csv"
    code, out, err = run(
        capsys, *arguments, "--tile", "3xW", "--json", "--images", str(images), "--workers", "1"
    )
    got = json.loads(out)
    assert (code, err) == (0, f"wrote {images}\n")
    assert got["task"] == "classify"
    assert got["n"] == COUNT
    assert f"SE      {got['se']['top1']:6.2f}   {got['se']['top5']:6.2f}" in text
    assert f"TSE     {got['tse']['top1']:6.2f}   {got['tse']['top5']:6.2f}" in text
    assert f"lost {got['paired']['lost']} and gained {got['paired']['gained']}" in text
    with images.open() as file:
        outcomes = [row["outcome"] for row in csv.DictReader(file)]
    assert len(outcomes) == COUNT
    assert outcomes.count("lost") == got["paired"]["lost"] > 0
    assert outcomes.count("kept") + outcomes.count("gained") == round(got["tse"]["top1"] * COUNT / 100)


def test_a_plan_of_one_tile_a_map_loses_nothing(capsys, arguments, tmp_path):
    plan = str(tmp_path / "plan.json")
    assert run(capsys, "plan", MODEL, "--tile", "HxW", "-o", plan)[0] == 0
    code, out, _ = run(capsys, *arguments, "--plan", plan, "--json", "--amp", "bfloat16")
    got = json.loads(out)
    assert code == 0
    assert got["paired"] == {"agree": COUNT, "lost": 0, "gained": 0, "p_value": 1.0}
    assert got["drop"] == 0


def write_shards(photos, folder):
    with (photos / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number in range(3):
        with tarfile.open(folder / f"part-{number}.tar.gz", "w:gz", compresslevel=1) as tar:
            for i, row in enumerate(rows[number * 30 : number * 30 + 30]):
                for name, data in (
                    (f"{i}.jpg", Path(row["file"]).read_bytes()),
                    (f"{i}.cls", row["label"].encode()),
                ):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def test_two_processes_give_the_numbers_of_one(capsys, arguments, tmp_path):
    options = ["--tile", "3xW", "--batch-size", "8", "--json"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    code, alone, _ = run(capsys, *arguments, *options, "--images", str(one))
    assert code == 0
    both = torchrun(*arguments, *options, "--images", str(two))
    assert both.returncode == 0, both.stderr
    assert both.stdout == alone
    assert two.read_text() == one.read_text()


@pytest.mark.slow
def test_two_processes_share_shards(capsys, arguments, photos, tmp_path):
    write_shards(photos, tmp_path)
    arguments[arguments.index("--data") + 1] = str(tmp_path / "part-{0..2}.tar.gz")
    options = ["--tile", "3xW", "--batch-size", "8", "--json"]
    code, alone, _ = run(capsys, *arguments, *options)
    assert code == 0
    assert json.loads(alone)["n"] == COUNT
    both = torchrun(*arguments, *options, "--workers", "1")
    assert both.returncode == 0, both.stderr
    assert both.stdout == alone


def test_what_is_wrong_in_one_process_is_said_once(arguments, photos, tmp_path):
    lines = (photos / "labels.csv").read_text().splitlines()
    (tmp_path / "bad.jpg").write_text("no picture")
    # Batch 1 of 8 images belongs to the second process.
    (tmp_path / "labels.csv").write_text("\n".join([*lines[:11], "bad.jpg,0", *lines[12:20]]) + "\n")
    arguments[arguments.index("--data") + 1] = str(tmp_path)
    both = torchrun(*arguments, "--tile", "7xW", "--batch-size", "8")
    assert both.returncode != 0
    assert both.stdout == ""
    said = [line for line in both.stderr.splitlines() if line.startswith("tiledse:")]
    assert len(said) == 1
    assert "image bad.jpg: cannot be read" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data": "nowhere"}, "no images at nowhere: there is no such file or folder"),
        ({"--data": "no-{0..1}.tar"}, "no shard at no-0.tar (from no-{0..1}.tar)"),
        ({"--batch-size": "0"}, "expected batches of at least 1 image and at least 0 workers, got 0 and 0"),
        ({"--workers": "-1"}, "got 64 and -1"),
        ({"--task": "caption"}, "--task caption: expected classify, detect or segment"),
        ({"--preprocess": "middle"}, "expected 'network' or 'crop', got 'middle'"),
        ({"--device": "toaster"}, "device 'toaster' does not work here"),
        ({"--device": "meta"}, "expected the device cpu, cuda or cuda:N, got 'meta'"),
        ({"--amp": "int8"}, "--amp int8: expected bfloat16 or float16"),
        ({"--tile": "0xW"}, "sides of at least 1"),
        ({"--plan": "plan.json"}, "either with --tile T or with --plan FILE"),
        ({"--input": "3x512x512"}, "it is 227x227 (rows x columns), smaller than the input 512x512"),
        ({"--class-map": "map.txt"}, "--class-map goes with a folder of class folders"),
        ({"--images": "none/images.csv"}, "there is no folder none; make it first"),
    ],
)
def test_wrong_use(capsys, arguments, monkeypatch, tmp_path, changes, message):
    monkeypatch.chdir(tmp_path)
    options = {"--tile": "7xW", **changes}
    code, out, err = run(capsys, *arguments, *(text for pair in options.items() for text in pair))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_labels_of_another_set(capsys, arguments, photos, tmp_path):
    first = (photos / "labels.csv").read_text().splitlines()[1].rpartition(",")[0]
    (tmp_path / "labels.csv").write_text(f"file,label\n{first},1000\n")
    arguments[arguments.index("--data") + 1] = str(tmp_path)
    code, _, err = run(capsys, *arguments, "--tile", "7xW")
    assert code == 2
    assert err.startswith("tiledse: labels that do not match: image /")
    assert err.endswith("has label 1000, but the network has 1000 classes (0 to 999)\n")


def test_class_folders_need_the_networks_classes(capsys, arguments, photos, tmp_path):
    """Ten class folders and a head of 1000: their sorted places are not the head's."""
    rows = [line.rpartition(",")[::2] for line in (photos / "labels.csv").read_text().splitlines()[1:11]]
    for file, label in rows:
        (tmp_path / "set" / f"c{int(label):04}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / f"c{int(label):04}" / Path(file).name).symlink_to(file)
    arguments[arguments.index("--data") + 1] = str(tmp_path / "set")
    code, _, err = run(capsys, *arguments, "--tile", "7xW")
    assert code == 2
    assert "class folders, the network 1000 classes; give --class-map" in err
    (tmp_path / "map.txt").write_text("".join(f"c{i:04}\n" for i in range(1000)))
    code, out, _ = run(
        capsys, *arguments, "--tile", "7xW", "--class-map", str(tmp_path / "map.txt"), "--json"
    )
    assert code == 0
    assert json.loads(out)["n"] == 10
    assert json.loads(out)["se"]["top5"] > 50


def test_an_output_is_not_replaced_unasked(capsys, arguments, tmp_path):
    images = tmp_path / "images.csv"
    images.write_text("mine")
    code, _, err = run(capsys, *arguments, "--tile", "7xW", "--images", str(images))
    assert code == 2
    assert "give --force to replace it" in err
    assert images.read_text() == "mine"


def test_random_weights_are_told(capsys, arguments, photos, tmp_path):
    at = arguments.index("--weights")
    del arguments[at : at + 2]
    arguments[arguments.index("--data") + 1] = str(tmp_path)
    (tmp_path / "labels.csv").write_text("".join((photos / "labels.csv").read_text().splitlines(True)[:3]))
    code, _, err = run(capsys, *arguments, "--tile", "7xW")
    assert code == 0
    assert "the weights are random" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu(capsys, arguments):
    assert own_device("cuda") == torch.device("cuda", 0)
    _, alone, _ = run(capsys, *arguments, "--tile", "3xW", "--json")
    code, out, _ = run(capsys, *arguments, "--tile", "3xW", "--json", "--device", "cuda")
    assert code == 0
    # Other kernels round differently: an image or two may change sides.
    assert json.loads(out)["tse"]["top1"] == pytest.approx(json.loads(alone)["tse"]["top1"], abs=2.5)
