"""Detection: boxes through effdet's coding and back, layouts, category numbers, one run on real images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tiledse import TiledSEError
from tiledse.evaluate.adapters import effdet_detector
from tiledse.networks.detector import build_detector
from tiledse.train.detection import Boxed, Detection, categories_by_label, open_boxes
from tiledse.train.objective import Setting
from tiledse.train.recipe import Recipe
from tiledse.train.sections import Augment, Network

MODEL = "effdet:efficientdet_d0"
SIZE = (3, 128, 128)
RECIPE = """
task = "detect"
input = "3x128x128"
classes = 80
epochs = 1
batch_size = 4
as_is = ["7xW"]
[[network]]
model = "effdet:efficientdet_d0"
[[variant]]
name = "se"
[optimizer]
lr = 0.005
clip_norm = 10.0
[augment]
resize_range = [0.8, 1.25]
"""


@pytest.fixture(scope="module")
def network():
    return build_detector(MODEL, 80, SIZE)


@pytest.fixture(scope="module")
def few(shared, tmp_path_factory):
    """The first eight real images of each part, two of them without a box in train."""
    folder, source = tmp_path_factory.mktemp("coco"), shared / "data" / "coco128"
    for part in ("train", "val"):
        data = json.loads((source / f"instances_{part}.json").read_text())
        boxed = {a["image_id"] for a in data["annotations"]}
        images = sorted(data["images"], key=lambda image: image["id"] in boxed)[:8]
        kept = {image["id"] for image in images}
        data |= {
            "images": images,
            "annotations": [a for a in data["annotations"] if a["image_id"] in kept],
        }
        (folder / f"instances_{part}.json").write_text(json.dumps(data))
        for image in images:
            (folder / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / image["file_name"], folder / image["file_name"])
    return folder


def objective(data, **keys):
    recipe = Recipe(
        task="detect",
        input="3x128x128",
        network=(Network(MODEL),),
        augment=Augment(flip=0.0, resize_range=(1.0, 1.0)),
        **{"classes": 80, **keys},
    )
    return Detection(recipe, Setting((data,), torch.device("cpu")))


class Perfect(nn.Module):
    """Gives what the labels of the anchors say: class logits +-20, and the coded boxes."""

    def __init__(self, targets, classes):
        super().__init__()
        self._targets, self._classes, self._at = targets, classes, 0

    def forward(self, x):
        here = slice(self._at, self._at + len(x))
        self._at += len(x)
        scores, boxes = [], []
        for level in range(5):
            labels = self._targets[f"label_cls_{level}"][here]  # (N, H, W, anchors), -1 for none
            hot = nn.functional.one_hot(labels.clamp_min(-1) + 1, self._classes + 1)[..., 1:]
            scores.append((40.0 * hot - 20).flatten(3).permute(0, 3, 1, 2))
            boxes.append(self._targets[f"label_bbox_{level}"][here].permute(0, 3, 1, 2))
        return scores, boxes


def test_boxes_survive_coding_and_decoding(few, network, tmp_path):
    """Labelled as for training, decoded as for validation: an AP near 100, over the network's own category numbers."""
    shutil.copytree(few, tmp_path / "same")
    (tmp_path / "same" / "instances_train.json").write_text((few / "instances_val.json").read_text())
    task = objective(tmp_path / "same")
    images = task.images(0)
    batch = images._together([images[0, index] for index in range(len(images))])
    inputs, targets = images.ready(batch, torch.device("cpu"))
    held = torch.cat([b.inputs for b in task._held.batches(4)])
    # The image of scale 1 is validation's, but for the filter that resizes it (drawn at random in training).
    assert float((inputs - held).abs().mean()) < 0.05
    got = task.measure(Perfect(targets, 80))
    # Some boxes of a few pixels share one anchor at 128 pixels.
    assert got["AP"] > 60
    assert got["AP_large"] > 90
    # One class too far, and nothing is right.
    moved = {k: torch.where(v >= 0, (v + 1) % 80, v) if "cls" in k else v for k, v in targets.items()}
    assert task.measure(Perfect(moved, 80))["AP"] < 5


def test_flip_and_crop_move_boxes_with_their_image(tmp_path):
    """A white square on black: after any variation its box surrounds what is white."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((100, 160, 3), np.uint8)
    pixels[30:60, 20:80] = 255
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    data = {
        "images": [{"id": 7, "file_name": "images/a.png", "width": 160, "height": 100}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [20, 30, 60, 30]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 160, 100], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [5, 5, 0.2, 9]},
        ],
        "categories": [{"id": 3, "name": "square"}],
    }
    for part in ("train", "val"):
        (tmp_path / f"instances_{part}.json").write_text(json.dumps(data))
    network = build_detector(MODEL, 1, SIZE)
    source = open_boxes(tmp_path, "train", effdet_detector(network, SIZE))
    images = Boxed(source, {1: 3}, network.config, Augment(resize_range=(0.5, 2.0)), 0)
    mirrored = 0
    for epoch in range(30):
        picture, target = images[epoch, 0]
        (box,) = target["bbox"] if len(target["bbox"]) else (None,)
        white = picture.min(0) > 200
        if box is None:
            assert not white.any()
            continue
        assert target["cls"].tolist() == [1]
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        seen = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        assert np.abs(np.array(seen) - box).max() <= 2.5, (epoch, seen, box)
        mirrored += columns.mean() > 128 * 80 / 160
    assert 0 < mirrored < 30
    same = [images[4, 0] for _ in range(2)]
    assert np.array_equal(same[0][0], same[1][0])


def test_layouts_and_numbers(few, network, tmp_path):
    """COCO as it is distributed, and with two files side by side."""
    detector = effdet_detector(network, SIZE)
    for part in ("train", "val"):
        data = json.loads((few / f"instances_{part}.json").read_text())
        (tmp_path / f"{part}2017").mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for image in data["images"]:
            name = image["file_name"].rpartition("/")[2]
            shutil.copy(few / image["file_name"], tmp_path / f"{part}2017" / name)
            image["file_name"] = name
        (tmp_path / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(data))
    a, b = open_boxes(few, "train", detector), open_boxes(tmp_path, "train", detector)
    assert a.ids == b.ids
    assert torch.equal(a.sample(3).input, b.sample(3).input)
    # 80 categories from 0: labels are one more. COCO's own ids are labels of a head of 90, numbered in a head of 80.
    assert categories_by_label(a, 80) == {n + 1: n for n in range(80)}
    with pytest.raises(TiledSEError, match="80 categories, and the recipe 20 classes; set classes = 80"):
        categories_by_label(a, 20)
    a.categories = {n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)}
    assert categories_by_label(a, 90) == {n: n for n in a.categories}
    assert categories_by_label(a, 80)[12] == 13
    assert list(categories_by_label(a, 80).values()) == sorted(a.categories)


@pytest.mark.slow
def test_a_run_on_real_images(few, tmp_path):
    recipe = tmp_path / "d.toml"
    recipe.write_text(RECIPE)
    given = ("train", recipe, "--data", few, "-o", tmp_path / "runs", "--device", "cpu")
    done = tiledse(*given, "--json")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    assert 0 <= result["AP"] <= 100
    assert set(result["as_is"]) == {"7xW"}
    assert result["params"] == sum(p.numel() for p in build_detector(MODEL, 80, SIZE).parameters())
    folder = tmp_path / "runs" / "efficientdet_d0" / "se" / "seed0"
    assert len(ts.Plan.load(folder / "best.safetensors")) == 16
    # The file is the network's own, without the bench around it.
    from safetensors.torch import load_file

    build_detector(MODEL, 80, SIZE).load_state_dict(load_file(folder / "best.safetensors"))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (["--set", "input=3x130x128"], ["3x130x128", "multiples of 128"]),
        (["--set", "classes=20"], ["80 categories", "set classes = 80"]),
        (["--set", "subset=0.5"], ["subset does not go with detect"]),
        (["--set", "cache=128"], ["cache does not go with detect"]),
        (
            ["--set", "network=[{model='timm:regnety_002'}]"],
            ["no detector 'timm:regnety_002'", "effdet:NAME"],
        ),
        (["--set", "network=[{model='effdet:efficientdet_d99'}]"], ["no model 'efficientdet_d99'"]),
    ],
)
def test_wrong_use(few, tmp_path, change, parts):
    recipe = tmp_path / "d.toml"
    recipe.write_text(RECIPE)
    done = tiledse("train", recipe, "--data", few, "-o", tmp_path / "runs", "--device", "cpu", *change)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if not line.startswith("not the recipe's own size: ")]
    assert len(lines) == 1, done.err
    for part in parts:
        assert part in lines[0], lines[0]


def test_wrong_data(few, tmp_path):
    recipe = tmp_path / "d.toml"
    recipe.write_text(RECIPE)
    given = ("train", recipe, "-o", tmp_path / "runs", "--device", "cpu", "--data")
    assert_refused(tiledse(*given, tmp_path / "none"), "there is no such folder")
    assert_refused(tiledse(*given, tmp_path), "annotations/instances_train2017.json", "instances_train.json")
    broken = tmp_path / "broken"
    shutil.copytree(few, broken)
    (broken / "instances_val.json").write_text('{"images": []}')
    assert_refused(tiledse(*given, broken), "no COCO annotation file")
    shutil.copy(few / "instances_val.json", broken)
    image = json.loads((broken / "instances_train.json").read_text())["images"][2]["file_name"]
    (broken / image).write_bytes(b"no image")
    assert_refused(tiledse(*given, broken), f"image {image}: cannot be read or resized")
    (broken / image).unlink()
    assert_refused(tiledse(*given, broken), f"there is no image {image}")
