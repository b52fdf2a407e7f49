"""An adapter: a CenterNet with the outputs (heatmap, wh), for `tiledse eval FILE.onnx --task detect`.

    tiledse eval centernet_mobilenetv3_075.onnx --input 3x512x512 --tile 7xW --task detect \
        --adapter examples.centernet:adapter --data instances_val.json
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tiledse.evaluate.adapters import Detector


def adapter(input_size: tuple[int, int, int]) -> Detector:
    """Images are stretched to the input, RGB 0..255; a peak of the heat map is the centre of a box."""
    _, height, width = input_size

    def prepare(image: Image.Image) -> Tensor:
        pixels = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(pixels, np.float32)).permute(2, 0, 1)

    def detect(outputs: tuple[Tensor, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        heat, wh = outputs
        peaks = heat * (heat == torch.nn.functional.max_pool2d(heat, 3, 1, 1))
        found = []
        for peak, side, (image_width, image_height) in zip(peaks, wh, sizes):
            score, at = peak.flatten().topk(100)
            _, h, w = peak.shape
            category, y, x = at // (h * w), at % (h * w) // w, at % w
            left, top, right, bottom = side[:, y, x]
            boxes = torch.stack([4 * x - left, 4 * y - top, 4 * x + right, 4 * y + bottom], 1)
            boxes *= torch.tensor([image_width / width, image_height / height] * 2)
            found.append(torch.cat([boxes, score[:, None], category[:, None].float()], 1))
        return found

    return Detector(prepare, detect)
