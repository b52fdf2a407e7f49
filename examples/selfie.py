"""An adapter: a person segmenter with one output, the probability of "person", for `tiledse eval --task segment`.

    python examples/selfie.py COCO128 people.csv     # lists the images with at least 10 % person
    tiledse eval selfie_segmentation.onnx --input 3x256x256 --tile 7xW --task segment \
        --adapter examples.selfie:adapter --data people.csv
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tiledse.evaluate.adapters import Segmenter

PERSON = 1  # in the masks: COCO's panoptic category


def adapter(input_size: tuple[int, int, int]) -> Segmenter:
    """Images are stretched to the input, RGB 0..1; masks are brought to the input's size. Only "person" is scored."""
    _, height, width = input_size

    def prepare(image: Image.Image) -> Tensor:
        pixels = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(pixels, np.float32)).permute(2, 0, 1) / 255

    def segment(output: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        return [(one[0] > 0.5).long() for one in output]

    def truth(mask: Image.Image) -> Tensor:
        small = mask.resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy((np.asarray(small) == PERSON).astype(np.int64))

    return Segmenter(("background", "person"), prepare, segment, truth, ignore=None, scored=(1,))


def main(coco128: str, output: str) -> None:
    """Write file,mask of the images with a person on at least 10 % of their pixels."""
    root = Path(coco128).resolve()
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "mask"])
        for mask in sorted((root / "masks").rglob("*.png")):
            if (np.asarray(Image.open(mask)) == PERSON).mean() >= 0.1:
                image = (root / "images" / mask.relative_to(root / "masks")).with_suffix(".jpg")
                writer.writerow([image, mask])


if __name__ == "__main__":
    main(*sys.argv[1:])
