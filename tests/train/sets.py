"""Small image sets on disk, and recipes for them: each class has a colour, so that a few steps learn it."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NETWORK = "timm:test_efficientnet"  # 100,224 parameters, two SE blocks, a step of 8 images in 30 ms

RECIPE = """
task = "classify"
input = "3x32x32"
classes = 3
epochs = 3
batch_size = 8
cache = 32
[[network]]
model = "timm:test_efficientnet"
[[variant]]
name = "se"
[[variant]]
name = "1xW"
tile = "1xW"
[optimizer]
lr = 0.02
[augment]
crop_scale = [0.7, 1.0]
"""


def picture(label: int, number: int, side: int = 36) -> Image.Image:
    """A noisy image in its class's colour."""
    rng = np.random.default_rng((label, number))
    colour = np.array([(220, 40, 40), (40, 220, 40), (40, 40, 220)][label % 3])
    return Image.fromarray(np.clip(colour + rng.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8))


def class_folders(folder: Path, classes: int = 3, train: int = 8, val: int = 4) -> Path:
    """``train/c0/0.png`` and so on."""
    for part, count, first in (("train", train, 0), ("val", val, 1000)):
        for label in range(classes):
            place = folder / part / f"c{label}"
            place.mkdir(parents=True)
            for number in range(count):
                picture(label, first + number).save(place / f"{number}.png")
    return folder


def shards(folder: Path, classes: int = 3, train: int = 8, val: int = 4, suffix: str = ".tar") -> Path:
    """The same images as tar shards, two a part."""
    folder.mkdir(parents=True)
    for part, count, first in (("train", train, 0), ("val", val, 1000)):
        samples = [(label, number) for label in range(classes) for number in range(count)]
        for shard in range(2):
            mode = "w:gz" if suffix.endswith("gz") else "w"
            with tarfile.open(folder / f"{part}-{shard}{suffix}", mode) as tar:
                for label, number in samples[shard::2]:
                    held = io.BytesIO()
                    picture(label, first + number).save(held, "PNG")
                    _add(tar, f"{label}_{number}.png", held.getvalue())
                    _add(tar, f"{label}_{number}.cls", str(label).encode())
    return folder


def listed(folder: Path, classes: int = 3, train: int = 8, val: int = 4) -> Path:
    """The same images with labels.csv."""
    for part, count, first in (("train", train, 0), ("val", val, 1000)):
        (folder / part).mkdir(parents=True)
        with (folder / part / "labels.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "label"])
            for label in range(classes):
                for number in range(count):
                    name = f"{label}_{number}.png"
                    picture(label, first + number).save(folder / part / name)
                    rows.writerow([name, label])
    return folder


def masked(folder: Path, images: int = 8, size: tuple[int, int] = (48, 64)) -> Path:
    """Images with masks: the upper part is class 0, the lower 1, one column ignored."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        (folder / f"{part}_masks").mkdir()
        for number in range(images):
            rng = np.random.default_rng((number, part == "val"))
            edge = int(rng.integers(size[0] // 4, 3 * size[0] // 4))
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[:edge], pixels[edge:] = (200, 60, 60), (60, 60, 200)
            mask = np.zeros(size, np.uint8)
            mask[edge:], mask[:, 0] = 1, 11
            noisy = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / part / f"{number}.png")
            Image.fromarray(mask).save(folder / f"{part}_masks" / f"{number}.png")
    return folder


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
