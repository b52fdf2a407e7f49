"""What to fit in a calibration: alternatives on images that were not used for the fit.

    python benchmarks/calibration.py --shared ../shared -o results/accuracy/choose/calibration.csv

MobileNetV3-Small, ImageNet validation images in numpy's order of seed 0: the first 400 for the fit, the next 250 for
the divergence (KL of the softmax from SE's, nats). No label is used.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tiledse.choose.calibration import Fit, fit_means, strip_means
from tiledse.correction import Correction
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.tasks import softmax_divergence
from tiledse.files import write_csv
from tiledse.onnx import load
from tiledse.onnx.network import OnnxNetwork

# (what, target, order, prior in images)
VARIANTS = (
    ("nothing", "", "", 0),
    ("slopes and offset", "own map", "in order", 30),
    ("slopes and offset", "own map", "in order", 100),
    ("slopes and offset", "own map", "in order", 300),
    ("slopes and offset", "own map", "in order", 1000),
    ("slopes and offset", "own map", "each alone", 300),
    ("slopes and offset", "map of SE", "in order", 300),
    ("offset", "own map", "in order", 1e12),
    ("one pair of slopes a strip, offsets", "own map", "in order", 1e-3),
)


def shared_slopes(own, running, target):
    """One pair of slopes for all channels of a strip, channels in units of their target's deviation."""
    scale = target.std(0)[None, :, None] + 1e-9
    centred = [(v - v.mean(0)) / scale for v in (own, running)]
    wanted = ((target - target.mean(0))[:, :, None]) / scale
    a, b = np.zeros(own.shape[1:]), np.zeros(own.shape[1:])
    for strip in range(own.shape[2]):
        x = np.stack([v[:, :, strip].ravel() for v in centred], 1)
        slopes = np.linalg.lstsq(x, wanted[:, :, 0].ravel(), rcond=None)[0]
        a[:, strip], b[:, strip] = slopes
    return Fit(a, b, target.mean(0)[:, None] - a * own.mean(0) - b * running.mean(0))


def fitted(network, plan, batches, whole, what, target, order, prior):
    corrections = [None] * len(plan)
    for number, (block, tile) in enumerate(plan):
        if tile.tiles(block.height, block.width) == 1 or what == "nothing":
            continue
        if order == "in order":
            look = network.rows(replace(plan, corrections=tuple(corrections)), [number])
            rows = np.concatenate([look(batch)[0] for batch in batches])
        else:
            rows = whole[number]
        own, running = strip_means(rows, tile)
        goal = (rows if target == "own map" else whole[number]).mean(2, dtype=np.float64)
        known = running if tile.slides else None
        shared = what.startswith("one pair")
        fit = shared_slopes(own, running, goal) if shared else fit_means(own, known, goal, prior)
        corrections[number] = Correction(
            fit.own, None if known is None else fit.running, fit.offset, block.height, network.weights, tile
        )
    return replace(plan, corrections=tuple(corrections))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--tiles", default="1xW:running")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = OnnxNetwork(load(args.shared / "models/tf_mobilenetv3_small_100_dynamo.onnx"), (3, 224, 224))
    prepare = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, kind="crop")
    images = open_images(args.shared / "data/imagenet_val1300", prepare)
    drawn = np.random.default_rng(0).permutation(len(images.files))[:650]
    x = torch.stack([images.sample(int(i)).input for i in drawn])
    batches, test = x[:400].split(16), x[400:].split(16)
    look = network.rows(network.se, range(len(network.se)))
    parts = [look(batch) for batch in batches]
    whole = [np.concatenate(each) for each in zip(*parts)]
    se = torch.cat([network.tiled(network.se)(batch) for batch in test])
    lines = []
    for tile in args.tiles.split(","):
        for variant in VARIANTS:
            plan = fitted(network, network.se.with_tile(tile), batches, whole, *variant)
            module = network.tiled(plan)
            tse = torch.cat([module(batch) for batch in test])
            apart = softmax_divergence(se, tse).numpy()
            error = float(apart.std() / len(apart) ** 0.5)
            what, target, order, prior = variant
            lines.append(
                {
                    "tile": tile, "fitted": what, "target": target, "blocks": order, "prior_images": prior,
                    "divergence": round(float(apart.mean()), 4), "standard_error": round(error, 4),
                    "same_class": int((se.argmax(1) == tse.argmax(1)).sum()), "n": len(se),
                    "onnxruntime": version("onnxruntime"), "torch": version("torch"),
                }
            )  # fmt: skip
            print(lines[-1], file=sys.stderr, flush=True)
            write_csv(args.output, lines)


if __name__ == "__main__":
    main()
