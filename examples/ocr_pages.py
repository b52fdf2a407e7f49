"""Drawn pages of small, dense and rotated text, and an adapter for PP-OCR's text detectors (DB maps).

    python examples/ocr_pages.py PAGES          # PAGES/plain, small, dense, rotated: images and masks
    tiledse sweep PP-OCRv6_det_small.onnx --input 3x640x640 --task segment --adapter examples.ocr_pages:adapter \
        --data PAGES/small --tiles 7xW,1xW -o ocr.csv

Text is where a line was drawn: its letters' box, turned with the page. A DB map marks the core of each line, so the
level of the IoU is low; what tiles change in it is what counts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tiledse.evaluate.adapters import Segmenter, index_mask

SIDE = 640
KINDS = {  # letter sizes, gaps between lines, angles of the page in degrees
    "plain": ((20, 30), (12, 30), (0, 0)),
    "small": ((8, 11), (10, 30), (0, 0)),
    "dense": ((10, 14), (1, 3), (0, 0)),
    "rotated": ((14, 22), (8, 20), (8, 35)),
}
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))


def adapter(input_size: tuple[int, int, int]) -> Segmenter:
    """Images are stretched to the input, in OpenCV's order of channels, -1..1; only "text" is scored."""
    _, height, width = input_size

    def prepare(image: Image.Image) -> Tensor:
        pixels = np.asarray(
            image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32
        )
        return torch.from_numpy(pixels[:, :, ::-1] / 127.5 - 1).permute(2, 0, 1)

    def segment(output: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        maps = torch.nn.functional.interpolate(output, sizes[0], mode="bilinear", align_corners=False)
        return [(one[0] > 0.3).long() for one in maps]

    return Segmenter(("background", "text"), prepare, segment, index_mask, ignore=None, scored=(1,))


def draw_page(kind: str, number: int) -> tuple[Image.Image, Image.Image]:
    """A page and its mask."""
    random = np.random.default_rng([number, *kind.encode()])
    sizes, gaps, angles = KINDS[kind]
    ground = tuple(int(v) for v in random.integers(205, 256, 3))
    page, mask = Image.new("RGB", (SIDE, SIDE), ground), Image.new("L", (SIDE, SIDE))
    pen, marker = ImageDraw.Draw(page), ImageDraw.Draw(mask)
    y = 20.0
    while True:
        font = ImageFont.load_default(int(random.integers(*sizes)))
        words = [
            "".join(random.choice(LETTERS, random.integers(2, 10))) for _ in range(random.integers(2, 9))
        ]
        left = float(random.integers(15, 120))
        box = pen.textbbox((left, y), " ".join(words), font=font)
        while box[2] > SIDE - 15 and len(words) > 1:
            words.pop()
            box = pen.textbbox((left, y), " ".join(words), font=font)
        if box[3] > SIDE - 15:
            break
        pen.text(
            (left, y), " ".join(words), font=font, fill=tuple(int(v) for v in random.integers(0, 120, 3))
        )
        marker.rectangle(box, fill=1)
        y = box[3] + float(random.integers(*gaps))
    angle = float(random.uniform(*angles)) * random.choice([-1, 1])
    page = page.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
    mask = mask.rotate(angle, Image.Resampling.NEAREST)
    noise = random.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(page) + noise, 0, 255).astype(np.uint8)), mask


def main(folder: str, pages: str = "12") -> None:
    """Draw pages of every kind."""
    for kind in KINDS:
        for name in ("images", "masks"):
            (Path(folder) / kind / name).mkdir(parents=True, exist_ok=True)
        for number in range(int(pages)):
            page, mask = draw_page(kind, number)
            page.save(Path(folder) / kind / "images" / f"{number:02}.png")
            mask.save(Path(folder) / kind / "masks" / f"{number:02}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
