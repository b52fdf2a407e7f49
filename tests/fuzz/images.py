"""Images and sets of images."""

from __future__ import annotations

import io
import tarfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image

from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing, read_image
from tiledse.stream.sources import ImageRows

from .formats import Format
from .mutate import NAMES, Dice, change_bytes, change_csv, change_npy, change_png, change_tiff

PREPARE = Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def picture(dice: Dice, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A small image file."""
    out = io.BytesIO()
    pixels = np.frombuffer(dice.randbytes(24 * 20 * 4), np.uint8).reshape(24, 20, 4)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(out, kind)
    else:
        Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


class Tiff(Format):
    """As ``stream`` reads it, by rows."""

    name, file = "image.tif", "image.tif"

    def sound(self, dice: Dice) -> bytes:
        out = io.BytesIO()
        kind = dice.choice((np.uint8, np.uint16, np.float32))
        pixels = np.array([dice.random() * 200 for _ in range(40 * 24 * 3)]).reshape(40, 24, 3).astype(kind)
        pixels = pixels if dice.random() < 0.6 else pixels[..., 0]
        options = dice.choice(
            ({}, {"rowsperstrip": 7}, {"compression": "zlib", "rowsperstrip": 7}, {"tile": (16, 16)},
             {"tile": (16, 16), "compression": "zlib"})
        )  # fmt: skip
        colour = "rgb" if pixels.ndim == 3 else "minisblack"
        tifffile.imwrite(out, pixels, byteorder="<", photometric=colour, **options)
        return out.getvalue()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_tiff(data, dice)

    def read(self, path: Path) -> Any:
        # As `stream` does it: what is far larger than the file is refused before, so this holds few rows.
        rows, shapes = 0, []
        image = ImageRows(path)
        for part in image.chunks(16):
            assert part.shape[1] == image.channels
            assert part.shape[3] == image.width
            rows += part.shape[2]
            shapes.append(part.shape)
        assert rows == image.height
        return shapes  # pixels that are not finite are refused where they are pushed, row by row


class Npy(Tiff):
    """As ``stream`` reads it."""

    name, file = "image.npy", "image.npy"

    def sound(self, dice: Dice) -> bytes:
        out = io.BytesIO()
        shape = dice.choice(((24, 20), (24, 20, 3), (3, 24, 20)))
        kind = dice.choice((np.uint8, np.uint16, np.float32, np.float64))
        np.save(out, (np.random.default_rng(dice.randrange(99)).random(shape) * 99).astype(kind))
        return out.getvalue()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_npy(data, dice)


class StreamedPng(Tiff):
    """Pillow's formats, as ``stream`` reads them."""

    name, file = "image.png (stream)", "image.png"

    def sound(self, dice: Dice) -> bytes:
        kind, mode = dice.choice(
            (("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"),
             ("WEBP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB"), ("TGA", "RGB"), ("ICO", "RGBA"))
        )  # fmt: skip
        return picture(dice, kind, mode)

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_png(data, dice)


class Png(StreamedPng):
    """As ``eval`` and ``train`` read them."""

    name, file = "image.png (eval)", "image.png"

    def read(self, path: Path) -> Any:
        return read_image(path, path.name, PREPARE)


class Labels(Format):
    """A list of images with labels."""

    name, file = "labels.csv", "labels.csv"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("a.png", "b.png", "c.png"):
            (folder / name).write_bytes(picture(Dice(0)))

    def sound(self, dice: Dice) -> bytes:
        return b"file,label\na.png,0\nb.png,17\nc.png,3\n"

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_csv(data, dice)

    def read(self, path: Path) -> Any:
        images = open_images(self.folder, PREPARE)
        return list(images.batches(2))


class ClassMap(Labels):
    """The folders of classes, in the order of labels."""

    name, file = "class map", "classes.txt"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.set = folder / "set"
        for name in ("cat", "dog"):
            (self.set / name).mkdir(parents=True, exist_ok=True)
            (self.set / name / "a.png").write_bytes(picture(Dice(0)))

    def sound(self, dice: Dice) -> bytes:
        return b"dog\nbird\ncat\n"

    def read(self, path: Path) -> Any:
        return list(open_images(self.set, PREPARE, class_map=path).batches(2))


class Masks(Format):
    """A list of images with masks."""

    name, file = "masks.csv", "masks.csv"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "a.png").write_bytes(picture(Dice(0)))
        Image.fromarray(np.eye(24, 20, dtype=np.uint8)).save(folder / "m.png")

    def sound(self, dice: Dice) -> bytes:
        return b"file,mask\na.png,m.png\n"

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_csv(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.evaluate.adapters import semantic
        from tiledse.evaluate.segmentation import MaskedImages, Segmentation

        segmenter = semantic(("one", "two"), (3, 16, 16))
        task = Segmentation(MaskedImages(path, segmenter), segmenter)
        results = []
        for batch in task.images.batches(2):
            output = torch.stack([batch.inputs[:, 0], batch.inputs[:, 1]], 1)
            results += task.judge(batch, task.targets(batch), output, "SE")
        return task.score(results)


class Shards(Format):
    """Images and labels in a tar file."""

    name, file = "shard.tar", "shard.tar"

    @cached_property
    def _picture(self) -> bytes:
        return picture(Dice(0))

    def sound(self, dice: Dice) -> bytes:
        return self._tar(
            [("a.png", self._picture), ("a.cls", b"1"), ("b.png", self._picture), ("b.cls", b"2")]
        )

    def _tar(self, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, body in members:
                member = tarfile.TarInfo(name)
                member.size, member.type, member.linkname = len(body), kind, link
                archive.addfile(member, io.BytesIO(body))
        return out.getvalue()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        if dice.random() < 0.5:
            return change_bytes(data, dice)
        name = dice.choice([n for n in NAMES if n and "\ud800" not in n])
        label = dice.choice(
            (b"1", b"-1", b"9" * 5000, b"1.5", b"", b"\xff", "²".encode(), b"nan", b"1\n", b"\x1b[2J")
        )
        image = self._picture if dice.random() < 0.7 else change_png(self._picture, dice)
        kind = dice.choice(
            (tarfile.REGTYPE,) * 4 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE)
        )
        members = [(f"{name}.png", image), (f"{name}.cls", label), ("b.png", self._picture), ("b.cls", b"2")]
        if dice.random() < 0.3:
            dice.shuffle(members)
        return self._tar(members, kind, "/etc/passwd" if kind != tarfile.REGTYPE else "")

    def read(self, path: Path) -> Any:
        return list(open_images(path, PREPARE).batches(2))
