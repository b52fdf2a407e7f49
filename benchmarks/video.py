"""Gates of the previous frame: accuracy on frames of videos, and on frames made of still images.

    python benchmarks/video.py camvid --shared ../shared -o results/accuracy/video_camvid.csv
    python benchmarks/video.py stills --shared ../shared -o results/accuracy/video_stills.csv

``camvid``: street scenes a second apart, the zoo's networks, mIoU of the 233 frames of two test videos. ``stills``:
each of 325 ImageNet images is a video of eleven frames that moves, grows and brightens from frame to frame and back,
and the last one, the image at rest, is judged. ``cut``: all frames before are of another image, and no stream begins.
A run that was cut off goes on with the next tile.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import tiledse as ts
from tiledse.evaluate.evaluation import Evaluation, ImageResult
from tiledse.evaluate.opening import TaskImages
from tiledse.files import write_csv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TILES = (
    "HxW:previous", "1xW:previous+6", "1xW:previous", "1xW:previous-1", "7xW", "1xW:running+6", "1xW:running",
    "1xW:running-1",
)  # fmt: skip
ZOO = ("zoo:camvid-se", "zoo:camvid-7xW")
STREAMS, FRAMES, SWING = 25, 11, 3


class Motion(NamedTuple):
    """What changes from a frame to the next: pixels of 224, growth, light."""

    pixels: float
    growth: float
    light: float


MOTIONS = {"slow": Motion(2, 0.01, 0.02), "fast": Motion(12, 0.06, 0.15), "cut": Motion(2, 0.01, 0.02)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is recorded already."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def camvid(args: argparse.Namespace) -> None:
    """Mean IoU on the frames of CamVid's test videos."""
    folder, rows = args.shared / "data/camvid", rows_of(args.output)
    for name in ZOO:
        network = ts.open(name)
        task = TaskImages(str(folder / "test"), "segment", masks=folder / "test_masks").open(
            network, name=name
        )
        for tile in TILES:
            if any((row["network"], row["tile"]) == (name, tile) for row in rows):
                continue
            found = ts.evaluate(network, network.se.with_tile(tile), task, frames=True)
            low, high = found.paired.drop_ci95
            cost = ts.cost(network.se.with_tile(tile)).tse
            rows.append(
                {
                    "network": name, "tile": tile, "frames": found.n, "se": f"{found.se['mIoU']:.3f}",
                    "tiled": f"{found.tse['mIoU']:.3f}", "drop": f"{found.paired.drop:.3f}", "low": f"{low:.3f}",
                    "high": f"{high:.3f}", "buffer": cost.buffer, "state": cost.state,
                }
            )  # fmt: skip
            write_csv(args.output, rows)
            print(rows[-1], flush=True)


def stills(args: argparse.Namespace) -> None:
    """Top-1 of the last frame, all streams of a batch side by side."""
    rows = rows_of(args.output)
    model = mobilenet(args.shared)
    network = ts.open(model, (3, 224, 224))
    names, labels = listed(args.shared / "data/imagenet_val1300")
    for motion in MOTIONS:
        missing = [t for t in TILES if not any((r["motion"], r["tile"]) == (motion, t) for r in rows)]
        if not missing:
            continue
        forms = {tile: ts.convert(model, network.plan.with_tile(tile)) for tile in missing}
        guesses: dict[str, list[int]] = {tile: [] for tile in ("SE", *missing)}
        for frames in batches(args.shared / "data/imagenet_val1300", names, motion):
            with torch.no_grad():
                guesses["SE"] += model(frames[-1]).argmax(1).tolist()
                for tile, form in forms.items():
                    if network.plan.with_tile(tile).previous:
                        ts.reset_frames(form)
                        for frame in frames[:-1]:
                            form(frame)
                    guesses[tile] += form(frames[-1]).argmax(1).tolist()
        for tile in missing:
            found = Evaluation(
                tuple(
                    ImageResult(name, label, a, b, a == label, b == label)
                    for name, label, a, b in zip(names, labels, guesses["SE"], guesses[tile], strict=True)
                )
            )
            low, high = found.drop_ci95
            cost = ts.cost(network.plan.with_tile(tile)).tse
            rows.append(
                {
                    "motion": motion, "tile": tile, "images": found.n, "se": f"{found.se.top1:.3f}",
                    "tiled": f"{found.tse.top1:.3f}", "drop": f"{found.drop:.3f}", "low": f"{low:.3f}",
                    "high": f"{high:.3f}", "lost": found.lost, "gained": found.gained, "agree": found.agree,
                    "buffer": cost.buffer, "state": cost.state,
                }
            )  # fmt: skip
        write_csv(args.output, rows)
        print(motion, "done", flush=True)


def mobilenet(shared: Path) -> nn.Module:
    """MobileNetV3-Small with Google's weights."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("tf_mobilenetv3_small_100")
    model.load_state_dict(load_file(shared / "models/tf_mobilenetv3_small_100.safetensors"))
    return model.eval()


def listed(folder: Path) -> tuple[list[str], list[int]]:
    """Names and labels of the images."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    some = rows[::4]
    return [row["file"] for row in some], [int(row["label"]) for row in some]


def batches(folder: Path, names: list[str], motion: str) -> Iterator[list[Tensor]]:
    """The frames of some videos, the last one the image at rest; motion turns back after SWING frames."""
    generator = np.random.default_rng(0)
    how = MOTIONS[motion]
    for start in range(0, len(names), STREAMS):
        here = range(start, min(start + STREAMS, len(names)))
        frames: list[list[np.ndarray]] = [[] for _ in range(FRAMES)]
        for number in here:
            angle, sign = generator.uniform(0, 2 * np.pi), generator.choice([-1.0, 1.0])
            other = (number + len(names) // 2) % len(names)
            for place, back in enumerate(reversed(range(FRAMES))):
                away = SWING - abs(back % (2 * SWING) - SWING)
                source = other if motion == "cut" and back else number
                with Image.open(folder / names[source]) as image:
                    frames[place].append(moved(image.convert("RGB"), how, away * sign, angle))
        yield [torch.tensor(np.stack(f)).permute(0, 3, 1, 2) / 127.5 - 1 for f in frames]


def moved(image: Image.Image, how: Motion, steps: float, angle: float) -> np.ndarray:
    """The middle of an image, so many frames away, grown to 224 x 224: (224, 224, 3) float32, 0 to 255.

    Every frame is drawn anew from about 206 pixels, so that all are equally sharp, as a camera's are.
    """
    scale = 0.92 * (1 + how.growth) ** steps
    big = Image.fromarray(np.pad(np.asarray(image), ((64, 64), (64, 64), (0, 0)), mode="reflect"))
    left, top = (
        65 + 112 * (1 - scale) + how.pixels * steps * part for part in (np.cos(angle), np.sin(angle))
    )
    drawn = big.transform(
        (224, 224), Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(drawn, np.float32) * np.float32((1 + how.light) ** steps), 0, 255)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("camvid", "stills"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ts.TiledSEWarning)
    {"camvid": camvid, "stills": stills}[given.verb](given)
