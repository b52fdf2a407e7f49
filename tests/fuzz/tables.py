"""Annotations, recipes, hardware and the tables of sweeps."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiledse as ts
from tiledse.context.sweep_file import COLUMNS, SweepFile
from tiledse.documents import write_json
from tiledse.evaluate.adapters import Detector
from tiledse.stream.hardware import Hardware
from tiledse.train.recipe import read_recipe

from .formats import Format
from .images import PREPARE, picture
from .mutate import Dice, change_csv, change_json, change_toml
from .networks import SIZE, network


class Coco(Format):
    """Boxes, and the average precision that is counted with them."""

    name, file = "COCO annotations", "annotations.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(picture(Dice(0)))

    @cached_property
    def _sound(self) -> bytes:
        image = {"width": 20, "height": 24}
        box = {"iscrowd": 0, "area": 40.0}
        return json.dumps(
            {
                "images": [
                    {"id": 1, "file_name": "a.png", **image},
                    {"id": 2, "file_name": "b.png", **image},
                ],
                "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 8.5, 9], **box},
                    {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 24], **box},
                    {"id": 3, "image_id": 2, "category_id": 1, "bbox": [1, 1, 4, 4], **box},
                ],
            }
        ).encode()

    def sound(self, dice: Dice) -> bytes:
        return self._sound

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_json(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.evaluate.detection import CocoImages, Detection

        found = np.array([[2, 3, 10, 12, 0.9, 1], [0, 0, 18, 20, 0.8, 3.0]])
        detector = Detector(PREPARE, lambda output, sizes: [found for _ in sizes])
        task = Detection(CocoImages(path, detector), detector)
        results = []
        for batch in task.images.batches(2):
            results += task.judge(batch, task.targets(batch), torch.zeros(1), "SE")
        scores = task.score(results)
        assert all(0 <= value <= 100 for value in scores.values() if value == value)
        # AP of sizes that no box has is not a number by definition; tables say so, JSON has null.
        # AP itself is none where no box counts: the writer of figures refuses it, as `eval --json` does.
        return write_json(scores["AP"]), scores["AP"], task.images.sizes


_RECIPE = b"""task = "classify"
about = "a test"
input = "3x32x32"
classes = 10
epochs = 2
batch_size = 8
seeds = [0, 1]
subset = 0.5
ema = 0.99
cache = 0
as_is = ["7xW"]
trainable = ["*"]
channels_last = false
[[network]]
model = "timm:lcnet_050"
input = "3x48x48"
lr = 0.1
batch_size = 4
[[variant]]
name = "se"
[[variant]]
name = "tse"
tile = "7xW"
start = "se"
kernel = [3, 1]
ratio = 16.0
[optimizer]
name = "sgd"
lr = 0.1
momentum = 0.9
weight_decay = 1e-4
clip_norm = 1.0
[schedule]
name = "cosine"
warmup_epochs = 0.5
min_factor = 0.0
[augment]
crop_scale = [0.2, 1.0]
flip = 0.5
jitter = 0.1
[loss]
smoothing = 0.1
[scale.small]
epochs = 1
"""


class Recipes(Format):
    """What ``train`` is told."""

    name, file = "recipe.toml", "recipe.toml"

    def sound(self, dice: Dice) -> bytes:
        return _RECIPE

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_toml(data, dice)

    def read(self, path: Path) -> Any:
        recipe = read_recipe(path, scale="small" if b"scale.small" in path.read_bytes() else None)
        each = [recipe.for_network(network).to_dict() for network in recipe.network]
        return recipe.to_dict(), recipe.input_size, each


class HardwareToml(Format):
    """What ``simulate`` runs on."""

    name, file = "hardware.toml", "hardware.toml"

    @cached_property
    def _graph(self) -> Any:
        from tiledse.stream.building import build_graph

        model = network()
        return build_graph(model, ts.find(model, SIZE).with_tile("3xW"), 1, SIZE[1:])

    def sound(self, dice: Dice) -> bytes:
        return b"multipliers = 512\nimage_cycles_per_row = 40\n[cycles_per_row]\nstem = 90\n[fifo_rows]\nconv = 9\n"

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_toml(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.stream.simulator import simulate_graph

        return simulate_graph(self._graph, Hardware.load(path)).to_dict()


class HardwareJson(HardwareToml):
    name, file = "hardware.json", "hardware.json"

    def sound(self, dice: Dice) -> bytes:
        table = {"cycles_per_row": {"stem": 90}, "fifo_rows": {"conv": 9}}
        return json.dumps({"multipliers": 512, "image_cycles_per_row": 40, **table}).encode()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_json(data, dice)


class Sweeps(Format):
    """The results of a sweep, to which rows are added, and which are drawn."""

    name, file = "sweep.csv", "sweep.csv"

    def sound(self, dice: Dice) -> bytes:
        row = [
            "m",
            "w",
            "classify",
            "d",
            "network",
            "3x8x8",
            "7xW",
            "100",
            "top1",
            "75.5",
            "74.5",
            "1.0",
            "0.1",
            "1.9",
        ]
        row += ["90", "8", "2", "0.1", "1000", "500", "500"]
        return "\n".join((",".join(COLUMNS), ",".join(row), ",".join([*row[:6], "3xW", *row[7:]]))).encode()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_csv(data, dice)

    def read(self, path: Path) -> Any:
        file = SweepFile(path)
        row = dict.fromkeys(COLUMNS, "1")
        had, before = file.has(row), len(file.rows)
        file.add(row)
        again = SweepFile(path)
        assert again.has(row)
        assert len(again.rows) == before + (1 if not had else len(again.rows) - before)
        return [float(row["drop"] or 0) for row in again.rows if not had]
